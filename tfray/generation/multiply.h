/* A product by tiles of CELLs; products.h includes this once for each type. */

/* Make tiles of some rows' inputs. */
INLINE void NAME(convert_rows)(const Product *product, CELL *tiles, whole first, whole count, whole depths) {
    for (whole row = 0; row < count; row++) {
        CELL *to = tiles + row / SIDE * SIDE * depths * DEPTH + row % SIDE * DEPTH;
#ifdef IN_BYTES
        const float *from = (const float *)product->states + (first + row) * product->inputs;
        product->row_scales[row] = convert_bytes(from, product->inputs, to, depths);
#else
        convert_half(product, first + row, to, depths);
#endif
    }
}

/* Write some rows of a block as they are wanted. */
INLINE void NAME(finish_rows)(const Product *product, const SUM *sums, const Block *block, whole from, whole to) {
    for (whole row = from; row < least(to, block->height); row++) {
        const SUM *line = sums + row * PANEL;
#ifdef IN_BYTES
        const float *scales = product->scales + block->left;
        __m512 scale = _mm512_set1_ps(product->row_scales[block->top + row]);
        __m512 first = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(line)), scale);
        __m512 second = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(line + SIDE)), scale);
        first = _mm512_mul_ps(first, _mm512_loadu_ps(scales));
        second = _mm512_mul_ps(second, _mm512_loadu_ps(scales + SIDE));
#else
        __m512 first = _mm512_load_ps(line), second = _mm512_load_ps(line + SIDE);
#endif
        finish(product, first, second, block->first + block->top + row, block);
    }
}

#ifndef HAS_TILES
/* Sums of HEIGHT rows with the outputs of two tiles. A function of its own: among others' values its sums would not all
 * find a register. */
static __attribute__((noinline)) void NAME(sum_rows)(const CELL *states, const CELL *weights, const int32_t *starts,
                                                     whole left, whole depths, SUM *sums, const char *next) {
    const whole cells = SIDE * DEPTH, in_32_bits = DEPTH / SIDE;
    SUMS own[HEIGHT][2];
#pragma GCC unroll 8
    for (int row = 0; row < HEIGHT; row++)
#pragma GCC unroll 2
        for (int part = 0; part < 2; part++) own[row][part] = START(starts + left + part * SIDE);
    for (whole depth = 0; depth < depths; depth++) {
        for (whole line = 0; line < FETCHED && next; line++)
            __builtin_prefetch(next + (depth * FETCHED + line) * 64, 0, 2);
        for (whole at = 0; at < SIDE; at++) {
            const CELL *first = weights + depth * cells + at * DEPTH;
            __m512i ours[2] = {_mm512_loadu_si512(first), _mm512_loadu_si512(first + depths * cells)};
#pragma GCC unroll 8
            for (int row = 0; row < HEIGHT; row++) {
                int32_t some;
                memcpy(&some, states + depth * cells + row * DEPTH + at * in_32_bits, sizeof(some));
                __m512i same = _mm512_set1_epi32(some);
                own[row][0] = ADD_DOTS(own[row][0], same, ours[0]);
                own[row][1] = ADD_DOTS(own[row][1], same, ours[1]);
            }
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < HEIGHT; row++)
#pragma GCC unroll 2
        for (int part = 0; part < 2; part++) memcpy(sums + row * PANEL + part * SIDE, &own[row][part], 64);
}
#endif

/* Sum a block of up to 32 rows x 32 outputs; meanwhile the one before is finished, and what is next is asked for. */
INLINE void NAME(sum_block)(const Product *product, const CELL *states, const CELL *weights, whole depths,
                            const Block *block, SUM *sums, const Block *last, const SUM *last_sums, const char *next) {
    const whole cells = SIDE * DEPTH;
#ifdef HAS_TILES
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (whole depth = 0; depth < depths; depth++) {
        _tile_loadd(4, states + depth * cells, 64);
        _tile_loadd(6, weights + depth * cells, 64);
        MULTIPLY(0, 4, 6);
        _tile_loadd(5, states + (depths + depth) * cells, 64);
        MULTIPLY(2, 5, 6);
        _tile_loadd(7, weights + (depths + depth) * cells, 64);
        MULTIPLY(1, 4, 7);
        MULTIPLY(3, 5, 7);
        for (whole line = 0; line < FETCHED; line++) __builtin_prefetch(next + (depth * FETCHED + line) * 64, 0, 2);
        NAME(finish_rows)(product, last_sums, last, depth * PANEL / depths, (depth + 1) * PANEL / depths);
    }
    _tile_stored(0, sums, PANEL * sizeof(SUM));
    _tile_stored(1, sums + SIDE, PANEL * sizeof(SUM));
    _tile_stored(2, sums + SIDE * PANEL, PANEL * sizeof(SUM));
    _tile_stored(3, sums + SIDE * PANEL + SIDE, PANEL * sizeof(SUM));
#else
    for (whole top = 0; top < block->height; top += HEIGHT) {
        const CELL *group = states + top / SIDE * depths * cells + top % SIDE * DEPTH;
        NAME(sum_rows)(group, weights, product->starts, block->left, depths, sums + top * PANEL, top ? NULL : next);
    }
    NAME(finish_rows)(product, last_sums, last, 0, PANEL);
#endif
}

/* activation(states W^T + bias) + residual, (rows, outputs). weights: tiles; for bytes, starts: what the sums of dot
 * products start from, and scales: of the outputs; residual: or none. Starts, scales and bias reach to the end of the
 * last panel. States and output are halves where it is said, floats elsewhere. */
void NAME(multiply)(const void *states, const CELL *weights, const int32_t *starts, const float *scales,
                    const float *bias, const float *residual, void *output, whole halves_in, whole halves_out,
                    whole relu, whole rows, whole inputs, whole outputs) {
    whole depths = (inputs + DEPTH - 1) / DEPTH, cells = depths * DEPTH;
    whole most = least((rows + PANEL - 1) / PANEL * PANEL, AT_ONCE);
    CELL *tiles = aligned_alloc(64, most * (cells * sizeof(CELL) + 2 * sizeof(float)));
    Product product = {states, starts, scales, bias, residual, (float *)(tiles + most * cells), output,
                       halves_in, halves_out, relu, inputs, outputs};
    SUM sums[2][PANEL * PANEL] __attribute__((aligned(64)));
    whole turn = 0;
#ifdef HAS_TILES
    _tile_loadconfig(&SHAPES);
#endif
    for (whole first = 0; first < rows; first += most) {
        whole count = least(rows - first, most);
        Block last = {0};
        NAME(convert_rows)(&product, tiles, first, count, depths);
        for (whole left = 0; left < outputs; left += PANEL)
            for (whole top = 0; top < count; top += PANEL, turn = !turn) {
                whole fetched = top / PANEL * depths * FETCHED * 64;
                const char *next = (const char *)(weights + (left + PANEL) * cells) + fetched;
                Block block = {first, top, left, least(count - top, PANEL), mask_of(outputs - left)};
                NAME(sum_block)(&product, tiles + top * cells, weights + left * cells, depths, &block, sums[turn],
                                &last, sums[!turn], next);
                last = block;
            }
        NAME(finish_rows)(&product, sums[!turn], &last, 0, PANEL);
    }
#ifdef HAS_TILES
    _tile_release();
#endif
    free(tiles);
}
