/* Products of few rows with 4- and 8-bit weights, for CPUs with AVX2 and FMA.
 *
 * A draft step multiplies one row by every weight, so the weights' way from memory is all there is
 * to hide: they are unpacked in registers, next to the multiplication, and read once for up to four
 * rows. Inputs are 16-bit integers with one scale a group, 2^-16 of the group's largest at most from
 * what they were; their products with weights are added exactly, in 32 bits, up to the group's end.
 *
 * Weights of 4 bits: value = (u - zero) * scale with u in 0..15; since
 * sum((u - zero) x) = sum(u x) - zero sum(x), the zero costs one product a group. Bytes of 32
 * weights: the low halves are the first 16, the high halves the last 16.
 */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#define MAX_ROWS 4
#define INLINE static inline __attribute__((always_inline))

INLINE float total(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

INLINE __m256i multiplied(__m256i weights, const int16_t *x, __m256i sum) {
    const __m256i inputs = _mm256_loadu_si256((const __m256i *)x);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(weights, inputs));
}

/* x (n) to q (n) with scale (n / group), and the sums of the groups as floats, (n / group). */
void to_int16(const float *x, int16_t *q, float *scale, float *sums, long n, long group) {
    for (long g = 0; g < n / group; g++) {
        const float *from = x + g * group;
        float largest = 0.0f, sum = 0.0f;
        for (long k = 0; k < group; k++) largest = fmaxf(largest, fabsf(from[k]));
        const float step = largest / 32767.0f, inverse = largest > 0.0f ? 32767.0f / largest : 0.0f;
        for (long k = 0; k < group; k++) {
            const float value = rintf(from[k] * inverse);
            q[g * group + k] = (int16_t)value;
            sum += value;
        }
        scale[g] = step + 0.0f * sum;  /* not a number where an input is none */
        sums[g] = sum * step;
    }
}

INLINE void int4_dot(const int rows, const int16_t *x, const float *step, const float *sums,
                     const uint8_t *weight, const float *scale, const float *offset, float *out,
                     long in, long outputs, long group) {
    const long groups = in / group;
    const __m128i low = _mm_set1_epi8(0x0F);
    __m256 acc[MAX_ROWS];
    float away[MAX_ROWS];
    for (int r = 0; r < rows; r++) acc[r] = _mm256_setzero_ps(), away[r] = 0.0f;
    for (long g = 0; g < groups; g++) {
        __m256i one[MAX_ROWS], two[MAX_ROWS];
        for (int r = 0; r < rows; r++) one[r] = two[r] = _mm256_setzero_si256();
        for (long k = g * group; k < (g + 1) * group; k += 32) {
            const __m128i raw = _mm_loadu_si128((const __m128i *)(weight + k / 2));
            const __m256i a = _mm256_cvtepu8_epi16(_mm_and_si128(raw, low));
            const __m256i b = _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(raw, 4), low));
            for (int r = 0; r < rows; r++) {
                one[r] = multiplied(a, x + r * in + k, one[r]);
                two[r] = multiplied(b, x + r * in + k + 16, two[r]);
            }
        }
        const float factor = scale[g], zero = offset ? offset[g] : 8.0f * factor;
        for (int r = 0; r < rows; r++) {
            const __m256 both = _mm256_cvtepi32_ps(_mm256_add_epi32(one[r], two[r]));
            acc[r] = _mm256_fmadd_ps(_mm256_set1_ps(factor * step[r * groups + g]), both, acc[r]);
            away[r] += zero * sums[r * groups + g];
        }
    }
    for (int r = 0; r < rows; r++) out[r * outputs] = total(acc[r]) - away[r];
}

INLINE void int8_dot(const int rows, const int16_t *x, const float *step, const int8_t *weight,
                     float scale, float *out, long in, long outputs, long group) {
    const long groups = in / group;
    __m256 acc[MAX_ROWS];
    for (int r = 0; r < rows; r++) acc[r] = _mm256_setzero_ps();
    for (long g = 0; g < groups; g++) {
        __m256i one[MAX_ROWS], two[MAX_ROWS];
        for (int r = 0; r < rows; r++) one[r] = two[r] = _mm256_setzero_si256();
        for (long k = g * group; k < (g + 1) * group; k += 32) {
            const __m256i a = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(weight + k)));
            const __m256i b =
                _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(weight + k + 16)));
            for (int r = 0; r < rows; r++) {
                one[r] = multiplied(a, x + r * in + k, one[r]);
                two[r] = multiplied(b, x + r * in + k + 16, two[r]);
            }
        }
        for (int r = 0; r < rows; r++) {
            const __m256 both = _mm256_cvtepi32_ps(_mm256_add_epi32(one[r], two[r]));
            acc[r] = _mm256_fmadd_ps(_mm256_set1_ps(step[r * groups + g]), both, acc[r]);
        }
    }
    for (int r = 0; r < rows; r++) out[r * outputs] = scale * total(acc[r]);
}

/* A row count that the compiler knows keeps the sums in registers. */
#define BY_ROWS(rows, call)          \
    switch (rows) {                  \
        case 1: call(1); break;      \
        case 2: call(2); break;      \
        case 3: call(3); break;      \
        default: call(4); break;     \
    }

/* x (rows, in) with step and sums (rows, in / group), from to_int16; weight (outputs, in / 2); scale
 * and offset (outputs, in / group), offset = zero * scale or NULL for a zero of 8; out (rows, outputs).
 */
void int4_product(const int16_t *x, const float *step, const float *sums, const uint8_t *weight,
                  const float *scale, const float *offset, float *out, long rows, long in,
                  long outputs, long group, int threads) {
    const long groups = in / group;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long o = 0; o < outputs; o++) {
        const float *zero = offset ? offset + o * groups : 0;
        for (long r = 0; r < rows; r += MAX_ROWS) {
#define CALL(n)                                                                                  \
    int4_dot(n, x + r * in, step + r * groups, sums + r * groups, weight + o * in / 2,           \
             scale + o * groups, zero, out + r * outputs + o, in, outputs, group)
            BY_ROWS(rows - r, CALL)
#undef CALL
        }
    }
}

/* x (rows, in) with step (rows, in / group); weight (outputs, in); scale (outputs). */
void int8_product(const int16_t *x, const float *step, const int8_t *weight, const float *scale,
                  float *out, long rows, long in, long outputs, long group, int threads) {
    const long groups = in / group;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long o = 0; o < outputs; o++) {
        for (long r = 0; r < rows; r += MAX_ROWS) {
#define CALL(n)                                                                         \
    int8_dot(n, x + r * in, step + r * groups, weight + o * in, scale[o],               \
             out + r * outputs + o, in, outputs, group)
            BY_ROWS(rows - r, CALL)
#undef CALL
        }
    }
}
