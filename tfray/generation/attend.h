/* Attention of one decoded position, for keys and values of type KEY; kernels.c includes this once for each.
 *
 * Keys stand in blocks of LANES positions, (size, LANES), so that a query meets all of a block at a time. Of halves,
 * two neighbouring parts of a key stand together, (size / 2, LANES, 2), and so do two parts of a value that are LANES
 * apart: their size is a multiple of 2 * LANES.
 */

/* What a query and each of a block of keys have in common. */
INLINE void NAME(score)(const float *restrict query, const KEY *restrict keys, float *restrict scores,
                        const whole size) {
    Lanes sums[4] = {{0}};
#ifdef IN_HALVES
    for (whole i = 0; i < size; i += 4)
        for (whole part = 0; part < 4; part += 2) {
            Bits pairs = (Bits)load((const float *)(keys + (i + part) * LANES));
            sums[part] += query[i + part] * first_of(pairs);
            sums[part + 1] += query[i + part + 1] * second_of(pairs);
        }
#else
    whole quarters = size / 4 * 4;
    for (whole i = 0; i < quarters; i += 4)
        for (whole part = 0; part < 4; part++) sums[part] += query[i + part] * load(keys + (i + part) * LANES);
    for (whole i = quarters; i < size; i++) sums[0] += query[i] * load(keys + i * LANES);
#endif
    store(scores, (sums[0] + sums[1]) + (sums[2] + sums[3]));
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

/* The weighted sum of values, `page` positions to a page and in each from `start` on, at a stride; ancestors: which of
 * several at a position, or none: the first. */
INLINE void NAME(gather)(const float *restrict weights, const KEY *const *pages, whole page, whole start, whole stride,
                         const int32_t *restrict ancestors, whole length, float *restrict output, const whole size) {
#define EACH_POSITION                                                                                                 \
    for (whole from = 0; from < length; from += page)                                                                 \
        for (whole at = from, to = least(from + page, length); at < to; at++)
#define VALUE (pages[from / page] + start + (at - from) * stride + (ancestors ? ancestors[at] * size : 0) + i)
    whole i = 0;
#ifdef IN_HALVES
    for (; i < size; i += 2 * LANES) {
        Lanes first = {0}, second = {0};
        EACH_POSITION {
            Bits pairs = (Bits)load((const float *)VALUE);
            first += weights[at] * first_of(pairs);
            second += weights[at] * second_of(pairs);
        }
        store(output + i, first);
        store(output + i + LANES, second);
    }
#else
    for (; i + 2 * LANES <= size; i += 2 * LANES) {
        Lanes first = {0}, second = {0};
        EACH_POSITION {
            first += weights[at] * load(VALUE);
            second += weights[at] * load(VALUE + LANES);
        }
        store(output + i, first);
        store(output + i + LANES, second);
    }
    for (; i < size; i++) {
        float sum = 0; /* rounded once, said outright: compilers do so in one place and not in another */
        EACH_POSITION sum = __builtin_fmaf(weights[at], *VALUE, sum);
        output[i] = sum;
    }
#endif
#undef EACH_POSITION
#undef VALUE
}

/* Queries (count, at a stride) that look at the same keys (blocks) and values (length, at a stride). */
INLINE void NAME(attend_all)(const float *restrict queries, whole query_stride, const KEY *restrict keys,
                             const KEY *values, whole stride, float *restrict output, whole output_stride,
                             whole count, whole length, float *restrict scores, const whole size) {
    for (whole place = 0; place < count; place++) {
        for (whole at = 0; at < length; at += LANES)
            NAME(score)(queries + place * query_stride, keys + at * size, scores + at, size);
        softmax(scores, length);
        NAME(gather)(scores, &values, length, 0, stride, 0, length, output + place * output_stride, size);
    }
}

/* A query's scores with a block of keys, of each position that of its ancestor; keys: (width, size, LANES). */
INLINE void NAME(score_ancestors)(const float *restrict query, const KEY *restrict keys,
                                  const int32_t *restrict ancestors, whole used, whole width, float *restrict scores,
                                  const whole size) {
    float own[LANES];
    for (whole ancestor = 0; ancestor < width; ancestor++) {
        int is_one = 0;
        for (whole at = 0; at < used; at++) is_one |= ancestors[at] == ancestor;
        if (!is_one) continue;
        NAME(score)(query, keys + ancestor * size * LANES, own, size);
        for (whole at = 0; at < used; at++) scores[at] = ancestors[at] == ancestor ? own[at] : scores[at];
    }
}

/* Ask for a head's keys and values of so many positions. */
INLINE void NAME(fetch_past)(KEY *const *pages, whole keys, whole values, whole length, whole width, const whole size) {
    for (whole from = 0; from < length; from += PAGE) {
        whole used = least(PAGE, length - from), bytes = width * size * sizeof(KEY);
        fetch(pages[from / PAGE] + keys, in_whole_lanes(used) * bytes);
        fetch(pages[from / PAGE] + values, used * bytes);
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
    whole model = heads * size, line = pages * PAGE, part = PAGE * width * size;
    float scores[line + LANES];
#define KEYS(head) ((2 * layer * heads + (head)) * part) /* in a page */
#define VALUES(head) (KEYS(head) + heads * part)
    for (whole row = 0; row < rows; row++) {
        KEY *const *own = table + row * pages;
        whole last = positions[row];
        int32_t *lines = ancestors + row * width * line;
        for (whole place = 0; place < width; place++) lines[place * line + last] = place;
        for (whole head = 0; head < heads; head++) {
            if (head + 1 < heads)
                NAME(fetch_past)(own, KEYS(head + 1), VALUES(head + 1), last, width, size);
            else if (row + 1 < rows)
                NAME(fetch_past)(own + pages, KEYS(0), VALUES(0), positions[row + 1], width, size);
            for (whole place = 0; place < width; place++) {
                const float *from = joint + (row * width + place) * 3 * model + head * size;
                KEY *page = own[last / PAGE];
                KEY *block = page + KEYS(head) + (last % PAGE / LANES * width + place) * size * LANES;
                NAME(keep_key)(block, last % LANES, from + model, size);
                NAME(keep_value)(page + VALUES(head) + (last % PAGE * width + place) * size, from + 2 * model, size);
            }
            for (whole place = 0; place < width; place++) {
                const float *query = joint + (row * width + place) * 3 * model + head * size;
                const int32_t *mine = lines + place * line;
                for (whole at = 0; at <= last; at += LANES) {
                    const KEY *here = own[at / PAGE] + KEYS(head) + at % PAGE * width * size;
                    whole used = least(last + 1 - at, LANES);
                    if (width == 1)
                        NAME(score)(query, here, scores + at, size);
                    else
                        NAME(score_ancestors)(query, here, mine + at, used, width, scores + at, size);
                }
                softmax(scores, last + 1);
                NAME(gather)(scores, (const KEY *const *)own, PAGE, VALUES(head), width * size, width == 1 ? 0 : mine,
                             last + 1, output + (row * width + place) * model + head * size, size);
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
    float scores[capacity + LANES];
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
