/* What surrounds the matrix products of a training step on a CPU: one pass over memory each, in fp32 inside.
 *
 * Compiled once by the system's C compiler (see tfray/native.py); without one, torch does the same work. Rows are
 * dealt out to torch's own threads in equal parts, and each is worked on in one order: results depend on nothing else.
 */
#include <stdlib.h>

#include "../kernels.h"

typedef float vector __attribute__((vector_size(64), aligned(4)));

#define VECTOR_WIDTH 16
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

/* products (+)= left x right, (rows, columns) of fp32, columns a multiple of VECTOR_WIDTH; left by its two strides, so that
 * its transpose is as good. Blocks of 4 x 16 stay in registers. */
INLINE void multiply(const float *restrict left, whole down, whole along, const float *restrict right, whole right_row,
                     float *restrict products, whole product_row, whole rows, whole columns, whole inner) {
    for (whole column = 0; column < columns; column += VECTOR_WIDTH) {
        whole row = 0;
        for (; row + 4 <= rows; row += 4) {
            const float *a = left + row * down;
            vector sum0 = {0}, sum1 = {0}, sum2 = {0}, sum3 = {0};
            for (whole i = 0; i < inner; i++) {
                vector b = *(const vector *)(right + i * right_row + column);
                sum0 += a[i * along] * b;
                sum1 += a[i * along + down] * b;
                sum2 += a[i * along + 2 * down] * b;
                sum3 += a[i * along + 3 * down] * b;
            }
            float *out = products + row * product_row + column;
            *(vector *)out = sum0;
            *(vector *)(out + product_row) = sum1;
            *(vector *)(out + 2 * product_row) = sum2;
            *(vector *)(out + 3 * product_row) = sum3;
        }
        for (; row < rows; row++) {
            vector sum = {0};
            for (whole i = 0; i < inner; i++)
                sum += left[row * down + i * along] * *(const vector *)(right + i * right_row + column);
            *(vector *)(products + row * product_row + column) = sum;
        }
    }
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
