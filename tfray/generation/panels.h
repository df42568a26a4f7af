/* Products in floats, on any processor: multiply_float.
 *
 * Weights lie in panels of LANES outputs, (inputs, LANES) each (see panels.py). GROUP rows meet WIDE panels at a time:
 * their sums fill the processor's registers and stay there over all inputs. A row's sums do not depend on the other
 * rows.
 */
#ifdef __AVX512F__
#define GROUP 8
#else
#define GROUP 6
#endif
#define WIDE 2
#define CHUNK 252 /* rows, which stay in the cache while all weights pass */

/* Sums of GROUP rows with WIDE panels; meanwhile a panel that is needed next is asked for. */
INLINE void sum_group(const float *const *rows, const float *panel, const float *next, whole inputs,
                      Lanes sums[GROUP][WIDE]) {
    Lanes own[GROUP][WIDE] = {{{0}}};
    for (whole i = 0; i < inputs; i++) {
        Lanes weights[WIDE];
        __builtin_prefetch(next + i * LANES);
#pragma GCC unroll 2
        for (int part = 0; part < WIDE; part++) weights[part] = load(panel + (part * inputs + i) * LANES);
#pragma GCC unroll 8
        for (int row = 0; row < GROUP; row++)
#pragma GCC unroll 2
            for (int part = 0; part < WIDE; part++) own[row][part] += rows[row][i] * weights[part];
    }
    memcpy(sums, own, sizeof(own));
}

/* activation(states W^T + bias) + residual, (rows, outputs); residual: or none. Weights and bias reach to the end of
 * the last WIDE panels. */
void multiply_float(const float *states, const float *weights, const float *bias, const float *residual, float *output,
                    whole relu, whole rows, whole inputs, whole outputs) {
    Lanes sums[GROUP][WIDE];
    const float *lines[GROUP];
    for (whole first = 0; first < rows; first += CHUNK) {
        whole end = least(first + CHUNK, rows);
        for (whole left = 0; left < outputs; left += WIDE * LANES)
            for (whole top = first; top < end; top += GROUP) {
                for (whole row = 0; row < GROUP; row++) lines[row] = states + least(top + row, end - 1) * inputs;
                whole after = least((top - first) / GROUP, WIDE - 1) + WIDE;
                sum_group(lines, weights + left * inputs, weights + (left + after * LANES) * inputs, inputs, sums);
                for (whole row = top; row < least(top + GROUP, end); row++)
                    for (whole at = left; at < least(left + WIDE * LANES, outputs); at += LANES) {
                        Lanes line = sums[row - top][(at - left) / LANES] + load(bias + at), zero = {0};
                        whole place = row * outputs + at, width = least(outputs - at, LANES);
                        if (relu) line = (Lanes)((Bits)line & ~(Bits)(line < zero)); /* NaN stays NaN */
                        if (residual) line += load_some(residual + place, width);
                        __builtin_prefetch(output + place + WIDE * LANES, 1);
                        store_some(output + place, line, width);
                    }
            }
    }
}
