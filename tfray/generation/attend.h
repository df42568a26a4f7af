/* Attention of one decoded position, for keys and values of type KEY; kernels.c includes this once for each.
 *
 * Keys stand in blocks of LANES positions, (size, LANES), so that a query meets all of a block at a time. Of halves,
 * two neighbouring parts of a key stand together, (size / 2, LANES, 2), and so do two parts of a value that are LANES
 * apart: their size is a multiple of 2 * LANES. Where several queries look at the same keys and values, TOGETHER of
 * them share each load; a query's sums are the same alone.
 */

/* What each of `count` queries (at a stride), 1 or TOGETHER, and each of a block of keys have in common. */
INLINE void NAME(score)(const float *restrict queries, whole query_stride, const whole count, const KEY *restrict keys,
                        float *restrict scores, whole score_stride, const whole size) {
    Lanes sums[TOGETHER][4] = {{{0}}};
#define QUERY(at) queries[query * query_stride + (at)]
#ifdef IN_HALVES
    for (whole i = 0; i < size; i += 4)
        for (whole part = 0; part < 4; part += 2) {
            Bits pairs = (Bits)load((const float *)(keys + (i + part) * LANES));
            for (whole query = 0; query < count; query++) {
                sums[query][part] += QUERY(i + part) * first_of(pairs);
                sums[query][part + 1] += QUERY(i + part + 1) * second_of(pairs);
            }
        }
#else
    whole quarters = size / 4 * 4;
    for (whole i = 0; i < quarters; i += 4)
        for (whole part = 0; part < 4; part++) {
            Lanes key = load(keys + (i + part) * LANES);
            for (whole query = 0; query < count; query++) sums[query][part] += QUERY(i + part) * key;
        }
    for (whole i = quarters; i < size; i++)
        for (whole query = 0; query < count; query++) sums[query][0] += QUERY(i) * load(keys + i * LANES);
#endif
#undef QUERY
    for (whole query = 0; query < count; query++) {
        Lanes *own = sums[query];
        store(scores + query * score_stride, (own[0] + own[1]) + (own[2] + own[3]));
    }
}

/* A key put into its place among (blocks, size, LANES). */
INLINE void NAME(keep_key)(KEY *restrict keys, whole position, const float *restrict key, whole size) {
    KEY *to = keys + position / LANES * size * LANES;
    whole lane = position % LANES;
#ifdef IN_HALVES
    uint32_t *pairs = (uint32_t *)to;
    for (whole i = 0; i < size; i += 2) pairs[i / 2 * LANES + lane] = upper(key[i]) >> 16 | upper(key[i + 1]);
#else
    for (whole i = 0; i < size; i++) to[i * LANES + lane] = key[i];
#endif
}

/* A value put into its place. */
INLINE void NAME(keep_value)(KEY *restrict to, const float *restrict value, const whole size) {
#ifdef IN_HALVES
    for (whole i = 0; i < size; i += 2 * LANES)
        store((float *)(to + i), (Lanes)(rounded(load(value + i)) >> 16 | rounded(load(value + i + LANES))));
#else
    memcpy(to, value, size * sizeof(float));
#endif
}

/* Sums of values, weighted for each of `count` queries, 1 or TOGETHER; weights and output at strides. Values: of each
 * position at a stride, `page` positions to a page, in each page from `start` on. ancestors, of one query: which of
 * several values at a position, or none: the first. */
INLINE void NAME(gather)(const float *restrict weights, whole weight_stride, const whole count,
                         const KEY *const *restrict pages, whole page, whole start, whole stride,
                         const int32_t *restrict ancestors, whole length, float *restrict output, whole output_stride,
                         const whole size) {
#define EACH_POSITION                                                                                                 \
    for (whole from = 0; from < length; from += page)                                                                 \
        for (whole at = from, to = least(from + page, length); at < to; at++)
#define VALUE (pages[from / page] + start + (at - from) * stride + (ancestors ? ancestors[at] * size : 0) + i)
#define WEIGHT weights[query * weight_stride + at]
    whole i = 0;
    for (; i + 2 * LANES <= size; i += 2 * LANES) {
        Lanes sums[TOGETHER][2] = {{{0}}};
        EACH_POSITION {
#ifdef IN_HALVES
            Bits pairs = (Bits)load((const float *)VALUE);
            Lanes first = first_of(pairs), second = second_of(pairs);
#else
            Lanes first = load(VALUE), second = load(VALUE + LANES);
#endif
            for (whole query = 0; query < count; query++) {
                sums[query][0] += WEIGHT * first;
                sums[query][1] += WEIGHT * second;
            }
        }
        for (whole query = 0; query < count; query++) {
            store(output + query * output_stride + i, sums[query][0]);
            store(output + query * output_stride + i + LANES, sums[query][1]);
        }
    }
#ifndef IN_HALVES
    for (; i < size; i++)
        for (whole query = 0; query < count; query++) {
            float sum = 0; /* rounded once, said outright: compilers do so in one place and not in another */
            EACH_POSITION sum = __builtin_fmaf(WEIGHT, *VALUE, sum);
            output[query * output_stride + i] = sum;
        }
#endif
#undef EACH_POSITION
#undef VALUE
#undef WEIGHT
}

