/* Products of few rows with 4-, 8- and 16-bit weights, for CPUs with AVX2 and FMA.
 *
 * A draft step multiplies one row by every weight, so the weights' way from memory is all there is
 * to hide: they are unpacked in registers, next to the multiplication, and read once for up to four
 * rows. Beside bfloat16 weights inputs are float32 and so are the sums. Beside integers inputs are
 * 16-bit integers with one scale a group, 2^-16 of the group's largest at most from what they were;
 * their products with weights are added exactly, in 32 bits, up to the group's end.
 *
 * Weights of 4 bits: value = (u - zero) * scale with u in 0..15; since
 * sum((u - zero) x) = sum(u x) - zero sum(x), the zero costs one product a group. A block is as many
 * weights as its 16-bit words have half-bytes: in 64 weights the lowest half-bytes of 16 words are
 * the first 16 weights, and so on; in 32, the low halves of 16 bytes are the first 16.
 */
#include "vectors.h"

#define MAX_ROWS 4
#define AHEAD 1024  /* bytes: what is fetched while the weights before it are multiplied */

INLINE __m256i at(const void *place) { return _mm256_loadu_si256((const __m256i *)place); }

INLINE __m256i multiplied(__m256i weights, const int16_t *x, __m256i sum) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(weights, at(x)));
}

/* x (n) to q (n) with step (n / group), and the sums of the groups by lane, (n / group, LANES). */
static void to_int16(const float *x, int16_t *q, float *step, int32_t *sums, long n, long group) {
    const __m256 sign = _mm256_set1_ps(-0.0f), none = _mm256_setzero_ps();
    for (long g = 0; g < n / group; g++) {
        const float *from = x + g * group;
        __m256 most = none, wrong = none;  /* not a number where an input is none */
        for (long k = 0; k < group; k += LANES) {
            const __m256 value = _mm256_loadu_ps(from + k);
            most = _mm256_max_ps(most, _mm256_andnot_ps(sign, value));
            wrong = _mm256_fmadd_ps(value, none, wrong);
        }
        const float largest = largest_of(most);
        const __m256 inverse = _mm256_set1_ps(largest > 0.0f ? 32767.0f / largest : 0.0f);
        __m256i sum = _mm256_setzero_si256();
        for (long k = 0; k < group; k += 2 * LANES) {
            const __m256 low = _mm256_mul_ps(_mm256_loadu_ps(from + k), inverse);
            const __m256 high = _mm256_mul_ps(_mm256_loadu_ps(from + k + LANES), inverse);
            const __m256i both = _mm256_permute4x64_epi64(
                _mm256_packs_epi32(_mm256_cvtps_epi32(low), _mm256_cvtps_epi32(high)), 0xD8);
            _mm256_storeu_si256((__m256i *)(q + g * group + k), both);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(both, _mm256_set1_epi16(1)));
        }
        step[g] = largest / 32767.0f + total(wrong);
        _mm256_storeu_si256((__m256i *)(sums + g * LANES), sum);
    }
}

INLINE void block_of_64(const int rows, const uint8_t *weight, const int16_t *x, long in,
                        __m256i *one, __m256i *two) {
    const __m256i low = _mm256_set1_epi16(0x0F), raw = at(weight);
    const __m256i a = _mm256_and_si256(raw, low);
    const __m256i b = _mm256_and_si256(_mm256_srli_epi16(raw, 4), low);
    const __m256i c = _mm256_and_si256(_mm256_srli_epi16(raw, 8), low);
    const __m256i d = _mm256_srli_epi16(raw, 12);
    for (int r = 0; r < rows; r++) {
        one[r] = multiplied(a, x + r * in, one[r]);
        two[r] = multiplied(b, x + r * in + 16, two[r]);
        one[r] = multiplied(c, x + r * in + 32, one[r]);
        two[r] = multiplied(d, x + r * in + 48, two[r]);
    }
}

INLINE void block_of_32(const int rows, const uint8_t *weight, const int16_t *x, long in,
                        __m256i *one, __m256i *two) {
    const __m128i low = _mm_set1_epi8(0x0F), raw = _mm_loadu_si128((const __m128i *)weight);
    const __m256i a = _mm256_cvtepu8_epi16(_mm_and_si128(raw, low));
    const __m256i b = _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(raw, 4), low));
    for (int r = 0; r < rows; r++) {
        one[r] = multiplied(a, x + r * in, one[r]);
        two[r] = multiplied(b, x + r * in + 16, two[r]);
    }
}

