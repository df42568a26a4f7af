/* The kernels, once for fp32 and once for bf16. */

/* A row's e^(logit - the highest), and their sum. sums gets the log of the softmax' denominator, the label's logit and
 * the sum of all logits. */
INLINE float NAME(exponentials)(const ELEMENT *line, whole label, float *restrict powers, float *restrict sums,
                                whole vocab) {
    float most = -INFINITY, all = 0, sum = 0;
#pragma omp simd reduction(max : most) reduction(+ : all)
    for (whole i = 0; i < vocab; i++) {
        float logit = GET(line + i);
        most = logit > most ? logit : most;
        all += logit;
    }
#pragma omp simd reduction(+ : sum)
    for (whole i = 0; i < vocab; i++) sum += powers[i] = exponential(GET(line + i) - most);
    sums[0] = most + logf(sum);
    sums[1] = GET(line + label);
    sums[2] = all;
    return sum;
}

/* Logits become the gradient of cross-entropy against smoothed labels plus z-loss, in place. */
void NAME(loss_gradient)(ELEMENT *logits, const whole *labels, float smoothing, float z_loss, float *sums, whole rows,
                         whole vocab, whole threads) {
    PARALLEL for (whole row = 0; row < rows; row++) {
        ELEMENT *line = logits + row * vocab;
        float *powers = malloc(vocab * sizeof(float)), uniform = smoothing / vocab;
        float sum = NAME(exponentials)(line, labels[row], powers, sums + 3 * row, vocab);
        float factor = (1 + 2 * z_loss * sums[3 * row]) / sum;
        float label_gradient = powers[labels[row]] * factor - uniform - (1 - smoothing);
#pragma omp simd
        for (whole i = 0; i < vocab; i++) PUT(line + i, powers[i] * factor - uniform);
        PUT(line + labels[row], label_gradient);
        free(powers);
    }
}

/* The same of pairs of rows, plus r_drop times the gradient of what divides them (r_drop.py): divergences gets that of
 * each pair, (KL(p, q) + KL(q, p)) / 2. */
void NAME(twin_loss_gradient)(ELEMENT *logits, const whole *labels, float smoothing, float z_loss, float r_drop,
                              float *sums, float *divergences, whole pairs, whole vocab, whole threads) {
    PARALLEL for (whole pair = 0; pair < pairs; pair++) {
        ELEMENT *first = logits + 2 * pair * vocab, *second = first + vocab;
        const whole *label = labels + 2 * pair;
        float *p = malloc(2 * vocab * sizeof(float)), *q = p + vocab, *own = sums + 6 * pair;
        float p_share = 1 / NAME(exponentials)(first, label[0], p, own, vocab);
        float q_share = 1 / NAME(exponentials)(second, label[1], q, own + 3, vocab);
        float p_mean = 0, q_mean = 0; /* of the difference of logits */
#pragma omp simd reduction(+ : p_mean, q_mean)
        for (whole i = 0; i < vocab; i++) {
            float difference = GET(first + i) - GET(second + i);
            p_mean += p[i] * difference;
            q_mean += q[i] * difference;
        }
        p_mean *= p_share;
        q_mean *= q_share;
        divergences[pair] = (p_mean - q_mean) / 2;
        float p_factor = 1 + 2 * z_loss * own[0], q_factor = 1 + 2 * z_loss * own[3];
        float uniform = smoothing / vocab, pull = r_drop / 2;
#pragma omp simd
        for (whole i = 0; i < vocab; i++) {
            float difference = GET(first + i) - GET(second + i), a = p[i] * p_share, b = q[i] * q_share;
            p[i] = a * p_factor - uniform + pull * (a * (difference - p_mean) + a - b);
            q[i] = b * q_factor - uniform + pull * (b * (q_mean - difference) + b - a);
        }
        p[label[0]] -= 1 - smoothing;
        q[label[1]] -= 1 - smoothing;
#pragma omp simd
        for (whole i = 0; i < vocab; i++) {
            PUT(first + i, p[i]);
            PUT(second + i, q[i]);
        }
        free(p);
    }
}

