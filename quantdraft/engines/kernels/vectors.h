/* Shared by the C files: vectors of eight floats with their tails, and the inputs of a pass. */
#ifndef QUANTDRAFT_VECTORS_H
#define QUANTDRAFT_VECTORS_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 8
#define ELEMENTS_PER_WAKE 65536L  /* one thread finishes fewer before another one is awake */
#define INLINE static inline __attribute__((always_inline))

enum { NO_SUCH_TOKEN = 1, NO_SUCH_SLOT = 2, NO_SUCH_PLACE = 3 };

/* The inputs of a pass: ids and positions (batch, tokens), at (batch, picked) or NULL. */
typedef struct {
    const int64_t *ids, *positions, *at;
} Given;

INLINE __m256i first_lanes(long n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n < LANES ? n : LANES)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* Up to LANES of the n floats that are left; zeros beyond. */
INLINE __m256 some(const float *from, long n) {
    return n >= LANES ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, first_lanes(n));
}

INLINE void put(float *to, __m256 value, long n) {
    if (n >= LANES) _mm256_storeu_ps(to, value);
    else _mm256_maskstore_ps(to, first_lanes(n), value);
}

INLINE float total(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

INLINE float largest_of(__m256 v) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}

/* Return e to the x, within 2 units of the last place; 0 below -87.3, the largest power above 88. A
 * NaN stays a NaN: minima and maxima return their second operand then.
 */
INLINE __m256 exponential(__m256 x) {
    const __m256 low = _mm256_set1_ps(-87.3f);
    const __m256 is_zero = _mm256_cmp_ps(x, low, _CMP_LT_OQ);
    x = _mm256_min_ps(_mm256_set1_ps(88.0f), _mm256_max_ps(low, x));
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    x = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    x = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), x);
    __m256 y = _mm256_set1_ps(1.0f / 5040.0f);  /* the series to x^7 on |x| <= ln 2 / 2 */
    y = _mm256_fmadd_ps(y, x, _mm256_set1_ps(1.0f / 720.0f));
    y = _mm256_fmadd_ps(y, x, _mm256_set1_ps(1.0f / 120.0f));
    y = _mm256_fmadd_ps(y, x, _mm256_set1_ps(1.0f / 24.0f));
    y = _mm256_fmadd_ps(y, x, _mm256_set1_ps(1.0f / 6.0f));
    y = _mm256_fmadd_ps(y, x, _mm256_set1_ps(0.5f));
    y = _mm256_fmadd_ps(y, x, _mm256_set1_ps(1.0f));
    y = _mm256_fmadd_ps(y, x, _mm256_set1_ps(1.0f));
    const __m256i power = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), power));
    return _mm256_andnot_ps(is_zero, y);
}

INLINE float exponential_of(float x) {
    return _mm256_cvtss_f32(exponential(_mm256_set1_ps(x)));
}

INLINE float inverse_root(float squares, long n, double eps) {
    return (float)(1.0 / sqrt((double)squares / (double)n + eps));
}

INLINE float squares_of(const float *x, long n) {
    __m256 one = _mm256_setzero_ps(), two = one;
    for (long k = 0; k < n; k += 2 * LANES) {
        const __m256 a = some(x + k, n - k);
        one = _mm256_fmadd_ps(a, a, one);
        if (n - k > LANES) {
            const __m256 b = some(x + k + LANES, n - k - LANES);
            two = _mm256_fmadd_ps(b, b, two);
        }
    }
    return total(_mm256_add_ps(one, two));
}

#endif
