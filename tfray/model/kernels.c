/* What surrounds the matrix products of a training step on a CPU: one pass over memory each, in fp32 inside.
 *
 * Compiled once by the system's C compiler (see tfray/native.py); without one, torch does the same work. Rows are
 * dealt out to torch's own threads in equal parts, and each is worked on in one order: results depend on nothing else.
 */
#include <stdlib.h>

#include "../kernels.h"

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4)));

#define PARALLEL _Pragma("omp parallel for num_threads(threads) schedule(static)")

INLINE uint32_t as_bits(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }
INLINE float get(const float *from) { return *from; }
INLINE void put(float *to, float value) { *to = value; }
INLINE float get_half(const half *from) { return as_float((uint32_t)*from << 16); }
INLINE void put_half(half *to, float value) {
    uint32_t bits = as_bits(value);
    uint32_t rounded = NEAREST_HALF(bits) >> 16;
    *to = (half)(value != value ? 0x7fc0 : rounded); /* NaN stays NaN */
}

/* A block of products = left x right: so many rows, and so many vectors of columns; its sums stay in registers. */
INLINE void multiply_block(const float *restrict left, whole down, whole along, const float *restrict right,
                           whole right_row, float *restrict products, whole product_row, whole inner, const whole rows,
                           const whole vectors) {
    vector sums[rows][vectors];
    for (whole row = 0; row < rows; row++)
        for (whole v = 0; v < vectors; v++) sums[row][v] = (vector){0};
    for (whole i = 0; i < inner; i++) {
        const vector *from = (const vector *)(right + i * right_row);
        for (whole row = 0; row < rows; row++)
            for (whole v = 0; v < vectors; v++) sums[row][v] += left[i * along + row * down] * from[v];
    }
    for (whole row = 0; row < rows; row++)
        for (whole v = 0; v < vectors; v++) *(vector *)(products + row * product_row + v * LANES) = sums[row][v];
}

#define BLOCKS(height, vectors)                                                                                       \
    for (; row + height <= rows; row += height)                                                                       \
        multiply_block(left + row * down, down, along, right + column, right_row,                                     \
                       products + row * product_row + column, product_row, inner, height, vectors);
#define COLUMNS(vectors)                                                                                              \
    for (; column + vectors * LANES <= columns; column += vectors * LANES) {                                          \
        whole row = 0;                                                                                                \
        BLOCKS(6, vectors) BLOCKS(4, vectors) BLOCKS(2, vectors) BLOCKS(1, vectors)                                   \
    }

/* products = left x right, (rows, columns) of fp32, columns a multiple of LANES; left by its two strides, so that its
 * transpose is as good. */
static void multiply(const float *restrict left, whole down, whole along, const float *restrict right, whole right_row,
                     float *restrict products, whole product_row, whole rows, whole columns, whole inner) {
    whole column = 0;
    COLUMNS(2) COLUMNS(1)
}

/* Scores to weights, in place: each row over the keys that it may see; what is beyond them gets 0. */
INLINE void weigh(float *restrict scores, const float *restrict bias, whole causal, float scale, whole queries,
                  whole padded) {
    for (whole query = 0; query < queries; query++) {
        float *line = scores + query * padded, most = -INFINITY, sum = 0;
        int32_t last = causal ? (int32_t)query : INT32_MAX;
#pragma omp simd reduction(max : most)
        for (int32_t key = 0; key < (int32_t)padded; key++) {
            float score = line[key] * scale + bias[key];
            line[key] = score = key <= last ? score : -INFINITY;
            most = score > most ? score : most;
        }
#pragma omp simd reduction(+ : sum)
        for (whole key = 0; key < padded; key++) {
            float weight = exponential(line[key] - most);
            line[key] = weight = line[key] == -INFINITY ? 0.0f : weight;
            sum += weight;
        }
        float factor = 1.0f / sum;
#pragma omp simd
        for (whole key = 0; key < padded; key++) line[key] *= factor;
    }
}

/* 0 at keys that are seen, minus infinity at the others and beyond. */
INLINE void fill_bias(float *restrict bias, const uint8_t *seen, whole keys, whole padded) {
    for (whole key = 0; key < padded; key++) bias[key] = key < keys && (!seen || seen[key]) ? 0.0f : -INFINITY;
}

/* The most usual sizes as constants, so that their loops are unrolled. */
#define BY_SIZE(work, ...)                                                                                            \
    size == 64   ? work(__VA_ARGS__, 64)                                                                              \
    : size == 32 ? work(__VA_ARGS__, 32)                                                                              \
                 : work(__VA_ARGS__, size)

#define ELEMENT float
#define NAME(name) name
#define GET(from) get(from)
#define PUT(to, value) put(to, value)
#include "rows.h"
#undef ELEMENT
#undef NAME
#undef GET
#undef PUT
#define ELEMENT half
#define NAME(name) name##_half
#define GET(from) get_half(from)
#define PUT(to, value) put_half(to, value)
#include "rows.h"