/* Layer norm of each row; mean and 1 / deviation are kept for the backward pass. */
void NAME(normalize)(const ELEMENT *states, const ELEMENT *weight, const ELEMENT *bias, float eps, ELEMENT *output,
                     float *means, float *factors, whole rows, whole width, whole threads) {
    PARALLEL for (whole row = 0; row < rows; row++) {
        const ELEMENT *in = states + row * width;
        ELEMENT *out = output + row * width;
        float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (whole i = 0; i < width; i++) sum += GET(in + i);
        float mean = sum / width;
#pragma omp simd reduction(+ : squares)
        for (whole i = 0; i < width; i++) squares += (GET(in + i) - mean) * (GET(in + i) - mean);
        float factor = 1.0f / sqrtf(squares / width + eps);
#pragma omp simd
        for (whole i = 0; i < width; i++)
            PUT(out + i, (GET(in + i) - mean) * factor * GET(weight + i) + GET(bias + i));
        means[row] = mean;
        factors[row] = factor;
    }
}

/* Its gradients: of the states, and of weight and bias for each part of the rows, parts x 2 x width. */
void NAME(normalize_backward)(const ELEMENT *gradient, const ELEMENT *states, const ELEMENT *weight,
                              const float *means, const float *factors, ELEMENT *states_gradient, float *sums,
                              whole parts, whole rows, whole width, whole threads) {
    PARALLEL for (whole part = 0; part < parts; part++) {
        float *weight_sum = sums + part * 2 * width, *bias_sum = weight_sum + width;
        memset(weight_sum, 0, 2 * width * sizeof(float));
        for (whole row = rows * part / parts; row < rows * (part + 1) / parts; row++) {
            const ELEMENT *above = gradient + row * width, *in = states + row * width;
            ELEMENT *out = states_gradient + row * width;
            float mean = means[row], factor = factors[row], sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
            for (whole i = 0; i < width; i++) {
                float own = GET(above + i), normal = (GET(in + i) - mean) * factor;
                float weighted = own * GET(weight + i);
                weight_sum[i] += own * normal;
                bias_sum[i] += own;
                sum += weighted;
                product += weighted * normal;
            }
            sum /= width;
            product /= width;
#pragma omp simd
            for (whole i = 0; i < width; i++) {
                float normal = (GET(in + i) - mean) * factor;
                PUT(out + i, (GET(above + i) * GET(weight + i) - sum - normal * product) * factor);
            }
        }
    }
}

/* (length, size) of one head to fp32, and its transpose with padded rows. */
INLINE void NAME(read_head)(const ELEMENT *from, whole row, float *restrict to, whole length, whole size) {
    for (whole i = 0; i < length; i++)
#pragma omp simd
        for (whole j = 0; j < size; j++) to[i * size + j] = GET(from + i * row + j);
}

INLINE void NAME(write_head)(const float *restrict from, float scale, ELEMENT *to, whole row, whole length, whole size) {
    for (whole i = 0; i < length; i++)
#pragma omp simd
        for (whole j = 0; j < size; j++) PUT(to + i * row + j, from[i * size + j] * scale);
}

INLINE void NAME(turn_head)(const ELEMENT *from, whole row, float *restrict to, whole length, whole padded, whole size) {
    for (whole j = 0; j < size; j++) {
        for (whole i = 0; i < length; i++) to[j * padded + i] = GET(from + i * row + j);
        for (whole i = length; i < padded; i++) to[j * padded + i] = 0;
    }
}

INLINE void NAME(attend_head)(const ELEMENT *queries, const ELEMENT *keys, const ELEMENT *values, const uint8_t *seen,
                              whole causal, ELEMENT *output, const whole *strides, float *work, whole query_count,
                              whole key_count, whole padded, whole size) {
    float *query = work, *result = query + query_count * size, *turned = result + query_count * size;
    float *value = turned + padded * size, *bias = value + padded * size, *weights = bias + padded;
    NAME(read_head)(queries, strides[2], query, query_count, size);
    NAME(turn_head)(keys, strides[5], turned, key_count, padded, size);
    NAME(read_head)(values, strides[8], value, key_count, size);
    fill_bias(bias, seen, key_count, padded);
    multiply(query, size, 1, turned, padded, weights, padded, query_count, padded, size);
    weigh(weights, bias, causal, 1.0f / sqrtf(size), query_count, padded);
    multiply(weights, padded, 1, value, size, result, size, query_count, size, key_count);
    NAME(write_head)(result, 1.0f, output, strides[11], query_count, size);
}

