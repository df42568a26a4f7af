/* What the kernels of training (model/kernels.c) and of the search (generation/kernels.c) share. */
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef int64_t whole;
typedef uint16_t half; /* bfloat16 */

/* Numbers that a register holds: they are worked on at a time. A wider vector would live on the stack. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))

INLINE whole in_whole_lanes(whole count) { return (count + LANES - 1) / LANES * LANES; }

INLINE float as_float(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }

/* The nearest bfloat16 to a float, or to each of several: bits, of which the upper half is left. */
#define NEAREST_HALF(bits) (((bits) + 0x7fff + (((bits) >> 16) & 1)) & 0xffff0000u)

/* e^x for x <= 88 or so: Cephes' polynomial, 2 units in the last place; below e^-87 it is e^-87, NaN stays NaN. */
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = __builtin_rintf(x * 1.44269504088896341f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * as_float((uint32_t)((int32_t)n + 127) << 23);
}
