/* A whole step of a small decoder in one call: its products are torch's, through the C interface that torch keeps for
 * compiled models (torch/csrc/inductor/aoti_torch/c/shim.h), what lies between them is between.c's. See layers.py.
 */
#include <unistd.h>

#include "between.c"

typedef void *Handle; /* of a tensor of torch */

typedef struct {
    int32_t (*from_blob)(
        void *, int64_t, const int64_t *, const int64_t *, int64_t, int32_t, int32_t, int32_t, Handle *
    );
    int32_t (*data)(Handle, void **);
    int32_t (*drop)(Handle);
    int32_t (*linear)(
        Handle, Handle, Handle *, const char *, const double **, int64_t, const char **, Handle *
    );
    int32_t type, device; /* torch's numbers of this precision and of the CPU */
} Torch;

enum { MOST_MODULES = 3, MOST_RANK = 256 };

/* A linear layer: its packed weight, its bias or NULL, the widths of its input and output, and how many modules of the
 * model it stands for, whose outputs of `sizes` lie side by side. */
typedef struct {
    Handle weight, bias;
    int64_t in, out, modules, sizes[MOST_MODULES];
} Product;

/* A [in, modules * adapters * rank] and B [modules * adapters * rank, out]: the adapters of a step side by side, for
 * each module of a product. NULL where no adapter has any of them. */
typedef struct {
    const float *a, *b;
} Adapted;

typedef struct {
    const Adapted *products; /* in a layer's order, four for each, then the head's */
    const int64_t *places;   /* [rows] of each row's adapter in that stack, -1 for none */
    int64_t adapters, rank;
} Mix;

typedef struct {
    const Number *norm_in, *norm_out, *q_norm, *k_norm; /* the last two may be NULL */
    Product qkv, out, gate_up, down;
    State *keys, *values;
} Layer;

typedef struct {
    Torch torch;
    const Layer *layers;
    int64_t count;
    const Number *norm;
    Product head;
    int64_t width, inner, heads, kv_heads, size, columns;
    const float *cos, *sin;
    float epsilon, scale;
    int64_t *bell; /* NULL, or the cell of a bell: see bell.py */
} Model;

/* Where the tokens of a step belong: either one new token for each of the first rows of the states, at `positions`,
 * or, with `slots`, `length` tokens from column `start` on for each of some of them. */
typedef struct {
    int64_t rows, length, start, width;
    const int64_t *slots, *positions;
} Place;

/* Memory that a step works in. x: [tokens, width], the embeddings at first; the others are as large as they must be. */
typedef struct {
    Number *x, *normal, *mixed, *inner;
} Work;

enum { LANES = 16 };
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), may_alias));

/* Add what each row's own adapter makes of x [rows * length, in] to out [rows * length, out]. */
static void adapt(
    const Mix *mix, const Adapted *adapted, const Product *product, const Number *x, Number *out, int64_t rows,
    int64_t length
) {
    const int64_t in = product->in, wide = product->out, rank = mix->rank, block = mix->adapters * rank;
    const int64_t ranks = product->modules * block;
#pragma omp parallel for if (rows * length * (in + wide) > ALONE / 4)
    for (int64_t token = 0; token < rows * length; token++) {
        const int64_t place = mix->places[token / length];
        const Number *own = x + token * in;
        Number *to = out + token * wide;
        for (int64_t module = 0, column = 0; place >= 0 && module < product->modules; module++) {
            const int64_t from = module * block + place * rank, size = product->sizes[module];
            const float *a = adapted->a + from, *b = adapted->b + from * wide + column;
            float inner[MOST_RANK];
            memset(inner, 0, rank * sizeof(float));
            int64_t i = 0;
            for (; i + 4 <= in; i += 4, a += 4 * ranks)
#pragma omp simd
                for (int64_t r = 0; r < rank; r++)
                    inner[r] += GET(own[i]) * a[r] + GET(own[i + 1]) * a[ranks + r] + GET(own[i + 2]) * a[2 * ranks + r]
                              + GET(own[i + 3]) * a[3 * ranks + r];
            for (; i < in; i++, a += ranks)
                for (int64_t r = 0; r < rank; r++)
                    inner[r] += GET(own[i]) * a[r];
            for (int64_t start = 0; start < size; start += LANES) {
                const int64_t lanes = size - start < LANES ? size - start : LANES;
                Number *at = to + column + start;
                const float *more = b + start;
                float sums[LANES];
                for (int64_t lane = 0; lane < lanes; lane++)
                    sums[lane] = GET(at[lane]);
                if (lanes == LANES)
                    for (int64_t r = 0; r < rank; r++, more += wide)
#pragma omp simd
                        for (int64_t lane = 0; lane < LANES; lane++)
                            sums[lane] += inner[r] * more[lane];
                else
                    for (int64_t r = 0; r < rank; r++, more += wide)
                        for (int64_t lane = 0; lane < lanes; lane++)
                            sums[lane] += inner[r] * more[lane];
                for (int64_t lane = 0; lane < lanes; lane++)
                    at[lane] = PUT(sums[lane]);
            }
            column += size;
        }
    }
}

