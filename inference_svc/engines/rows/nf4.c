/* Products with weights in bitsandbytes' NF4 layout, for x86 processors with AVX2: see nf4.py, which compiles this.
 *
 * Two codes to a byte, the first in the high half; 64 codes of a row of the weight share one scale. A code is looked
 * up as a whole number of 15 bits, its two bytes each from a table of 16 that one instruction reads for 32 codes. x
 * becomes whole numbers of 15 bits as well, each block by its largest, so that one instruction multiplies 16 of them;
 * a block adds up eight products in each lane of 32 bits, which is as many as fit. Putting the bytes of the numbers
 * together leaves them in an order of its own, into which x is brought first.
 */
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>

enum { BLOCK = 64, HALF = BLOCK / 2, ROWS_AT_ONCE = 4, OUTPUTS_AT_ONCE = 16, LARGEST = 16383 };

typedef struct {
    __m256i low, high;
} Table;

static Table make_table(const int16_t *numbers) {
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

/* Where the code of byte `position` of a block lands among the 32 numbers of `look_up`. */
static int place(int position) {
    int lane = position / 16, within = position % 16;
    return within / 8 * 16 + lane * 8 + within % 8;
}

static inline __attribute__((always_inline)) void look_up(const Table *table, __m256i codes, __m256i numbers[2]) {
    __m256i low = _mm256_shuffle_epi8(table->low, codes), high = _mm256_shuffle_epi8(table->high, codes);
    numbers[0] = _mm256_unpacklo_epi8(low, high);
    numbers[1] = _mm256_unpackhi_epi8(low, high);
}

static float sum(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

/* A row of x as whole numbers, in the order of `look_up`, and the scale of each block, eight times. A block with what is
 * no number gets a scale that is none. */
static void to_numbers(const float *x, int64_t inputs, float unit, int16_t *numbers, float *scales) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    for (int64_t start = 0; start < inputs; start += BLOCK) {
        __m256 most = _mm256_setzero_ps(), unordered = _mm256_setzero_ps();
        for (int i = 0; i < BLOCK; i += 8) {
            const __m256 v = _mm256_loadu_ps(x + start + i);
            most = _mm256_max_ps(_mm256_andnot_ps(sign, v), most);
            unordered = _mm256_or_ps(unordered, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
        }
        float lanes[8], largest = 0.0f;
        _mm256_storeu_ps(lanes, most);
        for (int i = 0; i < 8; i++) largest = lanes[i] > largest ? lanes[i] : largest;
        const __m256 times = _mm256_set1_ps(largest > 0.0f ? LARGEST / largest : 0.0f);
        for (int i = 0; i < BLOCK; i += 8) {
            const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + start + i), times);
            int32_t whole[8];
            _mm256_storeu_si256((__m256i *)whole, _mm256_cvtps_epi32(scaled));
            for (int pair = 0; pair < 4; pair++) {
                const int at = place(i / 2 + pair);
                numbers[start + at] = (int16_t)whole[2 * pair];
                numbers[start + HALF + at] = (int16_t)whole[2 * pair + 1];
            }
        }
        const float scale = _mm256_movemask_ps(unordered) ? __builtin_nanf("") : largest / LARGEST * unit;
        _mm256_store_ps(scales + start / BLOCK * 8, _mm256_set1_ps(scale));
    }
}

/* One output of `count` rows of x. Inlined once for each count, so that the totals stay in registers. */
static inline __attribute__((always_inline)) void multiply(
    int count, const Table *table, const int16_t *x, const float *x_scales, const uint8_t *codes, const float *scales,
    float bias, float *out, int64_t outputs, int64_t inputs
) {
    const int64_t blocks = inputs / BLOCK;
    const __m256i low_half = _mm256_set1_epi8(15);
    __m256 totals[ROWS_AT_ONCE];
    for (int r = 0; r < count; r++) totals[r] = _mm256_setzero_ps();
    for (int64_t block = 0; block < blocks; block++) {
        const __m256i both = _mm256_loadu_si256((const __m256i *)(codes + block * HALF));
        __m256i w[4];
        look_up(table, _mm256_and_si256(_mm256_srli_epi16(both, 4), low_half), w);
        look_up(table, _mm256_and_si256(both, low_half), w + 2);
        const __m256 scale = _mm256_broadcast_ss(scales + block);
        for (int r = 0; r < count; r++) {
            const __m256i *at = (const __m256i *)(x + r * inputs + block * BLOCK);
            __m256i p = _mm256_madd_epi16(w[0], _mm256_load_si256(at));
            __m256i q = _mm256_madd_epi16(w[1], _mm256_load_si256(at + 1));
            p = _mm256_add_epi32(p, _mm256_madd_epi16(w[2], _mm256_load_si256(at + 2)));
            q = _mm256_add_epi32(q, _mm256_madd_epi16(w[3], _mm256_load_si256(at + 3)));
            const __m256 factor = _mm256_mul_ps(scale, _mm256_load_ps(x_scales + (r * blocks + block) * 8));
            totals[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(p, q)), factor, totals[r]);
        }
    }
    for (int r = 0; r < count; r++) out[r * outputs] = sum(totals[r]) + bias;
}

