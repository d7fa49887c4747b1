/* The most likely token of each row of logits: see sampling.py, which compiles this.
 *
 * HALF: logits are bfloat16, else float. */
#include <math.h>

#include "half.h"

#if HALF
typedef uint16_t Number;
#define GET from_half
#else
typedef float Number;
#define GET(x) (x)
#endif

enum { BLOCK = 256 };

/* logits [rows, width]. tokens [rows]: the first of the highest. fine [rows]: 0 where any logit is no number or the
 * highest is infinite; the token then says nothing. */
void best(const Number *logits, int64_t rows, int64_t width, int64_t *tokens, uint8_t *fine) {
    for (int64_t row = 0; row < rows; row++) {
        const Number *own = logits + row * width;
        float highest = -INFINITY;
        int64_t at = 0;
        int none = 0;
        for (int64_t start = 0; start < width; start += BLOCK) {
            const int64_t stop = start + BLOCK < width ? start + BLOCK : width;
            float top = -INFINITY;
#pragma omp simd reduction(max : top) reduction(| : none)
            for (int64_t i = start; i < stop; i++) {
                const float value = GET(own[i]);
                top = value > top ? value : top;
                none |= value != value;
            }
            /* Only a block with a new maximum is looked through for its place. */
            if (top > highest) {
                highest = top;
                at = start;
                while (GET(own[at]) != top)
                    at++;
            }
        }
        tokens[row] = at;
        fine[row] = !none && isfinite(highest);
    }
}