/* `count` queries, 1 or TOGETHER, that look at the same keys (blocks) and values (length, at a stride). */
INLINE void NAME(attend_some)(const float *restrict queries, whole query_stride, const whole count,
                              const KEY *restrict keys, const KEY *restrict values, whole stride,
                              float *restrict output, whole output_stride, whole length, float *restrict scores,
                              const whole size) {
    whole room = in_whole_lanes(length);
    for (whole at = 0; at < length; at += LANES)
        NAME(score)(queries, query_stride, count, keys + at * size, scores + at, room, size);
    for (whole query = 0; query < count; query++) softmax(scores + query * room, length);
    NAME(gather)(scores, room, count, &values, length, 0, stride, 0, length, output, output_stride, size);
}

/* Any number of such queries; scores has room for TOGETHER * (length + LANES). */
INLINE void NAME(attend_all)(const float *restrict queries, whole query_stride, const KEY *restrict keys,
                             const KEY *restrict values, whole stride, float *restrict output, whole output_stride,
                             whole count, whole length, float *restrict scores, const whole size) {
#define ATTEND(some)                                                                                                  \
    NAME(attend_some)(queries + place * query_stride, query_stride, some, keys, values, stride,                       \
                      output + place * output_stride, output_stride, length, scores, size)
    whole place = 0;
    for (; place + TOGETHER <= count; place += TOGETHER) ATTEND(TOGETHER);
    for (; place < count; place++) ATTEND(1);
#undef ATTEND
}

/* Scores of `count` queries, 1 to TOGETHER, with a block of keys, of each position that of the query's ancestor;
 * keys: (width, size, LANES); ancestors: a line for each query. */
INLINE void NAME(score_ancestors)(const float *restrict queries, whole query_stride, whole count,
                                  const KEY *restrict keys, const int32_t *restrict ancestors, whole line, whole used,
                                  whole width, float *restrict scores, whole score_stride, const whole size) {
    float own[TOGETHER * LANES];
    for (whole ancestor = 0; ancestor < width; ancestor++) {
        const KEY *block = keys + ancestor * size * LANES;
        int is_seen[TOGETHER] = {0}, sight = 0;
        for (whole query = 0; query < count; query++) {
            for (whole at = 0; at < used; at++) is_seen[query] |= ancestors[query * line + at] == ancestor;
            sight += is_seen[query];
        }
        int is_shared = sight == TOGETHER;
        if (is_shared) NAME(score)(queries, query_stride, TOGETHER, block, own, LANES, size);
        for (whole query = 0; query < count; query++) {
            if (!is_seen[query]) continue;
            if (!is_shared)
                NAME(score)(queries + query * query_stride, 0, 1, block, own + query * LANES, 0, size);
            float *to = scores + query * score_stride;
            for (whole at = 0; at < used; at++)
                to[at] = ancestors[query * line + at] == ancestor ? own[query * LANES + at] : to[at];
        }
    }
}

/* One position of self-attention. joint: (rows x width, 3 x heads x size): query, key and value of the newest
 * position, which are stored at positions[row]. table: (slots, pages), where a row's pages are, each with PAGE
 * positions: (layers, 2, heads, PAGE x width x size), keys in blocks (width, size, LANES), values (PAGE, width, size).
 * ancestors: (slots, width, pages x PAGE), the newest position's are set here. */
