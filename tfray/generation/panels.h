/* Products in floats, on any processor, and in bytes, where those of products.h are not: multiply_float and
 * multiply_words.
 *
 * Weights lie in panels of WIDE registers of outputs, (inputs, WIDE x LANES) each (see panels.py). GROUP rows meet a
 * panel at a time: their sums fill the processor's registers and stay there over all inputs. A row's sums do not depend
 * on the other rows.
 */
#ifdef __AVX512F__
#define GROUP 8
#else
#define GROUP 6
#endif
#define WIDE 2
#define WIDTH (WIDE * LANES)
#define STEPS 2   /* inputs between two looks at the loop's counter: where threads share a core, instructions are dear */
#define LINE 16   /* floats that come into the cache together */
#define CHUNK 252 /* rows, which stay in the cache while all weights pass */

whole outputs_of_a_panel(void) { return WIDTH; }

/* Keep a value in a register, for compilers that would rather load it once more for each of its uses. */
#if defined(__x86_64__)
#define KEEP(value) __asm__("" : "+v"(value))
#elif defined(__aarch64__)
#define KEEP(value) __asm__("" : "+w"(value))
#else
#define KEEP(value)
#endif

INLINE void add_products(const float *const *rows, const float *panel, whole at, Lanes sums[GROUP][WIDE]) {
    Lanes weights[WIDE];
#pragma GCC unroll 2
    for (int part = 0; part < WIDE; part++) {
        weights[part] = load(panel + at * WIDTH + part * LANES);
        KEEP(weights[part]);
    }
#pragma GCC unroll 8
    for (int row = 0; row < GROUP; row++)
#pragma GCC unroll 2
        for (int part = 0; part < WIDE; part++) sums[row][part] += rows[row][at] * weights[part];
}

/* Sums of GROUP rows with a panel; meanwhile a part of the next one, a line for STEPS inputs, is asked for. */
INLINE void sum_group(const float *const *rows, const float *panel, const float *next, whole inputs,
                      Lanes sums[GROUP][WIDE]) {
    Lanes own[GROUP][WIDE] = {{{0}}};
    whole at = 0;
    for (; at + STEPS <= inputs; at += STEPS, next += LINE) {
        __builtin_prefetch(next);
#pragma GCC unroll 2
        for (int step = 0; step < STEPS; step++) add_products(rows, panel, at + step, own);
    }
    for (; at < inputs; at++) add_products(rows, panel, at, own);
    memcpy(sums, own, sizeof(own));
}

/* Write a part of a row as it is wanted: activation(line + bias) + residual. */
INLINE void put(Lanes line, const float *bias, whole relu, const float *residual, float *output, whole width) {
    const Lanes zero = {0};
    line += load(bias);
    if (relu) line = (Lanes)((Bits)line & ~(Bits)(line < zero)); /* NaN stays NaN */
    if (residual) line += load_some(residual, width);
    __builtin_prefetch(output + WIDTH, 1);
    store_some(output, line, width);
}

/* activation(states W^T + bias) + residual, (rows, outputs); residual: or none. Weights and bias reach to the end of
 * the last panel. */
void multiply_float(const float *states, const float *weights, const float *bias, const float *residual, float *output,
                    whole relu, whole rows, whole inputs, whole outputs) {
    Lanes sums[GROUP][WIDE];
    const float *lines[GROUP];
    for (whole first = 0; first < rows; first += CHUNK) {
        whole end = least(first + CHUNK, rows);
        for (whole left = 0; left < outputs; left += WIDTH)
            for (whole top = first; top < end; top += GROUP) {
                for (whole row = 0; row < GROUP; row++) lines[row] = states + least(top + row, end - 1) * inputs;
                const float *panel = weights + left * inputs, *next = panel + WIDTH * inputs;
                whole part = least((top - first) / GROUP, STEPS * WIDTH / LINE - 1);
                sum_group(lines, panel, next + part * (inputs / STEPS) * LINE, inputs, sums);
                for (whole row = top; row < least(top + GROUP, end); row++)
                    for (whole at = left; at < least(left + WIDTH, outputs); at += LANES) {
                        whole place = row * outputs + at;
                        put(sums[row - top][(at - left) / LANES], bias + at, relu, residual ? residual + place : NULL,
                            output + place, least(outputs - at, LANES));
                    }
            }
    }
}

