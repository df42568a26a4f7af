/* The engine's small kernels for one CPU core: what surrounds the matrix products.
 *
 * Compiled once by the system's C compiler (see native.py); without one, torch does the same work. Every row
 * is worked on alone and in one order, so its result does not depend on the other rows.
 */
#include <stdlib.h>

#include "../kernels.h"

/* Inlined with a constant head size, so that a query and a sum of values stay in registers. */
#define BY_SIZE(work, ...)                                                                                            \
    switch (size) {                                                                                                   \
    case 32: work(__VA_ARGS__, 32); break;                                                                            \
    case 64: work(__VA_ARGS__, 64); break;                                                                            \
    case 128: work(__VA_ARGS__, 128); break;                                                                          \
    default: work(__VA_ARGS__, size);                                                                                 \
    }

whole lanes_of_a_register(void) { return LANES; }

#define PAGE 16 /* positions */
#if PAGE % LANES
#error "a page holds whole blocks of keys"
#endif
whole positions_of_a_page(void) { return PAGE; }

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));

INLINE Lanes load(const float *from) {
    Lanes values;
    memcpy(&values, from, sizeof(values));
    return values;
}

INLINE void store(float *to, Lanes values) { memcpy(to, &values, sizeof(values)); }

INLINE Lanes load_some(const float *from, whole count) {
    if (count == LANES) return load(from);
    Lanes values = {0};
    memcpy(&values, from, count * sizeof(float));
    return values;
}

INLINE void store_some(float *to, Lanes values, whole count) {
    if (count == LANES)
        store(to, values);
    else
        memcpy(to, &values, count * sizeof(float));
}

INLINE whole least(whole a, whole b) { return a < b ? a : b; }

/* Two halves in 32 bits: the first is the lower one. */
INLINE Lanes first_of(Bits pairs) { return (Lanes)(pairs << 16); }
INLINE Lanes second_of(Bits pairs) { return (Lanes)(pairs & 0xffff0000u); }

/* The nearest half, in the upper 16 bits; NaN stays NaN. */
INLINE Bits rounded(Lanes values) {
    Bits is_nan = (Bits)(values != values);
    return (NEAREST_HALF((Bits)values) & ~is_nan) | (is_nan & 0x7fc00000u);
}

INLINE uint32_t upper(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return value != value ? 0x7fc00000u : NEAREST_HALF(bits);
}

/* Ask for memory that is needed next: caches are larger than the processor's. */
INLINE void fetch(const void *from, whole bytes) {
    for (whole at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)from + at);
}

/* Embeddings of tokens, ids (rows, width), and of the positions where their rows are. */
void embed_tokens(const whole *ids, const whole *positions, const float *embedding, const float *table, float *output,
                  whole rows, whole width, whole size) {
    for (whole row = 0; row < rows * width; row++) {
        const float *token = embedding + ids[row] * size, *place = table + positions[row / width] * size;
        for (whole i = 0; i < size; i++) output[row * size + i] = token[i] + place[i];
    }
}

/* Layer norm over each row; output may be where states are. */
void normalize_rows(const float *states, const float *weight, const float *bias, float eps, float *output, whole rows,
                    whole width) {
    for (whole row = 0; row < rows; row++) {
        const float *in = states + row * width;
        float *out = output + row * width;
        float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (whole i = 0; i < width; i++) sum += in[i];
        float mean = sum / width;
#pragma omp simd reduction(+ : squares)
        for (whole i = 0; i < width; i++) squares += (in[i] - mean) * (in[i] - mean);
        float factor = 1.0f / sqrtf(squares / width + eps);
#pragma omp simd
        for (whole i = 0; i < width; i++) out[i] = (in[i] - mean) * factor * weight[i] + bias[i];
    }
}

/* In whole vectors: scores has room for LANES - 1 more, which become 0 or the next to it. */
static inline void softmax(float *restrict scores, whole used) {
    float most = -3e38f, sum = 0;
    whole count = in_whole_lanes(used);
    for (whole i = used; i < count; i++) scores[i] = -3e38f;
#pragma omp simd reduction(max : most)
    for (whole i = 0; i < count; i++) most = scores[i] > most ? scores[i] : most;
#pragma omp simd reduction(+ : sum)
    for (whole i = 0; i < count; i++) {
        scores[i] = exponential(scores[i] - most);
        sum += scores[i];
    }
    float factor = 1.0f / sum;
#pragma omp simd
    for (whole i = 0; i < count; i++) scores[i] *= factor;
}

#define KEY float
#define NAME(name) name
#include "attend.h"
#undef KEY
#undef NAME
#define IN_HALVES
#define KEY half
#define NAME(name) name##_half
#include "attend.h"
#undef KEY
#undef NAME