INLINE void NAME(differentiate_head)(const ELEMENT *queries, const ELEMENT *keys, const ELEMENT *values,
                                     const uint8_t *seen, whole causal, const ELEMENT *above, ELEMENT *query_gradient,
                                     ELEMENT *key_gradient, ELEMENT *value_gradient, const whole *strides, float *work,
                                     whole query_count, whole key_count, whole padded, whole size) {
    float scale = 1.0f / sqrtf(size);
    float *query = work, *own = query + query_count * size, *key = own + query_count * size;
    float *turned = key + padded * size, *turned_value = turned + padded * size, *bias = turned_value + padded * size;
    float *weights = bias + padded, *slopes = weights + query_count * padded, *result = slopes + query_count * padded;
    NAME(read_head)(queries, strides[2], query, query_count, size);
    NAME(read_head)(keys, strides[5], key, key_count, size);
    NAME(turn_head)(keys, strides[5], turned, key_count, padded, size);
    NAME(turn_head)(values, strides[8], turned_value, key_count, padded, size);
    NAME(read_head)(above, strides[11], own, query_count, size);
    fill_bias(bias, seen, key_count, padded);
    multiply(query, size, 1, turned, padded, weights, padded, query_count, padded, size);
    weigh(weights, bias, causal, scale, query_count, padded);
    multiply(own, size, 1, turned_value, padded, slopes, padded, query_count, padded, size);
    multiply(weights, 1, padded, own, size, result, size, key_count, size, query_count);
    NAME(write_head)(result, 1.0f, value_gradient, strides[20], key_count, size);
    for (whole i = 0; i < query_count; i++) {
        float *weight = weights + i * padded, *slope = slopes + i * padded, mean = 0;
#pragma omp simd reduction(+ : mean)
        for (whole j = 0; j < padded; j++) mean += weight[j] * slope[j];
#pragma omp simd
        for (whole j = 0; j < padded; j++) slope[j] = weight[j] * (slope[j] - mean);
    }
    multiply(slopes, padded, 1, key, size, result, size, query_count, size, key_count);
    NAME(write_head)(result, scale, query_gradient, strides[14], query_count, size);
    multiply(slopes, 1, padded, query, size, result, size, key_count, size, query_count);
    NAME(write_head)(result, scale, key_gradient, strides[17], key_count, size);
}

#define AT(part) (row * strides[3 * part] + head * strides[3 * part + 1])
#define SEEN (seen ? seen + row * key_count : 0)

/* softmax(q k^T / sqrt(size)) v for every row of the batch and head. strides: for queries, keys, values and output
 * those of batch, head and position, in elements. seen: (batch, keys), or none; size is a multiple of LANES. */
void NAME(attend)(const ELEMENT *queries, const ELEMENT *keys, const ELEMENT *values, const uint8_t *seen,
                  whole causal, ELEMENT *output, const whole *strides, whole batch, whole heads, whole query_count,
                  whole key_count, whole size, whole threads) {
    whole padded = in_whole_lanes(key_count);
    whole needed = 2 * (query_count + padded) * size + (query_count + 1) * padded;
    PARALLEL for (whole row = 0; row < batch; row++) {
        float *work = malloc(needed * sizeof(float));
        for (whole head = 0; head < heads; head++)
            BY_SIZE(NAME(attend_head), queries + AT(0), keys + AT(1), values + AT(2), SEEN, causal, output + AT(3),
                    strides, work, query_count, key_count, padded);
        free(work);
    }
}

/* Its gradients, from that of the output; the weights are computed anew. strides: of queries, keys, values, the
 * output's gradient, and the gradients of queries, keys and values. */
void NAME(attend_backward)(const ELEMENT *queries, const ELEMENT *keys, const ELEMENT *values, const uint8_t *seen,
                           whole causal, const ELEMENT *above, ELEMENT *query_gradient, ELEMENT *key_gradient,
                           ELEMENT *value_gradient, const whole *strides, whole batch, whole heads, whole query_count,
                           whole key_count, whole size, whole threads) {
    whole padded = in_whole_lanes(key_count), most = query_count > padded ? query_count : padded;
    whole needed = (2 * query_count + 3 * padded + most) * size + (2 * query_count + 1) * padded;
    PARALLEL for (whole row = 0; row < batch; row++) {
        float *work = malloc(needed * sizeof(float));
        for (whole head = 0; head < heads; head++)
            BY_SIZE(NAME(differentiate_head), queries + AT(0), keys + AT(1), values + AT(2), SEEN, causal,
                    above + AT(3), query_gradient + AT(4), key_gradient + AT(5), value_gradient + AT(6), strides, work,
                    query_count, key_count, padded);
        free(work);
    }
}
#undef AT
#undef SEEN