INLINE void NAME(attend_past_sized)(const float *restrict joint, KEY *const *restrict table,
                                    int32_t *restrict ancestors, const whole *restrict positions,
                                    float *restrict output, whole layer, whole rows, whole width, whole heads,
                                    whole pages, const whole size) {
    whole model = heads * size, line = pages * PAGE, block = width * size * LANES, part = PAGE * width * size;
    whole stride = 3 * model, room = line + LANES;
    float scores[TOGETHER * room];
#define KEYS(head) ((2 * layer * heads + (head)) * part) /* in a page */
#define VALUES(head) (((2 * layer + 1) * heads + (head)) * part)
    for (whole row = 0; row < rows; row++) {
        KEY *const *own = table + row * pages;
        whole last = positions[row];
        for (whole place = 0; place < width; place++) ancestors[(row * width + place) * line + last] = place;
        for (whole head = 0; head < heads; head++) {
            int is_next = head + 1 < heads;
            if (is_next || row + 1 < rows) {
                KEY *const *coming = is_next ? own : own + pages;
                whole ahead = is_next ? head + 1 : 0, length = is_next ? last : positions[row + 1];
                for (whole at = 0; at < length; at += PAGE) {
                    whole bytes = least(length - at, PAGE) * width * size * sizeof(KEY);
                    fetch(coming[at / PAGE] + KEYS(ahead), bytes);
                    fetch(coming[at / PAGE] + VALUES(ahead), bytes);
                }
            }
            for (whole place = 0; place < width; place++) {
                const float *from = joint + (row * width + place) * stride + head * size;
                KEY *page = own[last / PAGE];
                KEY *keys = page + KEYS(head) + last % PAGE / LANES * block + place * size * LANES;
                NAME(keep_key)(keys, last % LANES, from + model, size);
                NAME(keep_value)(page + VALUES(head) + (last % PAGE * width + place) * size, from + 2 * model, size);
            }
            for (whole place = 0; place < width; place += TOGETHER) {
                whole count = least(width - place, TOGETHER);
                const float *queries = joint + (row * width + place) * stride + head * size;
                const int32_t *lines = ancestors + (row * width + place) * line;
                for (whole at = 0; at <= last; at += LANES) {
                    const KEY *here = own[at / PAGE] + KEYS(head) + at % PAGE / LANES * block;
                    whole used = least(last + 1 - at, LANES);
                    if (width == 1)
                        NAME(score)(queries, 0, 1, here, scores + at, 0, size);
                    else
                        NAME(score_ancestors)(queries, stride, count, here, lines + at, line, used, width, scores + at,
                                              room, size);
                }
                for (whole query = 0; query < count; query++) {
                    softmax(scores + query * room, last + 1);
                    NAME(gather)(scores + query * room, 0, 1, (const KEY *const *)own, PAGE, VALUES(head),
                                 width * size, width == 1 ? 0 : lines + query * line, last + 1,
                                 output + (row * width + place + query) * model + head * size, 0, size);
                }
            }
        }
    }
#undef KEYS
#undef VALUES
}

void NAME(attend_past)(const float *joint, KEY *const *table, int32_t *ancestors, const whole *positions,
                       float *output, whole layer, whole rows, whole width, whole heads, whole size, whole pages) {
    BY_SIZE(NAME(attend_past_sized), joint, table, ancestors, positions, output, layer, rows, width, heads, pages)
}

/* Cross-attention. queries: (rows x width, heads x size); keys: (slots, heads, blocks, size, LANES); values: (slots,
 * heads, capacity, size). */
INLINE void NAME(attend_memory_sized)(const float *queries, const KEY *keys, const KEY *values, const whole *lengths,
                                      float *output, whole rows, whole width, whole heads, whole capacity,
                                      const whole size) {
    whole model = heads * size;
    float scores[TOGETHER * (capacity + LANES)];
    for (whole row = 0; row < rows; row++)
        for (whole head = 0; head < heads; head++) {
            whole own = (row * heads + head) * capacity * size, at = row * width * model + head * size;
            fetch(keys + own + capacity * size, in_whole_lanes(lengths[row]) * size * sizeof(KEY));
            fetch(values + own + capacity * size, lengths[row] * size * sizeof(KEY));
            NAME(attend_all)(queries + at, model, keys + own, values + own, size, output + at, model, width,
                             lengths[row], scores, size);
        }
}

void NAME(attend_memory)(const float *queries, const KEY *keys, const KEY *values, const whole *lengths, float *output,
                         whole rows, whole width, whole heads, whole size, whole capacity) {
    BY_SIZE(NAME(attend_memory_sized), queries, keys, values, lengths, output, rows, width, heads, capacity)
}

/* A row's keys and values of its source, each layer's, put into its slot. part: (source, layers, 2, heads, size);
 * buffer: (layers, 2, slots, heads, capacity, size), keys in blocks. */
void NAME(keep_memory)(const float *part, KEY *buffer, whole slot, whole source, whole layers, whole slots,
                       whole heads, whole capacity, whole size) {
    for (whole line = 0; line < 2 * layers; line++)
        for (whole head = 0; head < heads; head++) {
            KEY *to = buffer + ((line * slots + slot) * heads + head) * capacity * size;
            for (whole at = 0; at < source; at++) {
                const float *from = part + ((at * 2 * layers + line) * heads + head) * size;
                if (line % 2)
                    NAME(keep_value)(to + at * size, from, size);
                else
                    NAME(keep_key)(to, at, from, size);
            }
        }
}