/* Self-attention of sequences of tokens without padding, each position to all of its sequence, or to those up to it
 * (then with the sums of attend_past, in their order). joint: (tokens, 3 x heads x size); starts: rows + 1. */
INLINE void attend_sequences_sized(const float *joint, const whole *starts, float *output, whole rows, whole heads,
                                   whole longest, whole causal, float *keys, const whole size) {
    whole model = heads * size;
    float scores[longest + LANES];
    for (whole row = 0; row < rows; row++)
        for (whole head = 0; head < heads; head++) {
            const float *own = joint + starts[row] * 3 * model + head * size;
            float *to = output + starts[row] * model + head * size;
            whole count = starts[row + 1] - starts[row], at_once = causal ? 1 : count;
            for (whole at = 0; at < count; at++) keep_key(keys, at, own + at * 3 * model + model, size);
            for (whole at = 0; at < count; at += at_once)
                attend_all(own + at * 3 * model, 3 * model, keys, own + 2 * model, 3 * model, to + at * model, model,
                           at_once, causal ? at + 1 : count, scores, size);
        }
}

void attend_sequences(const float *joint, const whole *starts, float *output, whole rows, whole heads, whole size,
                      whole longest, whole causal) {
    float *keys = calloc((longest + LANES) * size, sizeof(float)); /* what was there may be slow to compute with */
    BY_SIZE(attend_sequences_sized, joint, starts, output, rows, heads, longest, causal, keys)
    free(keys);
}

#define BLOCK 64 /* of a vocabulary, as in select.py */

INLINE float highest(const float *restrict line, whole count) {
    float most = -INFINITY;
#pragma omp simd reduction(max : most)
    for (whole i = 0; i < count; i++) most = line[i] > most ? line[i] : most;
    return most;
}

/* The logarithm of each row's sum of exponentials: a logit less this is a log-probability. And the highest of each
 * BLOCK: bounds is (rows, blocks). */
void log_sums(const float *logits, float *sums, float *bounds, whole rows, whole vocab) {
    whole blocks = (vocab + BLOCK - 1) / BLOCK;
    for (whole row = 0; row < rows; row++) {
        const float *line = logits + row * vocab;
        float *own = bounds + row * blocks, sum = 0;
        for (whole at = 0; at < vocab; at += BLOCK)
            own[at / BLOCK] = vocab - at < BLOCK ? highest(line + at, vocab - at) : highest(line + at, BLOCK);
        float most = highest(own, blocks);
#pragma omp simd reduction(+ : sum)
        for (whole i = 0; i < vocab; i++) sum += exponential(line[i] - most);
        sums[row] = most + logf(sum);
    }
}

/* A score put into its place among the found best ones, if it has one: of equal scores the lower id is the better. */
INLINE whole put_in(float score, whole id, float *restrict best, whole *restrict ids, whole found, whole count) {
#define IS_BETTER(than) (score > best[than] || (score == best[than] && id < ids[than]))
    if (found == count && !IS_BETTER(count - 1)) return found;
    whole place = found < count ? found : count - 1;
    for (; place > 0 && IS_BETTER(place - 1); place--) {
        best[place] = best[place - 1];
        ids[place] = ids[place - 1];
    }
#undef IS_BETTER
    best[place] = score;
    ids[place] = id;
    return found < count ? found + 1 : found;
}

/* The count highest of each row and their ids, the best first; equal ones in the order of their ids. bounds: of each
 * BLOCK, what none of it is above, (rows, blocks), or none. Blocks are looked into from the highest bound on, so that
 * few are: they have long left the nearest caches. */
void best_tokens(const float *scores, const float *bounds, float *values, whole *ids, whole rows, whole vocab,
                 whole count) {
    whole blocks = (vocab + BLOCK - 1) / BLOCK;
    float left[blocks]; /* the bounds of blocks that nobody has looked into; NAN of others */
    for (whole row = 0; row < rows; row++) {
        const float *line = scores + row * vocab;
        for (whole block = 0; block < blocks; block++)
            left[block] = bounds ? bounds[row * blocks + block]
                                 : highest(line + block * BLOCK, least(BLOCK, vocab - block * BLOCK));
        whole found = 0;
        float *best = values + row * count;
        for (whole seen = 0; seen < blocks; seen++) {
            float most = highest(left, blocks);
            if (found == count && most < best[count - 1]) break;
            whole block = 0;
            while (!(left[block] == most)) block++;
            left[block] = NAN;
            for (whole i = block * BLOCK; i < least((block + 1) * BLOCK, vocab); i++)
                found = put_in(line[i], i, best, ids + row * count, found, count);
        }
    }
}

#include "panels.h"
#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BF16__) && defined(__linux__)
#define HAS_TILES
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "products.h"
#endif
