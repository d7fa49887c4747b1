/* What lies between the products of a decoder layer, in single passes over memory: see between.py, which compiles this,
 * once for each pair of precisions that is wanted.
 *
 * Hidden states are float or, with HALF, bfloat16; keys and values float or, with HALF_STATES, bfloat16. All is computed
 * in float and rounded once; the tables of the rotation are float. A row is computed by one thread, the same way
 * whatever other rows there are.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "half.h"

enum { BLOCK = 64, MOST_SIZE = 256 };

/* Work, in numbers read, from which a second thread pays for being woken. */
static const int64_t ALONE = 32768;

INLINE float as_it_is(float value) { return value; }

#if HALF
typedef uint16_t Number;
#define GET from_half
#define PUT to_half
#else
typedef float Number;
#define GET as_it_is
#define PUT as_it_is
#endif

#if HALF_STATES
typedef uint16_t State;
#define GET_STATE from_half
#define PUT_STATE to_half
#else
typedef float State;
#define GET_STATE as_it_is
#define PUT_STATE as_it_is
#endif

/* exp with a relative error of 2e-7 (Cephes' polynomial), without branches, so that it runs in all lanes. Below -87 it
 * is 1e-38 instead of less; what is no number stays none. */
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float n = __builtin_rintf(x * 1.44269504088896341f);
    const float r = x - n * 0.693359375f - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

/* x += addend, unless that is NULL, and its root mean square norm. All [rows, width]; weight [width]. */
void add_norm(
    Number *x, const Number *addend, const Number *weight, Number *normal, int64_t rows, int64_t width, float epsilon
) {
#pragma omp parallel for if (rows * width > ALONE)
    for (int64_t row = 0; row < rows; row++) {
        Number *own = x + row * width, *out = normal + row * width;
        float squares = 0.0f;
        if (addend) {
            const Number *more = addend + row * width;
#pragma omp simd reduction(+ : squares)
            for (int64_t i = 0; i < width; i++) {
                own[i] = PUT(GET(own[i]) + GET(more[i]));
                squares += GET(own[i]) * GET(own[i]);
            }
        } else {
#pragma omp simd reduction(+ : squares)
            for (int64_t i = 0; i < width; i++)
                squares += GET(own[i]) * GET(own[i]);
        }
        const float inverse = 1.0f / sqrtf(squares / (float)width + epsilon);
#pragma omp simd
        for (int64_t i = 0; i < width; i++)
            out[i] = PUT(GET(own[i]) * inverse * GET(weight[i]));
    }
}

/* silu(gate) * up. gate_up [rows, 2 * width], inner [rows, width]. */
void gated(const Number *gate_up, Number *inner, int64_t rows, int64_t width) {
#pragma omp parallel for if (rows * width > ALONE / 4)
    for (int64_t row = 0; row < rows; row++) {
        const Number *gates = gate_up + row * 2 * width, *up = gates + width;
        Number *out = inner + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            const float gate = GET(gates[i]);
            out[i] = PUT(gate / (1.0f + exponential(-gate)) * GET(up[i]));
        }
    }
}

/* x [size] of a head, rotated: x * cos + (x with its halves swapped) * sin, where sin has the sign of its half. */
INLINE void rotate(const Number *x, const float *cos, const float *sin, float *out, int64_t size) {
    const int64_t middle = size / 2;
#pragma omp simd
    for (int64_t i = 0; i < middle; i++) {
        const float low = GET(x[i]), high = GET(x[middle + i]);
        out[i] = low * cos[i] + high * sin[i];
        out[middle + i] = high * cos[middle + i] + low * sin[middle + i];
    }
}

/* Attention of one query over `count` keys and values [count, size]. The sums go block by block, as in FlashAttention
 * (Dao et al. 2022), so memory does not grow with the length. */
