/* Attention of one decoded position, for keys and values of type KEY; kernels.c includes this once for each. */

/* Queries (count, at a stride) that look at the same keys and values (length, at a stride). */
INLINE void NAME(attend_all)(const float *restrict queries, whole query_stride, const KEY *restrict keys,
                       const KEY *restrict values, whole stride, float *restrict output, whole output_stride,
                       whole count, whole length, float *restrict scores, const whole size) {
    float sum[size];
    for (whole place = 0; place < count; place++) {
        const float *query = queries + place * query_stride;
        for (whole at = 0; at < length; at++) scores[at] = NAME(dot)(query, keys + at * stride, size);
        softmax(scores, length);
        for (whole i = 0; i < size; i++) sum[i] = 0;
        for (whole at = 0; at < length; at++) NAME(add_weighted)(sum, scores[at], values + at * stride, size);
        memcpy(output + place * output_stride, sum, size * sizeof(float));
    }
}

/* One position of self-attention. joint: (rows x width, 3 x heads x size): query, key and value of the newest
 * position, which are stored at positions[row]; keys and values: (slots, heads, capacity, width, size);
 * ancestors: (slots, width, capacity). */
INLINE void NAME(attend_past_sized)(const float *restrict joint, KEY *restrict keys, KEY *restrict values,
                              const int32_t *restrict ancestors, const whole *restrict positions,
                              float *restrict output, whole rows, whole width, whole heads, whole capacity,
                              const whole size) {
    whole model = heads * size;
    float scores[capacity + VECTOR_WIDTH], sum[size];
    for (whole row = 0; row < rows; row++) {
        whole last = positions[row];
        for (whole head = 0; head < heads; head++) {
            KEY *own_keys = keys + (row * heads + head) * capacity * width * size;
            KEY *own_values = values + (row * heads + head) * capacity * width * size;
            fetch(own_keys + capacity * width * size, last * width * size * sizeof(KEY));
            fetch(own_values + capacity * width * size, last * width * size * sizeof(KEY));
            for (whole place = 0; place < width; place++) {
                const float *from = joint + (row * width + place) * 3 * model + head * size;
                NAME(store)(own_keys + (last * width + place) * size, from + model, size);
                NAME(store)(own_values + (last * width + place) * size, from + 2 * model, size);
            }
            for (whole place = 0; place < width; place++) {
                const float *query = joint + (row * width + place) * 3 * model + head * size;
                const int32_t *line = ancestors + (row * width + place) * capacity;
                for (whole at = 0; at < last; at++)
                    scores[at] = NAME(dot)(query, own_keys + (at * width + line[at]) * size, size);
                scores[last] = NAME(dot)(query, own_keys + (last * width + place) * size, size);
                softmax(scores, last + 1);
                for (whole i = 0; i < size; i++) sum[i] = 0;
                for (whole at = 0; at < last; at++)
                    NAME(add_weighted)(sum, scores[at], own_values + (at * width + line[at]) * size, size);
                NAME(add_weighted)(sum, scores[last], own_values + (last * width + place) * size, size);
                memcpy(output + (row * width + place) * model + head * size, sum, size * sizeof(float));
            }
        }
    }
}

void NAME(attend_past)(const float *joint, KEY *keys, KEY *values, const int32_t *ancestors, const whole *positions,
                 float *output, whole rows, whole width, whole heads, whole size, whole capacity) {
    BY_SIZE(NAME(attend_past_sized), joint, keys, values, ancestors, positions, output, rows, width, heads, capacity)
}

/* Cross-attention. queries: (rows x width, heads x size); keys and values: (slots, heads, capacity, size). */
INLINE void NAME(attend_memory_sized)(const float *queries, const KEY *keys, const KEY *values, const whole *lengths,
                                float *output, whole rows, whole width, whole heads, whole capacity,
                                const whole size) {
    whole model = heads * size;
    float scores[capacity + VECTOR_WIDTH];
    for (whole row = 0; row < rows; row++)
        for (whole head = 0; head < heads; head++) {
            whole own = (row * heads + head) * capacity * size, at = row * width * model + head * size;
            fetch(keys + own + capacity * size, lengths[row] * size * sizeof(KEY));
            fetch(values + own + capacity * size, lengths[row] * size * sizeof(KEY));
            NAME(attend_all)(queries + at, model, keys + own, values + own, size, output + at, model, width, lengths[row],
                       scores, size);
        }
}

void NAME(attend_memory)(const float *queries, const KEY *keys, const KEY *values, const whole *lengths, float *output,
                   whole rows, whole width, whole heads, whole size, whole capacity) {
    BY_SIZE(NAME(attend_memory_sized), queries, keys, values, lengths, output, rows, width, heads, capacity)
}

/* A row's keys and values of its source, each layer's, put into its slot. part: (source, lines, heads, size), a line
 * being a layer's keys or values; buffer: (lines, slots, heads, capacity, size). */
void NAME(keep_memory)(const float *part, KEY *buffer, whole slot, whole source, whole lines, whole slots, whole heads,
                       whole capacity, whole size) {
    for (whole line = 0; line < lines; line++)
        for (whole head = 0; head < heads; head++) {
            KEY *to = buffer + ((line * slots + slot) * heads + head) * capacity * size;
            const float *from = part + (line * heads + head) * size;
            for (whole at = 0; at < source; at++)
                NAME(store)(to + at * size, from + at * lines * heads * size, size);
        }
}