/* out [rows, outputs] = x [rows, inputs] times the weight [outputs, inputs], transposed, plus bias [outputs] or none.
 * `numbers` are the 16 values as multiples of `unit`. Returns 0, or 1 where there is no memory. */
int nf4_product(
    const int16_t *numbers, float unit, const float *x, const uint8_t *codes, const float *scales, const float *bias,
    float *out, int64_t rows, int64_t outputs, int64_t inputs
) {
    const Table table = make_table(numbers);
    const int64_t blocks = inputs / BLOCK;
    int16_t *whole = aligned_alloc(32, sizeof(int16_t) * rows * inputs + sizeof(float) * 8 * rows * blocks);
    if (!whole) return 1;
    float *x_scales = (float *)(whole + rows * inputs);
    for (int64_t row = 0; row < rows; row++)
        to_numbers(x + row * inputs, inputs, unit, whole + row * inputs, x_scales + row * blocks * 8);
    /* A few outputs at a time for all rows, so that both stay in the nearest cache. */
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < outputs; first += OUTPUTS_AT_ONCE) {
        const int64_t after = first + OUTPUTS_AT_ONCE < outputs ? first + OUTPUTS_AT_ONCE : outputs;
        for (int64_t row = 0; row < rows; row += ROWS_AT_ONCE) {
            const int16_t *from = whole + row * inputs;
            const float *from_by = x_scales + row * blocks * 8;
            for (int64_t output = first; output < after; output++) {
                const uint8_t *of = codes + output * inputs / 2;
                const float *by = scales + output * blocks, plus = bias ? bias[output] : 0.0f;
                float *to = out + row * outputs + output;
                switch (rows - row) {
                case 1: multiply(1, &table, from, from_by, of, by, plus, to, outputs, inputs); break;
                case 2: multiply(2, &table, from, from_by, of, by, plus, to, outputs, inputs); break;
                case 3: multiply(3, &table, from, from_by, of, by, plus, to, outputs, inputs); break;
                default: multiply(4, &table, from, from_by, of, by, plus, to, outputs, inputs);
                }
            }
        }
    }
    free(whole);
    return 0;
}

/* weight [outputs, inputs] of its codes and scales, exactly. */
void nf4_unpack(
    const float *values, const uint8_t *codes, const float *scales, float *weight, int64_t outputs, int64_t inputs
) {
    const __m256 lower = _mm256_loadu_ps(values), upper = _mm256_loadu_ps(values + 8);
    /* Each byte twice, the first time for its high half. */
    const __m128i twice = _mm_set_epi8(0, 0, 0, 0, 0, 0, 0, 0, 3, 3, 2, 2, 1, 1, 0, 0);
    const __m256i halves = _mm256_set_epi32(0, 4, 0, 4, 0, 4, 0, 4), four_bits = _mm256_set1_epi32(15);
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < outputs * inputs / BLOCK; block++) {
        const __m256 factor = _mm256_broadcast_ss(scales + block);
        const uint8_t *from = codes + block * HALF;
        float *to = weight + block * BLOCK;
        for (int start = 0; start < HALF; start += 4) {
            uint32_t four;
            __builtin_memcpy(&four, from + start, 4);
            const __m128i bytes = _mm_shuffle_epi8(_mm_cvtsi32_si128((int)four), twice);
            const __m256i shifted = _mm256_srlv_epi32(_mm256_cvtepu8_epi32(bytes), halves);
            const __m256i code = _mm256_and_si256(shifted, four_bits);
            const __m256 low = _mm256_permutevar8x32_ps(lower, code), high = _mm256_permutevar8x32_ps(upper, code);
            const __m256 is_upper = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));
            _mm256_storeu_ps(to + 2 * start, _mm256_mul_ps(_mm256_blendv_ps(low, high, is_upper), factor));
        }
    }
}