INLINE void int4_dot(const int rows, const int16_t *x, const float *step, const int32_t *sums,
                     const uint8_t *weight, const float *scale, const uint8_t *zero, float *out,
                     long in, long outputs, long group) {
    const long groups = in / group;
    __m256 acc[MAX_ROWS];
    for (int r = 0; r < rows; r++) acc[r] = _mm256_setzero_ps();
    for (long g = 0; g < groups; g++) {
        const __m256i less = _mm256_set1_epi32(zero ? -zero[g] : 0);
        __m256i one[MAX_ROWS], two[MAX_ROWS];
        for (int r = 0; r < rows; r++) {
            one[r] = at(sums + (r * groups + g) * LANES);
            if (zero) one[r] = _mm256_mullo_epi32(less, one[r]);
            two[r] = _mm256_setzero_si256();
        }
        if (group % 64 == 0) {
            _mm_prefetch((const char *)(weight + g * group / 2 + AHEAD), _MM_HINT_T0);
#pragma GCC unroll 2
            for (long k = g * group; k < (g + 1) * group; k += 64)
                block_of_64(rows, weight + k / 2, x + k, in, one, two);
        } else {
            block_of_32(rows, weight + g * group / 2, x + g * group, in, one, two);
        }
        for (int r = 0; r < rows; r++) {
            const __m256 both = _mm256_cvtepi32_ps(_mm256_add_epi32(one[r], two[r]));
            acc[r] = _mm256_fmadd_ps(_mm256_set1_ps(scale[g] * step[r * groups + g]), both, acc[r]);
        }
    }
    for (int r = 0; r < rows; r++) out[r * outputs] = total(acc[r]);
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

/* A bfloat16 is the upper half of a float32: of two neighbours one is shifted, one masked. */
INLINE void bf16_dot(const int rows, const float *x, const uint16_t *weight, float *out, long in,
                     long outputs) {
    const __m256i upper = _mm256_set1_epi32((int)0xFFFF0000u);
    __m256 even[MAX_ROWS], odd[MAX_ROWS];
    for (int r = 0; r < rows; r++) even[r] = odd[r] = _mm256_setzero_ps();
#pragma GCC unroll 2
    for (long k = 0; k < in; k += 2 * LANES) {
        const __m256i raw = at(weight + k);
        const __m256 a = _mm256_castsi256_ps(_mm256_slli_epi32(raw, 16));
        const __m256 b = _mm256_castsi256_ps(_mm256_and_si256(raw, upper));
        for (int r = 0; r < rows; r++) {
            even[r] = _mm256_fmadd_ps(a, _mm256_loadu_ps(x + r * in + k), even[r]);
            odd[r] = _mm256_fmadd_ps(b, _mm256_loadu_ps(x + r * in + k + LANES), odd[r]);
        }
    }
    for (int r = 0; r < rows; r++) out[r * outputs] = total(_mm256_add_ps(even[r], odd[r]));
}

/* A row count that the compiler knows keeps the sums in registers. */
#define BY_ROWS(rows, call)          \
    switch (rows) {                  \
        case 1: call(1); break;      \
        case 2: call(2); break;      \
        case 3: call(3); break;      \
        default: call(4); break;     \
    }

/* Bytes of `scratch` that a product with integers needs. */
long scratch_bytes(long rows, long in, long group) {
    return rows * (in * (long)sizeof(int16_t) + in / group * (1 + LANES) * (long)sizeof(float));
}

/* x (rows, in); weight (outputs, in / 2); scale and zero (outputs, in / group), zero NULL where it
 * is 8 throughout; out (rows, outputs). group: a multiple of 64, or 32.
 */
void int4_product(const float *x, void *scratch, const uint8_t *weight, const float *scale,
                  const uint8_t *zero, float *out, long rows, long in, long outputs, long group,
                  int threads) {
    const long groups = in / group;
    int32_t *sums = scratch;
    float *step = (float *)(sums + rows * groups * LANES);
    int16_t *q = (int16_t *)(step + rows * groups);
    to_int16(x, q, step, sums, rows * in, group);
    if (!zero)
        for (long i = 0; i < rows * groups * LANES; i++) sums[i] *= -8;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long o = 0; o < outputs; o++) {
        const uint8_t *own_zero = zero ? zero + o * groups : 0;
        for (long r = 0; r < rows; r += MAX_ROWS) {
#define CALL(n)                                                                                  \
    int4_dot(n, q + r * in, step + r * groups, sums + r * groups * LANES, weight + o * in / 2,   \
             scale + o * groups, own_zero, out + r * outputs + o, in, outputs, group)
            BY_ROWS(rows - r, CALL)
#undef CALL
        }
    }
}

/* x (rows, in); weight (outputs, in); scale (outputs); out (rows, outputs). group: of inputs. */
void int8_product(const float *x, void *scratch, const int8_t *weight, const float *scale,
                  float *out, long rows, long in, long outputs, long group, int threads) {
    const long groups = in / group;
    int32_t *sums = scratch;
    float *step = (float *)(sums + rows * groups * LANES);
    int16_t *q = (int16_t *)(step + rows * groups);
    to_int16(x, q, step, sums, rows * in, group);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long o = 0; o < outputs; o++) {
        for (long r = 0; r < rows; r += MAX_ROWS) {
#define CALL(n)                                                                         \
    int8_dot(n, q + r * in, step + r * groups, weight + o * in, scale[o],               \
             out + r * outputs + o, in, outputs, group)
            BY_ROWS(rows - r, CALL)
#undef CALL
        }
    }
}

/* x (rows, in); weight (outputs, in) bfloat16; out (rows, outputs); scratch (rows, in) floats. in: a
 * multiple of 16.
 */
void bf16_product(const float *x, float *scratch, const uint16_t *weight, float *out, long rows,
                  long in, long outputs, int threads) {
    for (long k = 0; k < rows * in; k += 2 * LANES) {
        for (long lane = 0; lane < LANES; lane++) {
            scratch[k + lane] = x[k + 2 * lane];
            scratch[k + LANES + lane] = x[k + 2 * lane + 1];
        }
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long o = 0; o < outputs; o++) {
        for (long r = 0; r < rows; r += MAX_ROWS) {
#define CALL(n) \
    bf16_dot(n, scratch + r * in, weight + o * in, out + r * outputs + o, in, outputs)
            BY_ROWS(rows - r, CALL)
#undef CALL
        }
    }
}
