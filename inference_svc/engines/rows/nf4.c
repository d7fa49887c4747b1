/* Products with weights in bitsandbytes' NF4 layout, for x86 processors with AVX2 or AVX-512: see nf4.py, which compiles
 * this.
 *
 * Two codes to a byte, the first in the high half; 64 codes of a row of the weight share one scale. A code is looked
 * up as a whole number of 15 bits. x becomes whole numbers of 15 bits as well, each block by its largest, so that one
 * instruction multiplies a whole register of them; a block adds up at most eight products in each lane of 32 bits, which
 * is as many as fit. What follows from a processor's registers is in `Table`, `make_table`, `place`, `look_up`, `dot` and
 * `sum`. x and the result are float or, with `half`, bfloat16.
 */
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "half.h"

enum { BLOCK = 64, HALF = BLOCK / 2, ROWS_AT_ONCE = 4, OUTPUTS_AT_ONCE = 16, FACTORS = 16, AHEAD = 160, LARGEST = 16383 };

#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)

typedef __m512 Floats;
typedef __m512i Whole;

/* The 16 numbers twice, so that of an index the low four bits count. */
typedef __m512i Table;

INLINE Table make_table(const int16_t *numbers) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)numbers));
}

/* Where the code of byte `position` of a block lands among the 32 numbers of `look_up`. */
INLINE int place(int position) { return position; }

/* The 64 numbers of a block: 32 of the high halves of its bytes, 32 of the low ones. */
INLINE void look_up(const Table *table, const uint8_t *codes, Whole numbers[2]) {
    const __m512i bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)codes));
    numbers[0] = _mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 4), *table);
    numbers[1] = _mm512_permutexvar_epi16(bytes, *table);
}

/* The products of a block's numbers with those of x, added up in each lane. */
INLINE Floats dot(const Whole numbers[2], const int16_t *x) {
    __m512i sums = _mm512_dpwssd_epi32(_mm512_setzero_si512(), numbers[0], _mm512_load_si512(x));
    sums = _mm512_dpwssd_epi32(sums, numbers[1], _mm512_load_si512(x + HALF));
    return _mm512_cvtepi32_ps(sums);
}

INLINE Floats none(void) { return _mm512_setzero_ps(); }
INLINE Floats all(float value) { return _mm512_set1_ps(value); }
INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE float sum(Floats v) { return _mm512_reduce_add_ps(v); }

#else

typedef __m256 Floats;
typedef __m256i Whole;

/* The two bytes of each number in tables of their own, which one instruction reads for 32 codes. */
typedef struct {
    __m256i low, high;
} Table;

INLINE Table make_table(const int16_t *numbers) {
    uint8_t low[16], high[16];
    for (int code = 0; code < 16; code++) {
        low[code] = (uint8_t)numbers[code];
        high[code] = (uint8_t)(numbers[code] >> 8);
    }
    return (Table){
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)low)),
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)high)),
    };
}

/* Putting the bytes of the numbers together leaves them in an order of its own. */
INLINE int place(int position) {
    const int lane = position / 16, within = position % 16;
    return within / 8 * 16 + lane * 8 + within % 8;
}

INLINE void look_up(const Table *table, const uint8_t *codes, Whole numbers[4]) {
    const __m256i both = _mm256_loadu_si256((const __m256i *)codes), low_half = _mm256_set1_epi8(15);
    const __m256i halves[2] = {
        _mm256_and_si256(_mm256_srli_epi16(both, 4), low_half), _mm256_and_si256(both, low_half)
    };
    for (int half = 0; half < 2; half++) {
        const __m256i low = _mm256_shuffle_epi8(table->low, halves[half]);
        const __m256i high = _mm256_shuffle_epi8(table->high, halves[half]);
        numbers[2 * half] = _mm256_unpacklo_epi8(low, high);
        numbers[2 * half + 1] = _mm256_unpackhi_epi8(low, high);
    }
}