INLINE void attend_one(
    const float *query, const State *keys, const State *values, int64_t count, float scale, float *out, int64_t size
) {
    float weights[BLOCK], sums[MOST_SIZE], highest = -INFINITY, total = 0.0f;
    for (int64_t i = 0; i < size; i++)
        sums[i] = 0.0f;
    for (int64_t start = 0; start < count; start += BLOCK) {
        const int64_t block = count - start < BLOCK ? count - start : BLOCK;
        float high = highest;
        for (int64_t c = 0; c < block; c++) {
            const State *key = keys + (start + c) * size;
            float score = 0.0f;
#pragma omp simd reduction(+ : score)
            for (int64_t i = 0; i < size; i++)
                score += query[i] * GET_STATE(key[i]);
            weights[c] = score * scale;
            high = weights[c] > high ? weights[c] : high;
        }
        float added = 0.0f;
#pragma omp simd reduction(+ : added)
        for (int64_t c = 0; c < block; c++) {
            weights[c] = exponential(weights[c] - high);
            added += weights[c];
        }
        const float kept = exponential(highest - high);
        highest = high;
        total = total * kept + added;
        for (int64_t i = 0; i < size; i++)
            sums[i] *= kept;
        for (int64_t c = 0; c < block; c++) {
            const State *value = values + (start + c) * size;
            const float weight = weights[c];
#pragma omp simd
            for (int64_t i = 0; i < size; i++)
                sums[i] += weight * GET_STATE(value[i]);
        }
    }
    for (int64_t i = 0; i < size; i++)
        out[i] = sums[i] / total;
}

/* One row's heads that share keys and values: rotate, store the new state, attend. */
INLINE void attend_group(
    const Number *flat, const float *cos, const float *sin, int64_t position, State *keys, State *values,
    Number *mixed, int64_t head, int64_t heads, int64_t kv_heads, float scale, int64_t size
) {
    float query[MOST_SIZE], out[MOST_SIZE];
    const int64_t group = heads / kv_heads;
    const Number *key = flat + (heads + head) * size, *value = key + kv_heads * size;
    rotate(key, cos, sin, out, size);
    for (int64_t i = 0; i < size; i++) {
        keys[position * size + i] = PUT_STATE(out[i]);
        values[position * size + i] = PUT_STATE(GET(value[i]));
    }
    for (int64_t g = head * group; g < (head + 1) * group; g++) {
        rotate(flat + g * size, cos, sin, query, size);
        attend_one(query, keys, values, position + 1, scale, out, size);
        for (int64_t i = 0; i < size; i++)
            mixed[g * size + i] = PUT(out[i]);
    }
}

/* Attention of one new token per row, which is written into the states first.
 *
 * flat: [rows, (heads + 2 * kv_heads) * size] queries, keys and values before the rotation.
 * cos, sin: [columns, size], sin negative in its first half.
 * positions: [rows] column of the new token; from `width` on, a row is passed over and its result is 0.
 * keys, values: [at least rows, kv_heads, columns, size].
 * mixed: [rows, heads * size], the result. */
void attend(
    const Number *flat, const float *cos, const float *sin, const int64_t *positions, State *keys, State *values,
    Number *mixed, int64_t rows, int64_t heads, int64_t kv_heads, int64_t size, int64_t columns, int64_t width,
    float scale
) {
    int64_t work = 0;
    for (int64_t row = 0; row < rows; row++)
        work += positions[row] < width ? (positions[row] + 1) * heads * size * 2 : 0;
#pragma omp parallel for schedule(dynamic, 1) if (work > 4 * ALONE)
    for (int64_t task = 0; task < rows * kv_heads; task++) {
        const int64_t row = task / kv_heads, head = task % kv_heads, position = positions[row];
        const Number *own = flat + row * (heads + 2 * kv_heads) * size;
        Number *out = mixed + row * heads * size;
        const float *own_cos = cos + position * size, *own_sin = sin + position * size;
        State *own_keys = keys + task * columns * size, *own_values = values + task * columns * size;
        if (position >= width) {
            const int64_t together = heads / kv_heads * size;
            memset(out + head * together, 0, together * sizeof(Number));
            continue;
        }
#define GROUP(size_)                                                                                                   \
    attend_group(own, own_cos, own_sin, position, own_keys, own_values, out, head, heads, kv_heads, scale, size_)
        /* Sizes that the compiler knows keep their sums in registers. */
        if (size == 32)
            GROUP(32);
        else if (size == 64)
            GROUP(64);
        else if (size == 128)
            GROUP(128);
        else
            GROUP(size);
    }
}
