/* The engine's small kernels for one CPU core: what surrounds the matrix products.
 *
 * Compiled once by the system's C compiler (see native.py); without one, torch does the same work. Every row
 * is worked on alone and in one order, so its result does not depend on the other rows.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef int64_t whole;
typedef uint16_t half; /* bfloat16 */

static inline float as_float(int32_t bits) { float value; memcpy(&value, &bits, 4); return value; }

/* e^x for x <= 88 or so: Cephes' polynomial, 2 units in the last place. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = __builtin_rintf(x * 1.44269504088896341f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * as_float(((int32_t)n + 127) << 23);
}

/* Inlined with a constant head size, so that a query and a sum of values stay in registers. */
#define INLINE static inline __attribute__((always_inline))
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

static inline void softmax(float *scores, whole count) {
    float most = scores[0], sum = 0;
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

/* One position of self-attention. joint: (rows x width, 3 x heads x size): query, key and value of the newest
 * position, which are stored at positions[row]; keys and values: (slots, heads, capacity, width, size);
 * ancestors: (slots, width, capacity). */
INLINE void attend_past_sized(const float *restrict joint, float *restrict keys, float *restrict values,
                              const int32_t *restrict ancestors, const whole *restrict positions,
                              float *restrict output, whole rows, whole width, whole heads, whole capacity,
                              const whole size) {
    whole model = heads * size;
    float scores[capacity], sum[size];
    for (whole row = 0; row < rows; row++) {
        whole last = positions[row];
        for (whole head = 0; head < heads; head++) {
            float *own_keys = keys + (row * heads + head) * capacity * width * size;
            float *own_values = values + (row * heads + head) * capacity * width * size;
            for (whole place = 0; place < width; place++) {
                const float *from = joint + (row * width + place) * 3 * model + head * size;
                memcpy(own_keys + (last * width + place) * size, from + model, size * sizeof(float));
                memcpy(own_values + (last * width + place) * size, from + 2 * model, size * sizeof(float));
            }
            for (whole place = 0; place < width; place++) {
                const float *query = joint + (row * width + place) * 3 * model + head * size;
                const int32_t *line = ancestors + (row * width + place) * capacity;
                for (whole at = 0; at < last; at++)
                    scores[at] = dot(query, own_keys + (at * width + line[at]) * size, size);
                scores[last] = dot(query, own_keys + (last * width + place) * size, size);
                softmax(scores, last + 1);
                for (whole i = 0; i < size; i++) sum[i] = 0;
                for (whole at = 0; at < last; at++)
                    add_weighted(sum, scores[at], own_values + (at * width + line[at]) * size, size);
                add_weighted(sum, scores[last], own_values + (last * width + place) * size, size);
                memcpy(output + (row * width + place) * model + head * size, sum, size * sizeof(float));
            }
        }
    }
}

void attend_past(const float *joint, float *keys, float *values, const int32_t *ancestors, const whole *positions,
                 float *output, whole rows, whole width, whole heads, whole size, whole capacity) {
    BY_SIZE(attend_past_sized, joint, keys, values, ancestors, positions, output, rows, width, heads, capacity)
}

/* Queries (count, at a stride) that look at the same keys and values (length, at a stride). */
INLINE void attend_all(const float *restrict queries, whole query_stride, const float *restrict keys,
                       const float *restrict values, whole stride, float *restrict output, whole output_stride,
                       whole count, whole length, float *restrict scores, const whole size) {
    float sum[size];
    for (whole place = 0; place < count; place++) {
        const float *query = queries + place * query_stride;
        for (whole at = 0; at < length; at++) scores[at] = dot(query, keys + at * stride, size);
        softmax(scores, length);
        for (whole i = 0; i < size; i++) sum[i] = 0;
        for (whole at = 0; at < length; at++) add_weighted(sum, scores[at], values + at * stride, size);
        memcpy(output + place * output_stride, sum, size * sizeof(float));
    }
}

/* Cross-attention. queries: (rows x width, heads x size); keys and values: (slots, heads, capacity, size). */
INLINE void attend_memory_sized(const float *queries, const float *keys, const float *values, const whole *lengths,
                                float *output, whole rows, whole width, whole heads, whole capacity,
                                const whole size) {
    whole model = heads * size;
    float scores[capacity];
    for (whole row = 0; row < rows; row++)
        for (whole head = 0; head < heads; head++) {
            whole own = (row * heads + head) * capacity * size, at = row * width * model + head * size;
            attend_all(queries + at, model, keys + own, values + own, size, output + at, model, width, lengths[row],
                       scores, size);
        }
}

void attend_memory(const float *queries, const float *keys, const float *values, const whole *lengths, float *output,
                   whole rows, whole width, whole heads, whole size, whole capacity) {
    BY_SIZE(attend_memory_sized, queries, keys, values, lengths, output, rows, width, heads, capacity)
}

/* Self-attention of the encoder over tokens without padding. joint: (tokens, 3 x heads x size); starts: rows + 1. */
INLINE void attend_source_sized(const float *joint, const whole *starts, float *output, whole rows, whole heads,
                                whole longest, const whole size) {
    whole model = heads * size;
    float scores[longest];
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

/* Log-probabilities in place, of logits that are still to be multiplied by each row's scale. */
void log_softmax_rows(float *logits, const float *scales, whole rows, whole vocab) {
    for (whole row = 0; row < rows; row++) {
        float *line = logits + row * vocab;
        float scale = scales ? scales[row] : 1.0f, most = -INFINITY, sum = 0;
#pragma omp simd reduction(max : most)
        for (whole i = 0; i < vocab; i++) most = line[i] > most ? line[i] : most;
        most *= scale;
#pragma omp simd reduction(+ : sum)
        for (whole i = 0; i < vocab; i++) sum += exponential(line[i] * scale - most);
        float shift = most + logf(sum);
#pragma omp simd
        for (whole i = 0; i < vocab; i++) line[i] = line[i] * scale - shift;
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
