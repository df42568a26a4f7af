/* The engine's small kernels for one CPU core: what surrounds the matrix products.
 *
 * Compiled once by the system's C compiler (see native.py); without one, torch does the same work. Every row
 * is worked on alone and in one order, so its result does not depend on the other rows.
 */
#include "../kernels.h"

/* Inlined with a constant head size, so that a query and a sum of values stay in registers. */
#define BY_SIZE(work, ...)                                                                                            \
    switch (size) {                                                                                                   \
    case 32: work(__VA_ARGS__, 32); break;                                                                            \
    case 64: work(__VA_ARGS__, 64); break;                                                                            \
    case 128: work(__VA_ARGS__, 128); break;                                                                          \
    default: work(__VA_ARGS__, size);                                                                                 \
    }

INLINE float dot(const float *restrict a, const float *restrict b, whole n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (whole i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

INLINE void add_weighted(float *restrict sum, float weight, const float *restrict value, whole n) {
#pragma omp simd
    for (whole i = 0; i < n; i++) sum[i] += weight * value[i];
}

/* Ask for memory that is needed next: caches are larger than the processor's. */
INLINE void fetch(const void *from, whole bytes) {
    for (whole at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)from + at);
}

INLINE void store(float *restrict to, const float *restrict from, whole n) { memcpy(to, from, n * sizeof(float)); }

/* The same with keys and values in bfloat16, the upper half of a float. */
INLINE float dot_half(const float *restrict a, const half *restrict b, whole n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (whole i = 0; i < n; i++) sum += a[i] * as_float((uint32_t)b[i] << 16);
    return sum;
}

INLINE void add_weighted_half(float *restrict sum, float weight, const half *restrict value, whole n) {
#pragma omp simd
    for (whole i = 0; i < n; i++) sum[i] += weight * as_float((uint32_t)value[i] << 16);
}

INLINE void store_half(half *restrict to, const float *restrict from, whole n) {
#pragma omp simd
    for (whole i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, 4);
        to[i] = (half)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
}

/* Bytes around 128 and each row's scale. */
void quantize_rows(const float *states, uint8_t *bytes, float *scales, whole rows, whole width) {
    for (whole row = 0; row < rows; row++) {
        const float *in = states + row * width;
        uint8_t *out = bytes + row * width;
        float most = 1e-30f;
#pragma omp simd reduction(max : most)
        for (whole i = 0; i < width; i++) {
            float size = fabsf(in[i]);
            most = size > most ? size : most;
        }
        float factor = 127.0f / most;
        scales[row] = most / 127.0f;
#pragma omp simd
        for (whole i = 0; i < width; i++) out[i] = (uint8_t)(int32_t)(in[i] * factor + 128.5f);
    }
}

/* products * scale + bias (+ residual, or relu), in place. */
void finish_rows(float *products, const float *scales, const float *bias, const float *residual, whole relu,
                 whole rows, whole width) {
    for (whole row = 0; row < rows; row++) {
        float *out = products + row * width;
        float scale = scales[row];
        if (residual) {
            const float *add = residual + row * width;
#pragma omp simd
            for (whole i = 0; i < width; i++) out[i] = out[i] * scale + bias[i] + add[i];
        } else if (!bias) {
#pragma omp simd
            for (whole i = 0; i < width; i++) out[i] *= scale;
        } else if (relu) {
#pragma omp simd
            for (whole i = 0; i < width; i++) {
                float value = out[i] * scale + bias[i];
                out[i] = value > 0 ? value : 0;
            }
        } else {
#pragma omp simd
            for (whole i = 0; i < width; i++) out[i] = out[i] * scale + bias[i];
        }
    }
}

/* Layer norm over each row. */
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

/* In whole vectors: scores has room for VECTOR_WIDTH - 1 more, which become 0 or the next to it. */
#define VECTOR_WIDTH 16
static inline void softmax(float *restrict scores, whole used) {
    float most = -3e38f, sum = 0;
    whole count = (used + VECTOR_WIDTH - 1) / VECTOR_WIDTH * VECTOR_WIDTH;
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
#define KEY half
#define NAME(name) name##_half
#include "attend.h"

/* Self-attention of the encoder over tokens without padding. joint: (tokens, 3 x heads x size); starts: rows + 1. */
INLINE void attend_source_sized(const float *joint, const whole *starts, float *output, whole rows, whole heads,
                                whole longest, const whole size) {
    whole model = heads * size;
    float scores[longest + VECTOR_WIDTH];
    for (whole row = 0; row < rows; row++)
        for (whole head = 0; head < heads; head++) {
            const float *own = joint + starts[row] * 3 * model + head * size;
            whole count = starts[row + 1] - starts[row];
            attend_all(own, 3 * model, own + model, own + 2 * model, 3 * model,
                       output + starts[row] * model + head * size, model, count, count, scores, size);
        }
}

void attend_source(const float *joint, const whole *starts, float *output, whole rows, whole heads, whole size,
                   whole longest) {
    BY_SIZE(attend_source_sized, joint, starts, output, rows, heads, longest)
}

/* Self-attention of a whole target, each position to those up to it: the sums of attend_past, in its order. joint:
 * (rows x length, 3 x heads x size). */
INLINE void attend_target_sized(const float *joint, float *output, whole rows, whole heads, whole length,
                                const whole size) {
    whole model = heads * size;
    float scores[length + VECTOR_WIDTH];
    for (whole row = 0; row < rows; row++)
        for (whole head = 0; head < heads; head++)
            for (whole place = 0; place < length; place++) {
                const float *own = joint + row * length * 3 * model + head * size;
                attend_all(own + place * 3 * model, 3 * model, own + model, own + 2 * model, 3 * model,
                           output + (row * length + place) * model + head * size, model, 1, place + 1, scores, size);
            }
}

void attend_target(const float *joint, float *output, whole rows, whole heads, whole size, whole length) {
    BY_SIZE(attend_target_sized, joint, output, rows, heads, length)
}

/* The logarithm of each row's sum of exponentials: a logit less this is a log-probability. */
void log_sums(const float *logits, float *sums, whole rows, whole vocab) {
    for (whole row = 0; row < rows; row++) {
        const float *line = logits + row * vocab;
        float most = -INFINITY, sum = 0;
#pragma omp simd reduction(max : most)
        for (whole i = 0; i < vocab; i++) most = line[i] > most ? line[i] : most;
#pragma omp simd reduction(+ : sum)
        for (whole i = 0; i < vocab; i++) sum += exponential(line[i] - most);
        sums[row] = most + logf(sum);
    }
}

/* The count highest of each row and their ids, the best first; equal ones in the order of their ids. */
void best_tokens(const float *scores, float *values, whole *ids, whole rows, whole vocab, whole count) {
    for (whole row = 0; row < rows; row++) {
        const float *line = scores + row * vocab;
        float *best = values + row * count;
        whole *names = ids + row * count;
        whole found = 0;
        for (whole block = 0; block < vocab; block += 64) {
            whole stop = block + 64 < vocab ? block + 64 : vocab;
            float most = -INFINITY;
#pragma omp simd reduction(max : most)
            for (whole i = block; i < stop; i++) most = line[i] > most ? line[i] : most;
            if (found == count && !(most > best[count - 1])) continue;
            for (whole i = block; i < stop; i++) {
                if (found == count && !(line[i] > best[count - 1])) continue;
                whole place = found < count ? found++ : count - 1;
                while (place > 0 && line[i] > best[place - 1]) {
                    best[place] = best[place - 1];
                    names[place] = names[place - 1];
                    place--;
                }
                best[place] = line[i];
                names[place] = i;
            }
        }
    }
}