INLINE Floats dot(const Whole numbers[4], const int16_t *x) {
    const __m256i *at = (const __m256i *)x;
    __m256i p = _mm256_madd_epi16(numbers[0], _mm256_load_si256(at));
    __m256i q = _mm256_madd_epi16(numbers[1], _mm256_load_si256(at + 1));
    p = _mm256_add_epi32(p, _mm256_madd_epi16(numbers[2], _mm256_load_si256(at + 2)));
    q = _mm256_add_epi32(q, _mm256_madd_epi16(numbers[3], _mm256_load_si256(at + 3)));
    return _mm256_cvtepi32_ps(_mm256_add_epi32(p, q));
}

INLINE Floats none(void) { return _mm256_setzero_ps(); }
INLINE Floats all(float value) { return _mm256_set1_ps(value); }
INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }

INLINE float sum(Floats v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

#endif

enum { REGISTERS = BLOCK * sizeof(int16_t) / sizeof(Whole) };

/* Below it LARGEST / x would not be finite; such blocks count as zeros. */
static const float SMALLEST = 1e-30f;

/* A row of x as whole numbers, in the order of `look_up`, and the scale of each block. A block with what is no number
 * gets a scale that is none. */
INLINE void to_numbers(const void *x, int64_t inputs, int half, float unit, int16_t *numbers, float *scales) {
    for (int64_t start = 0; start < inputs; start += BLOCK) {
        float block[BLOCK], largest = 0.0f;
        int ordered = 1;
        for (int i = 0; i < BLOCK; i++)
            block[i] = half ? from_half(((const uint16_t *)x)[start + i]) : ((const float *)x)[start + i];
        for (int i = 0; i < BLOCK; i++) {
            const float size = __builtin_fabsf(block[i]);
            largest = size > largest ? size : largest;
            ordered &= block[i] == block[i];
        }
        const int finite = ordered && largest <= __FLT_MAX__;
        const float times = largest > SMALLEST ? LARGEST / largest : 0.0f;
        int16_t whole[BLOCK];
        for (int i = 0; i < BLOCK; i++)
            whole[i] = (int16_t)(int32_t)__builtin_rintf(finite ? block[i] * times : 0.0f);
        for (int position = 0; position < HALF; position++) {
            numbers[start + place(position)] = whole[2 * position];
            numbers[start + HALF + place(position)] = whole[2 * position + 1];
        }
        scales[start / BLOCK] = finite ? largest / LARGEST * unit : __builtin_nanf("");
    }
}

INLINE void put(void *out, int64_t at, float value, int half) {
    if (half)
        ((uint16_t *)out)[at] = to_half(value);
    else
        ((float *)out)[at] = value;
}

/* Have memory `bytes` after `base` brought near; it may lie behind the end. */
INLINE void ask_for(const void *base, int64_t bytes) { __builtin_prefetch((const void *)((uintptr_t)base + bytes)); }

/* One output of `count` rows of x. Inlined once for each count, so that the totals stay in registers. */
INLINE void multiply(
    int count, const Table *table, const int16_t *x, const float *x_scales, const uint8_t *codes, const float *scales,
    float bias, void *out, int64_t at, int half, int64_t outputs, int64_t inputs
) {
    const int64_t blocks = inputs / BLOCK;
    Floats totals[ROWS_AT_ONCE];
    for (int r = 0; r < count; r++)
        totals[r] = none();
    for (int64_t start = 0; start < blocks; start += FACTORS) {
        const int64_t some = blocks - start < FACTORS ? blocks - start : FACTORS;
        /* Multiplied together, and then read into all lanes: from a register that takes what looking up waits for. */
        float factors[ROWS_AT_ONCE][FACTORS];
        for (int r = 0; r < count; r++)
            for (int64_t i = 0; i < some; i++)
                factors[r][i] = scales[start + i] * x_scales[r * blocks + start + i];
        ask_for(scales, (start + AHEAD) * (int64_t)sizeof(float));
        for (int64_t i = 0; i < some; i++) {
            ask_for(codes, (start + i + AHEAD) * HALF);
            Whole numbers[REGISTERS];
            look_up(table, codes + (start + i) * HALF, numbers);
            for (int r = 0; r < count; r++) {
                const Floats products = dot(numbers, x + r * inputs + (start + i) * BLOCK);
                totals[r] = multiply_add(products, all(factors[r][i]), totals[r]);
            }
        }
    }
    for (int r = 0; r < count; r++)
        put(out, at + r * outputs, sum(totals[r]) + bias, half);
}

/* out [rows, outputs] = x [rows, inputs] times the weight [outputs, inputs], transposed, plus bias [outputs] or none.
 * `numbers` are the 16 values as multiples of `unit`. Returns 0, or 1 where there is no memory. */
int nf4_product(
    const int16_t *numbers, float unit, const void *x, const uint8_t *codes, const float *scales, const float *bias,
    void *out, int half, int64_t rows, int64_t outputs, int64_t inputs
) {
    const Table table = make_table(numbers);
    const int64_t blocks = inputs / BLOCK;
    const size_t bytes = sizeof(int16_t) * rows * inputs + sizeof(float) * rows * blocks;
    int16_t *whole = aligned_alloc(sizeof(Whole), (bytes / sizeof(Whole) + 1) * sizeof(Whole));
    if (!whole)
        return 1;
    float *x_scales = (float *)(whole + rows * inputs);
    for (int64_t row = 0; row < rows; row++) {
        const char *from = (const char *)x + row * inputs * (half ? 2 : 4);
        int16_t *to = whole + row * inputs;
        if (half)
            to_numbers(from, inputs, 1, unit, to, x_scales + row * blocks);
        else
            to_numbers(from, inputs, 0, unit, to, x_scales + row * blocks);
    }
    /* A few outputs at a time for all rows, so that both stay in the nearest cache. */
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < outputs; first += OUTPUTS_AT_ONCE) {
        const int64_t after = first + OUTPUTS_AT_ONCE < outputs ? first + OUTPUTS_AT_ONCE : outputs;
        for (int64_t row = 0; row < rows; row += ROWS_AT_ONCE) {
            const int16_t *from = whole + row * inputs;
            const float *from_by = x_scales + row * blocks;
            for (int64_t output = first; output < after; output++) {
                const uint8_t *of = codes + output * inputs / 2;
                const float *by = scales + output * blocks, plus = bias ? bias[output] : 0.0f;
                const int64_t at = row * outputs + output;
#define MULTIPLY(count) multiply(count, &table, from, from_by, of, by, plus, out, at, half, outputs, inputs)
                switch (rows - row) {
                case 1: MULTIPLY(1); break;
                case 2: MULTIPLY(2); break;
                case 3: MULTIPLY(3); break;
                default: MULTIPLY(4);
                }
            }
        }
    }
    free(whole);
    return 0;
}

