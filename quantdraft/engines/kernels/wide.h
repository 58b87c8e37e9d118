/* Vectors as wide as the compiler's flags allow, for the products. V(add_ps) is the
 * intrinsic of the widest vectors; FLOATS and INTS are their types, WIDE how many 32-bit lanes.
 */
#ifndef QUANTDRAFT_WIDE_H
#define QUANTDRAFT_WIDE_H

#include "vectors.h"

#ifdef __AVX512VNNI__
#define WIDE 16
#define MAX_ROWS 6  /* rows that share one reading of the weights: with 4 outputs, 24 sums */
#define FLOATS __m512
#define INTS __m512i
#define HALF_INTS __m256i
#define V(name) _mm512_##name
#define VI(name) _mm512_##name##_si512
#define AS_FLOATS _mm512_castsi512_ps
#define HALF_FROM(place) _mm256_loadu_si256((const __m256i *)(place))
#define BYTE_PRODUCTS _mm512_dpbusd_epi32
#define WORD_PRODUCTS _mm512_dpwssd_epi32
#else
#define WIDE 8
#define MAX_ROWS 4
#define FLOATS __m256
#define INTS __m256i
#define HALF_INTS __m128i
#define V(name) _mm256_##name
#define VI(name) _mm256_##name##_si256
#define AS_FLOATS _mm256_castsi256_ps
#define HALF_FROM(place) _mm_loadu_si128((const __m128i *)(place))
#ifdef __AVXVNNI__
#define BYTE_PRODUCTS _mm256_dpbusd_avx_epi32
#define WORD_PRODUCTS _mm256_dpwssd_avx_epi32
#else
#define WORD_PRODUCTS(sum, a, b) _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
#endif
#endif

INLINE INTS ints_at(const void *place) { return VI(loadu)((const INTS *)place); }

/* Load the first n 32-bit lanes, at most a vector; zeros after them. */
INLINE FLOATS floats_at(const float *place, long n) {
#ifdef __AVX512VNNI__
    return n >= WIDE ? V(loadu_ps)(place) : _mm512_maskz_loadu_ps((__mmask16)((1 << n) - 1), place);
#else
    return some(place, n);
#endif
}

/* Load n bytes, 32 or at least a whole vector; zeros after them. */
INLINE INTS bytes_at(const void *place, long n) {
#ifdef __AVX512VNNI__
    return n >= 64 ? ints_at(place) : _mm512_zextsi256_si512(HALF_FROM(place));
#else
    (void)n;
    return ints_at(place);
#endif
}

#ifdef __AVX512VNNI__
INLINE __m256i halves_added(INTS v) {
    return _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
}

INLINE __m256 float_halves_added(FLOATS v) {
    return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
}
#else
INLINE __m256i halves_added(INTS v) { return v; }
INLINE __m256 float_halves_added(FLOATS v) { return v; }
#endif

/* Add up four vectors together: a third of the work of four sums alone. */
INLINE __m128i four_sums(INTS a, INTS b, INTS c, INTS d) {
    const INTS low = V(add_epi32)(V(unpacklo_epi32)(a, b), V(unpackhi_epi32)(a, b));
    const INTS high = V(add_epi32)(V(unpacklo_epi32)(c, d), V(unpackhi_epi32)(c, d));
    const INTS all = V(add_epi32)(V(unpacklo_epi64)(low, high), V(unpackhi_epi64)(low, high));
    const __m256i half = halves_added(all);
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

INLINE __m128 four_totals(FLOATS a, FLOATS b, FLOATS c, FLOATS d) {
    const FLOATS low = V(add_ps)(V(unpacklo_ps)(a, b), V(unpackhi_ps)(a, b));
    const FLOATS high = V(add_ps)(V(unpacklo_ps)(c, d), V(unpackhi_ps)(c, d));
    const FLOATS all = V(add_ps)(V(shuffle_ps)(low, high, 0x44), V(shuffle_ps)(low, high, 0xEE));
    const __m256 half = float_halves_added(all);
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

INLINE float total_of(FLOATS v) { return _mm_cvtss_f32(four_totals(v, v, v, v)); }
INLINE int32_t sum_of(INTS v) { return _mm_cvtsi128_si32(four_sums(v, v, v, v)); }

INLINE float most_of(FLOATS v) {
    float lanes[WIDE], most = 0.0f;
    V(storeu_ps)(lanes, v);
    for (int lane = 0; lane < WIDE; lane++) most = lanes[lane] > most ? lanes[lane] : most;
    return most;
}

#endif
