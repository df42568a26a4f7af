/* Products in halves and in bytes, by a processor's matrix tiles (AMX), or without them by its dot products of 64
 * bytes (AVX-512): multiply_half and multiply_bytes.
 *
 * A tile is 16 rows of 64 bytes: of states, 16 rows x DEPTH inputs; of weights, 16 outputs x DEPTH inputs, 32 bits of
 * neighbouring inputs of an output side by side (see tiled.py). Two tiles of states by two of weights give four of
 * sums, which stay in registers over all inputs. A row's sums do not depend on the other rows.
 */
#include <immintrin.h>

#define SIDE 16          /* rows of a tile */
#define PANEL (2 * SIDE) /* rows, and outputs, that are worked on at a time */
#define AT_ONCE 256      /* rows that are made tiles of at a time: they stay in the cache */
#define HEIGHT 8         /* rows whose sums of dot products stay in registers */
#define FETCHED 8        /* cache lines of the next weights that are asked for while four tiles are multiplied */

#ifdef HAS_TILES
#include <sys/syscall.h>
#include <unistd.h>

static const struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64))) SHAPES = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

/* Ask the system for the use of tiles by this process, and say whether it is granted. */
whole products_are_granted(void) {
    const long request_permission = 0x1023, tile_data = 18;
    return !syscall(SYS_arch_prctl, request_permission, tile_data);
}
#else
whole products_are_granted(void) { return 1; }
#endif

/* The first so many of 32. */
INLINE uint32_t mask_of(whole count) { return 0xffffffffu >> (32 - least(count, 32)); }

/* A product that is worked on. */
typedef struct {
    const void *states;
    const int32_t *starts;
    const float *scales, *bias, *residual;
    float *row_scales;
    void *output;
    whole halves_in, halves_out, relu, inputs, outputs;
} Product;

/* Up to 32 x 32 of its sums; rows count from the first that are tiles at present. */
typedef struct {
    whole first, top, left, height;
    uint32_t mask; /* of the outputs that there are */
} Block;

/* Write a row's part as it is wanted: activation(sums + bias) + residual. */
INLINE void finish(const Product *product, __m512 first, __m512 second, whole row, const Block *block) {
    whole left = block->left, place = row * product->outputs + left;
    __mmask16 here = block->mask, beyond = block->mask >> SIDE;
    __m512 floor = _mm512_set1_ps(product->relu ? 0.0f : -INFINITY);
    /* Of two numbers one of which is NaN, the maximum is the second. */
    first = _mm512_max_ps(floor, _mm512_add_ps(first, _mm512_loadu_ps(product->bias + left)));
    second = _mm512_max_ps(floor, _mm512_add_ps(second, _mm512_loadu_ps(product->bias + left + SIDE)));
    if (product->residual) {
        first = _mm512_add_ps(first, _mm512_maskz_loadu_ps(here, product->residual + place));
        second = _mm512_add_ps(second, _mm512_maskz_loadu_ps(beyond, product->residual + place + SIDE));
    }
#ifdef __AVX512BF16__
    if (product->halves_out) {
        __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(second, first);
        _mm512_mask_storeu_epi16((half *)product->output + place, block->mask, halves);
    } else
#endif
    {
        __builtin_prefetch((float *)product->output + place + PANEL, 1);
        __builtin_prefetch((float *)product->output + place + PANEL + SIDE, 1);
        _mm512_mask_storeu_ps((float *)product->output + place, here, first);
        _mm512_mask_storeu_ps((float *)product->output + place + SIDE, beyond, second);
    }
}

#ifdef __AVX512BF16__
/* A row's inputs in halves, zeros after them up to whole tiles. */
INLINE void convert_half(const Product *product, whole row, half *restrict to, whole depths) {
    for (whole depth = 0; depth < depths; depth++) {
        whole at = row * product->inputs + depth * 32;
        uint32_t mask = mask_of(product->inputs - depth * 32);
        __m512i cells;
        if (product->halves_in) {
            cells = _mm512_maskz_loadu_epi16(mask, (const half *)product->states + at);
        } else {
            const float *from = (const float *)product->states + at;
            __m512 first = _mm512_maskz_loadu_ps(mask, from), second = _mm512_maskz_loadu_ps(mask >> 16, from + SIDE);
            cells = (__m512i)_mm512_cvtne2ps_pbh(second, first);
        }
        _mm512_store_si512(to + depth * SIDE * 32, cells);
    }
}
#endif

/* A row's inputs in bytes, zeros after them up to whole tiles; returns the row's scale. Dot products take states as
 * bytes without sign: they stand around 128. */
INLINE float convert_bytes(const float *restrict from, whole inputs, int8_t *restrict to, whole depths) {
    float most = largest_size(from, inputs);
    __m512 factor = _mm512_set1_ps(127.0f / most);
    for (whole at = 0; at < depths * 64; at += SIDE) {
        whole count = inputs > at ? least(inputs - at, SIDE) : 0;
        __m512 values = _mm512_maskz_loadu_ps((1u << count) - 1, from + at);
        __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(values, factor));
        __m128i bytes = _mm512_cvtepi32_epi8(rounded);
#ifndef HAS_TILES
        bytes = _mm_xor_si128(bytes, _mm_set1_epi8(-128));
#endif
        _mm_store_si128((__m128i *)(to + at / 64 * SIDE * 64 + at % 64), bytes);
    }
    return most / 127.0f;
}

#ifdef __AVX512BF16__
#define NAME(name) name##_half
#define CELL half
#define SUM float
#define DEPTH 32
#define MULTIPLY _tile_dpbf16ps
#define SUMS __m512
#define START(starts) _mm512_setzero_ps()
#define ADD_DOTS(sums, states, weights) _mm512_dpbf16_ps(sums, (__m512bh)(states), (__m512bh)(weights))
#include "multiply.h"
#undef NAME
#undef CELL
#undef SUM
#undef DEPTH
#undef MULTIPLY
#undef SUMS
#undef START
#undef ADD_DOTS
#endif
#define IN_BYTES
#define NAME(name) name##_bytes
#define CELL int8_t
#define SUM int32_t
#define DEPTH 64
#define MULTIPLY _tile_dpbssd
#define SUMS __m512i
#define START(starts) _mm512_loadu_si512(starts)
#define ADD_DOTS _mm512_dpbusd_epi32
#include "multiply.h"