/* What a step works on, and which of its products is next. */
typedef struct {
    const Model *model;
    const Place *place;
    const Mix *mix; /* NULL if all rows have the base */
    int64_t product;
} Step;

/* x [tokens, in] times the weight of the step's next product, and what adapters add for the first `rows` times `length`
 * tokens. The result lies in a tensor of torch's, which is the caller's to drop. Other than 0 if torch fails; it has
 * said why on standard error. */
static int multiply(
    Step *step, const Product *product, Number *x, int64_t tokens, int64_t length, Handle *result, Number **out
) {
    const Torch *torch = &step->model->torch;
    const Adapted *adapted = step->mix ? step->mix->products + step->product++ : NULL;
    const int64_t sizes[] = {tokens, product->in}, strides[] = {product->in, 1};
    const char *algorithm = "";
    Handle bias = product->bias, input;
    if (torch->from_blob(x, 2, sizes, strides, 0, torch->type, torch->device, 0, &input))
        return 1;
    const int failed = torch->linear(input, product->weight, bias ? &bias : NULL, "none", NULL, 0, &algorithm, result);
    torch->drop(input);
    if (failed)
        return 1;
    if (torch->data(*result, (void **)out)) {
        torch->drop(*result);
        *result = NULL;
        return 1;
    }
    if (adapted && adapted->a)
        adapt(step->mix, adapted, product, x, *out, step->place->rows, length);
    return 0;
}

/* The root mean square norm of each head, in place, where a family has one. x: [heads, size]. */
INLINE void head_norms(Number *x, const Number *weight, int64_t heads, int64_t size, float epsilon) {
    for (int64_t head = 0; weight && head < heads; head++, x += size) {
        float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < size; i++)
            squares += GET(x[i]) * GET(x[i]);
        const float inverse = 1.0f / sqrtf(squares / (float)size + epsilon);
#pragma omp simd
        for (int64_t i = 0; i < size; i++)
            x[i] = PUT(GET(x[i]) * inverse * GET(weight[i]));
    }
}

/* Attention of up to LANES queries that follow each other over the keys and values of their row. One lane is one query,
 * so a query's result does not depend on its neighbours. flat: the first of them; first: its column. */