/* Sizes are compared as whole numbers, which are in the same order; NaN is above all, so that it is not lost. */
INLINE float largest_size(const float *restrict from, whole count) {
    const float least_size = 1e-30f;
    int32_t most;
    memcpy(&most, &least_size, 4);
#pragma omp simd reduction(max : most)
    for (whole i = 0; i < count; i++) {
        int32_t size;
        memcpy(&size, from + i, 4);
        size &= INT32_MAX;
        most = size > most ? size : most;
    }
    return as_float((uint32_t)most);
}

#if defined(__AVX512BW__) || (defined(__AVX2__) && !defined(__AVX512F__))
#include <immintrin.h>
#ifdef __AVX512BW__
#define WIDENED(bytes) _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(bytes)))
#define DOTS(same, weights) _mm512_madd_epi16(_mm512_set1_epi32(same), weights)
typedef __m512i Words;
#else
#define WIDENED(bytes) _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(bytes)))
#define DOTS(same, weights) _mm256_madd_epi16(_mm256_set1_epi32(same), weights)
typedef __m256i Words;
#endif
typedef int32_t Sums __attribute__((vector_size(4 * LANES)));

/* A row's inputs as whole numbers up to 127, and a zero after an odd number of them; returns the row's scale. */
INLINE float convert_words(const float *restrict from, whole inputs, int16_t *restrict to) {
    float most = largest_size(from, inputs), factor = 127.0f / most;
#pragma omp simd
    for (whole i = 0; i < inputs; i++) to[i] = (int16_t)__builtin_rintf(from[i] * factor);
    if (inputs % 2) to[inputs] = 0;
    return most / 127.0f;
}

INLINE void add_pairs(const int16_t *const *rows, const int8_t *panel, whole pair, Sums sums[GROUP][WIDE]) {
    Words weights[WIDE];
#pragma GCC unroll 2
    for (int part = 0; part < WIDE; part++) weights[part] = WIDENED(panel + (pair * WIDE + part) * 2 * LANES);
#pragma GCC unroll 8
    for (int row = 0; row < GROUP; row++) {
        int32_t same;
        memcpy(&same, rows[row] + 2 * pair, sizeof(same));
#pragma GCC unroll 2
        for (int part = 0; part < WIDE; part++) {
            sums[row][part] += (Sums)DOTS(same, weights[part]);
            KEEP(sums[row][part]);
        }
    }
}

/* Sums of GROUP rows with a panel. Two neighbouring inputs at a time, in 16 bits each: products of bytes would be
 * added in 16 bits, which are too few. */
INLINE void sum_words(const int16_t *const *rows, const int8_t *panel, whole pairs, Sums sums[GROUP][WIDE]) {
    Sums own[GROUP][WIDE] = {{{0}}};
    whole pair = 0;
    for (; pair + STEPS <= pairs; pair += STEPS)
#pragma GCC unroll 2
        for (int step = 0; step < STEPS; step++) add_pairs(rows, panel, pair + step, own);
    for (; pair < pairs; pair++) add_pairs(rows, panel, pair, own);
    memcpy(sums, own, sizeof(own));
}

/* As multiply_float, with weights in bytes, panels of (inputs / 2, WIDE x LANES, 2), which scales, one an output, make what
 * they were; states become bytes row by row. */
void multiply_words(const float *states, const int8_t *weights, const float *scales, const float *bias,
                    const float *residual, float *output, whole relu, whole rows, whole inputs, whole outputs) {
    whole pairs = (inputs + 1) / 2, most = least(rows, CHUNK);
    int16_t *words = malloc(most * 2 * pairs * sizeof(int16_t));
    float row_scales[CHUNK];
    Sums sums[GROUP][WIDE];
    const int16_t *lines[GROUP];
    for (whole first = 0; first < rows; first += most) {
        whole count = least(rows - first, most);
        for (whole row = 0; row < count; row++)
            row_scales[row] = convert_words(states + (first + row) * inputs, inputs, words + row * 2 * pairs);
        for (whole left = 0; left < outputs; left += WIDTH)
            for (whole top = 0; top < count; top += GROUP) {
                for (whole row = 0; row < GROUP; row++) lines[row] = words + least(top + row, count - 1) * 2 * pairs;
                sum_words(lines, weights + left * 2 * pairs, pairs, sums);
                for (whole row = top; row < least(top + GROUP, count); row++)
                    for (whole at = left; at < least(left + WIDTH, outputs); at += LANES) {
                        whole place = (first + row) * outputs + at;
                        Lanes line = __builtin_convertvector(sums[row - top][(at - left) / LANES], Lanes);
                        put(line * row_scales[row] * load(scales + at), bias + at, relu,
                            residual ? residual + place : NULL, output + place, least(outputs - at, LANES));
                    }
            }
    }
    free(words);
}
#endif