/* weight [outputs, inputs] of its codes and scales: exactly, or with `half` rounded once. */
void nf4_unpack(
    const float *values, const uint8_t *codes, const float *scales, void *weight, int half, int64_t outputs,
    int64_t inputs
) {
    const __m256 lower = _mm256_loadu_ps(values), upper = _mm256_loadu_ps(values + 8);
    /* Each byte twice, the first time for its high half. */
    const __m128i twice = _mm_set_epi8(0, 0, 0, 0, 0, 0, 0, 0, 3, 3, 2, 2, 1, 1, 0, 0);
    const __m256i halves = _mm256_set_epi32(0, 4, 0, 4, 0, 4, 0, 4), four_bits = _mm256_set1_epi32(15);
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < outputs * inputs / BLOCK; block++) {
        const __m256 factor = _mm256_broadcast_ss(scales + block);
        const uint8_t *from = codes + block * HALF;
        float exact[BLOCK];
        float *to = half ? exact : (float *)weight + block * BLOCK;
        for (int start = 0; start < HALF; start += 4) {
            uint32_t four;
            memcpy(&four, from + start, 4);
            const __m128i bytes = _mm_shuffle_epi8(_mm_cvtsi32_si128((int)four), twice);
            const __m256i shifted = _mm256_srlv_epi32(_mm256_cvtepu8_epi32(bytes), halves);
            const __m256i code = _mm256_and_si256(shifted, four_bits);
            const __m256 low = _mm256_permutevar8x32_ps(lower, code), high = _mm256_permutevar8x32_ps(upper, code);
            const __m256 is_upper = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));
            _mm256_storeu_ps(to + 2 * start, _mm256_mul_ps(_mm256_blendv_ps(low, high, is_upper), factor));
        }
        if (half)
            for (int i = 0; i < BLOCK; i++)
                ((uint16_t *)weight)[block * BLOCK + i] = to_half(exact[i]);
    }
}