INLINE void attend_tile(
    const Model *model, const Number *flat, int64_t stride, const State *keys, const State *values, int64_t first,
    int64_t queries, Number *out, int64_t size
) {
    float q[MOST_SIZE][LANES] __attribute__((aligned(64))), sums[MOST_SIZE][LANES] __attribute__((aligned(64)));
    float weights[BLOCK][LANES] __attribute__((aligned(64))), one[MOST_SIZE];
    float highest[LANES], total[LANES], kept[LANES];
    for (int64_t lane = 0; lane < LANES; lane++) {
        const int64_t query = lane < queries ? lane : 0, at = (first + query) * size;
        rotate(flat + query * stride, model->cos + at, model->sin + at, one, size);
        for (int64_t i = 0; i < size; i++)
            q[i][lane] = one[i];
        highest[lane] = -INFINITY;
        total[lane] = 0.0f;
    }
    memset(sums, 0, size * sizeof(sums[0]));
    const int64_t count = first + queries;
    for (int64_t start = 0; start < count; start += BLOCK) {
        const int64_t block = count - start < BLOCK ? count - start : BLOCK;
        for (int64_t c = 0; c < block; c += 4) {
            /* Past the end the last key stands in; its weights are never read. */
            const State *key[4];
            for (int64_t n = 0; n < 4; n++)
                key[n] = keys + (start + (c + n < block ? c + n : block - 1)) * size;
            Lanes a = {0}, b = {0}, d = {0}, e = {0};
            for (int64_t i = 0; i < size; i++) {
                const Lanes own = *(const Lanes *)q[i];
                a += own * GET_STATE(key[0][i]);
                b += own * GET_STATE(key[1][i]);
                d += own * GET_STATE(key[2][i]);
                e += own * GET_STATE(key[3][i]);
            }
            *(Lanes *)weights[c] = a * model->scale;
            *(Lanes *)weights[c + 1] = b * model->scale;
            *(Lanes *)weights[c + 2] = d * model->scale;
            *(Lanes *)weights[c + 3] = e * model->scale;
        }
        for (int64_t c = 0; c < block; c++)
            for (int64_t lane = 0; lane < LANES; lane++)
                weights[c][lane] = start + c > first + lane ? -INFINITY : weights[c][lane];
        for (int64_t lane = 0; lane < LANES; lane++)
            kept[lane] = highest[lane];
        for (int64_t c = 0; c < block; c++)
            for (int64_t lane = 0; lane < LANES; lane++)
                highest[lane] = weights[c][lane] > highest[lane] ? weights[c][lane] : highest[lane];
        for (int64_t lane = 0; lane < LANES; lane++) {
            kept[lane] = exponential(kept[lane] - highest[lane]);
            total[lane] *= kept[lane];
        }
        for (int64_t c = 0; c < block; c++)
            for (int64_t lane = 0; lane < LANES; lane++) {
                weights[c][lane] = exponential(weights[c][lane] - highest[lane]);
                total[lane] += weights[c][lane];
            }
        for (int64_t i = 0; i < size; i += 4) {
            Lanes rescale;
            memcpy(&rescale, kept, sizeof rescale);
            Lanes a = *(Lanes *)sums[i] * rescale, b = *(Lanes *)sums[i + 1] * rescale;
            Lanes d = *(Lanes *)sums[i + 2] * rescale, e = *(Lanes *)sums[i + 3] * rescale;
            for (int64_t c = 0; c < block; c++) {
                const Lanes own = *(const Lanes *)weights[c];
                const State *value = values + (start + c) * size + i;
                a += own * GET_STATE(value[0]);
                b += own * GET_STATE(value[1]);
                d += own * GET_STATE(value[2]);
                e += own * GET_STATE(value[3]);
            }
            *(Lanes *)sums[i] = a;
            *(Lanes *)sums[i + 1] = b;
            *(Lanes *)sums[i + 2] = d;
            *(Lanes *)sums[i + 3] = e;
        }
    }
    for (int64_t lane = 0; lane < queries; lane++)
        for (int64_t i = 0; i < size; i++)
            out[lane * model->heads * size + i] = PUT(sums[i][lane] / total[lane]);
}

/* Attention of a chunk of prompts, whose keys and values are written first. flat: [tokens, all heads * size]. */
static void attend_chunk(const Model *model, const Layer *layer, const Place *place, Number *flat, Number *mixed) {
    const int64_t size = model->size, heads = model->heads, kv_heads = model->kv_heads;
    const int64_t stride = (heads + 2 * kv_heads) * size, length = place->length, slab = model->columns * size;
#pragma omp parallel for if (place->rows * length * stride > ALONE)
    for (int64_t token = 0; token < place->rows * length; token++) {
        Number *own = flat + token * stride;
        const int64_t column = place->start + token % length, row = place->slots[token / length];
        head_norms(own, layer->q_norm, heads, size, model->epsilon);
        head_norms(own + heads * size, layer->k_norm, kv_heads, size, model->epsilon);
        for (int64_t head = 0; head < kv_heads; head++) {
            float rotated[MOST_SIZE];
            const Number *key = own + (heads + head) * size, *value = key + kv_heads * size;
            const int64_t at = (row * kv_heads + head) * slab + column * size;
            rotate(key, model->cos + column * size, model->sin + column * size, rotated, size);
            for (int64_t i = 0; i < size; i++) {
                layer->keys[at + i] = PUT_STATE(rotated[i]);
                layer->values[at + i] = PUT_STATE(GET(value[i]));
            }
        }
    }
    const int64_t tiles = (length + LANES - 1) / LANES;
    const int64_t work = place->rows * heads * length * (place->start + length) * size * 2;
    /* The last tiles have the most to read, so they come first. */
#pragma omp parallel for schedule(dynamic, 1) if (work > 4 * ALONE)
    for (int64_t task = 0; task < place->rows * heads * tiles; task++) {
        const int64_t tile = tiles - 1 - task / (place->rows * heads), rest = task % (place->rows * heads);
        const int64_t head = rest % heads, row = rest / heads, token = row * length + tile * LANES;
        const int64_t queries = length - tile * LANES < LANES ? length - tile * LANES : LANES;
        const int64_t at = (place->slots[row] * kv_heads + head / (heads / kv_heads)) * slab;
        const Number *own = flat + token * stride + head * size;
        Number *out = mixed + token * heads * size + head * size;
#define TILE(size_)                                                                                                    \
    attend_tile(                                                                                                       \
        model, own, stride, layer->keys + at, layer->values + at, place->start + tile * LANES, queries, out, size_     \
    )
        if (size == 32)
            TILE(32);
        else if (size == 64)
            TILE(64);
        else if (size == 128)
            TILE(128);
        else
            TILE(size);
    }
}

static void attend_new(const Model *model, const Layer *layer, const Place *place, Number *flat, Number *mixed) {
    const int64_t size = model->size, heads = model->heads, kv_heads = model->kv_heads;
    for (int64_t row = 0; layer->q_norm && row < place->rows; row++) {
        Number *own = flat + row * (heads + 2 * kv_heads) * size;
        head_norms(own, layer->q_norm, heads, size, model->epsilon);
        head_norms(own + heads * size, layer->k_norm, kv_heads, size, model->epsilon);
    }
    attend(
        flat, model->cos, model->sin, place->positions, layer->keys, layer->values, mixed, place->rows, heads, kv_heads,
        size, model->columns, place->width, model->scale
    );
}

/* The layers of a step. After the last, what its feed-forward part adds to x is still in `added`. */
static int through_layers(Step *step, const Work *work, int64_t tokens, Handle *pending, Number **added) {
    const Model *model = step->model;
    const Place *place = step->place;
    const int64_t length = place->length, width = model->width;
    Handle result;
    Number *out;
    for (const Layer *layer = model->layers; layer < model->layers + model->count; layer++) {
        add_norm(work->x, *added, layer->norm_in, work->normal, tokens, width, model->epsilon);
        if (*pending)
            model->torch.drop(*pending);
        *pending = NULL;
        if (multiply(step, &layer->qkv, work->normal, tokens, length, &result, &out))
            return 1;
        (place->slots ? attend_chunk : attend_new)(model, layer, place, out, work->mixed);
        model->torch.drop(result);
        if (multiply(step, &layer->out, work->mixed, tokens, length, &result, &out))
            return 1;
        add_norm(work->x, out, layer->norm_out, work->normal, tokens, width, model->epsilon);
        model->torch.drop(result);
        if (multiply(step, &layer->gate_up, work->normal, tokens, length, &result, &out))
            return 1;
        gated(out, work->inner, tokens, model->inner);
        model->torch.drop(result);
        if (multiply(step, &layer->down, work->inner, tokens, length, pending, added))
            return 1;
    }
    return 0;
}

/* One step.
 *
 * mix: NULL if all rows have the base.
 * last: with `slots`, the token of each row whose logits are wanted, counted from the chunk's start; else NULL for all.
 * tokens: of x, those that only fill it up included.
 * logits: [rows, vocabulary], the result.
 *
 * Other than 0 if torch fails; it has said why on standard error. */
int32_t run_step(
    const Model *model, const Place *place, const Mix *mix, const Work *work, const int64_t *last, int64_t tokens,
    Number *logits
) {
    if (model->bell && *model->bell >= 0) {
        const int file = (int)*model->bell;
        const uint64_t one = 1;
        *model->bell = -1;
        /* What can fail is that it was rung more often than anybody can count. */
        (void)!write(file, &one, sizeof one);
    }
    Step step = {model, place, mix, 0};
    Handle pending = NULL, result;
    Number *added = NULL, *out;
    const int64_t width = model->width, together = model->heads * model->size, used = place->rows * place->length;
    memset(work->mixed + used * together, 0, (tokens - used) * together * sizeof(Number));
    int failed = through_layers(&step, work, tokens, &pending, &added);
    if (!failed) {
        /* Rows move to the front only, so none is overwritten before it was read. */
        for (int64_t row = 0; last && row < place->rows; row++) {
            const int64_t from = (row * place->length + last[row]) * width;
            memmove(work->x + row * width, work->x + from, width * sizeof(Number));
            memmove(added + row * width, added + from, width * sizeof(Number));
        }
        add_norm(work->x, added, model->norm, work->normal, place->rows, width, model->epsilon);
        failed = multiply(&step, &model->head, work->normal, place->rows, 1, &result, &out);
    }
    if (!failed) {
        memcpy(logits, out, place->rows * model->head.out * sizeof(Number));
        model->torch.drop(result);
    }
    if (pending)
        model->torch.drop(pending);
    return failed;
}
