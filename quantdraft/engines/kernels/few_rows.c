/* Multiply few rows with weights of 4 to 32 bits: AVX2 and FMA, and wider where flags allow.
 *
 * A draft step multiplies one row by every weight, and most of its time is the reading of weights.
 * They are unpacked in registers, directly before the multiplication, and read once for up to
 * MAX_ROWS rows.
 *
 * FLOAT32, BFLOAT16: inputs are float32 and so are the sums.
 * INT4, INT8: inputs are 16-bit integers with one scale a group, rounded by at most 2^-16 of the
 *     group's largest; their products with weights are added exactly, in 32 bits, up to the
 *     group's end.
 * INT8_DYNAMIC: inputs are 8-bit integers with one scale a row, as compressed-tensors rounds them:
 *     x / (largest / 127.5), half to even, in -128..127. All products are added exactly, in 32 bits.
 *
 * Weights of 4 bits: value = (u - zero) * scale with u in 0..15; since
 * sum((u - zero) x) = sum(u x) - zero sum(x), the zero costs one product a group. A block is four
 * times as many weights as a vector has 16-bit words: its lowest half-bytes are the first quarter of
 * them, and so on. Where a group is no multiple of it: 32 weights, or a vector's half of bytes, whose
 * low halves are the first half of the weights.
 */
#include <float.h>

#include "wide.h"

#define WORDS (2 * WIDE)      /* 16-bit integers of a vector */
#define BYTES 64              /* rows of 8-bit inputs start at multiples of it */
#ifdef BYTE_PRODUCTS
typedef int8_t Level;         /* an 8-bit input as the multiplication takes it */
#else
typedef int16_t Level;        /* without byte products: sums of pairs of them leave 16 bits */
#endif

enum { INT4, INT8, INT8_DYNAMIC, BFLOAT16, FLOAT32 };

typedef struct {
    const float *x;        /* (rows, inputs) */
    float *out;            /* (rows, outputs), rows `stride` apart */
    void *scratch;         /* `product_scratch` bytes */
    const void *weight;    /* (outputs, inputs); of 4 bits: (outputs, inputs / 2) bytes */
    const float *scale;    /* (outputs, inputs / group) of 4 bits, (outputs) of 8 */
    const uint8_t *zero;   /* (outputs, inputs / group) of 4 bits; NULL: 8 throughout */
    const float *bias;     /* (outputs) or NULL */
    const int64_t *order;  /* (inputs), the columns of x as the weight has them, or NULL */
    float *ordered;        /* (rows, inputs) where there is an order */
    long kind, rows, inputs, outputs, group, stride, threads;
} Product;

/* The inputs of a product, converted, in its scratch memory. */
typedef struct {
    int32_t *sums;  /* of 16 bits: of the groups by lane, (rows, groups, WIDE), times -8 where all
                     * zeros are 8; of 8 bits: (rows) */
    float *step;    /* (rows, groups), or (rows) */
    void *levels;   /* (rows, inputs) int16_t or float, or (rows, padded) Level or float */
    long groups, padded;
} Inputs;

static long padded_of(long n) { return (n + BYTES - 1) / BYTES * BYTES; }

static Inputs inputs_of(const Product *a) {
    const long groups = a->group ? a->inputs / a->group : 1;
    int32_t *sums = a->scratch;
    float *step = (float *)(sums + a->rows * groups * WIDE);
    return (Inputs){sums, step, step + a->rows * groups, groups, padded_of(a->inputs)};
}

/* Return the bytes of scratch memory that are enough for a product of any kind. */
long product_scratch(long rows, long inputs, long group) {
    const long groups = group ? inputs / group : 1, width = sizeof(float);
    return rows * (groups * (WIDE + 1) + padded_of(inputs)) * width;
}

/* ---- inputs ---- */

/* Return the largest of n absolute values; `wrong` becomes NaN where one is NaN or infinite. */
INLINE float largest_at(const float *x, long n, float *wrong) {
    FLOATS most = V(setzero_ps)(), nothing = most;
    for (long k = 0; k < n; k += WIDE) {
        const FLOATS value = V(loadu_ps)(x + k);
        most = V(max_ps)(most, V(andnot_ps)(V(set1_ps)(-0.0f), value));
        nothing = V(fmadd_ps)(value, V(setzero_ps)(), nothing);
    }
    *wrong = total_of(nothing);
    return most_of(most);
}

static void to_int16(const Product *a, const float *x, const Inputs *to) {
    for (long g = 0; g < a->rows * to->groups; g++) {
        const float *from = x + g * a->group;
        int16_t *levels = (int16_t *)to->levels + g * a->group;
        float wrong;
        const float largest = largest_at(from, a->group, &wrong);
        const FLOATS inverse = V(set1_ps)(largest > 0.0f ? 32767.0f / largest : 0.0f);
        INTS sum = VI(setzero)();
        for (long k = 0; k < a->group; k += WIDE) {
            int32_t level[WIDE];
            const INTS value = V(cvtps_epi32)(V(mul_ps)(V(loadu_ps)(from + k), inverse));
            VI(storeu)((INTS *)level, value);
            for (long lane = 0; lane < WIDE; lane++) levels[k + lane] = (int16_t)level[lane];
            sum = V(add_epi32)(sum, value);
        }
        to->step[g] = largest / 32767.0f + wrong;
        if (!a->zero) sum = V(mullo_epi32)(sum, V(set1_epi32)(-8));
        VI(storeu)((INTS *)(to->sums + g * WIDE), sum);
    }
}

static void to_int8(const Product *a, const float *x, const Inputs *to) {
    for (long r = 0; r < a->rows; r++) {
        const float *from = x + r * a->inputs;
        Level *levels = (Level *)to->levels + r * to->padded;
        float wrong;
        const float largest = largest_at(from, a->inputs, &wrong);
        const float step = (largest > FLT_MIN ? largest : FLT_MIN) / 127.5f;
        INTS sum = VI(setzero)();
        for (long k = 0; k < a->inputs; k += WIDE) {
            int32_t level[WIDE];
            INTS value = V(cvtps_epi32)(V(div_ps)(V(loadu_ps)(from + k), V(set1_ps)(step)));
            value = V(max_epi32)(V(min_epi32)(value, V(set1_epi32)(127)), V(set1_epi32)(-128));
            VI(storeu)((INTS *)level, value);
            for (long lane = 0; lane < WIDE; lane++) levels[k + lane] = (Level)level[lane];
            sum = V(add_epi32)(sum, value);
        }
        memset(levels + a->inputs, 0, (to->padded - a->inputs) * sizeof(Level));
        to->step[r] = step + wrong;
        to->sums[r] = sum_of(sum);
    }
}

/* Order two vectors of inputs as even columns and odd columns, as bfloat16 weights are read. */
static void to_pairs(const Product *a, const float *x, const Inputs *to) {
    for (long r = 0; r < a->rows; r++) {
        const float *from = x + r * a->inputs;
        float *row = (float *)to->levels + r * to->padded;
        for (long k = 0; k < a->inputs; k += WORDS)
            for (long lane = 0; lane < WIDE; lane++)
                for (long odd = 0; odd < 2; odd++) {
                    const long column = k + 2 * lane + odd;
                    row[k + odd * WIDE + lane] = column < a->inputs ? from[column] : 0.0f;
                }
    }
}

/* ---- up to MAX_ROWS rows times the weights of a few outputs ---- */

/* Loops over a vector of inputs while it is in a register. Counts that the compiler knows, and loops
 * that it unrolls, keep the sums in registers.
 */
#define OUTS 4  /* outputs that share one reading of the inputs */
#define EACH(i, n) _Pragma("GCC unroll 8") for (int i = 0; i < (n); i++)

/* Prefetch the weights of the next outputs at this column: rows in one page of memory are read side
 * by side, and a CPU's own prefetcher follows only one place in a page.
 */
INLINE void fetch_next(const int outs, const void *weight, long next_out) {
    EACH(o, outs) _mm_prefetch((const char *)weight + (o + OUTS) * next_out, _MM_HINT_T0);
}

typedef INTS Sums[MAX_ROWS][OUTS];
typedef FLOATS Totals[MAX_ROWS][OUTS];

INLINE void add_words(const int rows, const int outs, const INTS *weights, const int16_t *x,
                      long next_row, Sums sums) {
    EACH(r, rows) {
        const INTS own = ints_at(x + r * next_row);
        EACH(o, outs) sums[r][o] = WORD_PRODUCTS(sums[r][o], weights[o], own);
    }
}

INLINE void add_floats(const int rows, const int outs, const FLOATS *weights, const float *x,
                       long left, long next_row, Totals totals) {
    EACH(r, rows) {
        const FLOATS own = floats_at(x + r * next_row, left);
        EACH(o, outs) totals[r][o] = V(fmadd_ps)(weights[o], own, totals[r][o]);
    }
}

/* Write the sums of 4 outputs, or of one, times the outputs' `scales` unless these are NULL. */
INLINE void put_totals(const int outs, const FLOATS *totals, const float *scales, float *to) {
    if (outs == 1) {
        *to = total_of(totals[0]) * (scales ? *scales : 1.0f);
    } else {
        const __m128 four = four_totals(totals[0], totals[1], totals[2], totals[3]);
        _mm_storeu_ps(to, scales ? _mm_mul_ps(four, _mm_loadu_ps(scales)) : four);
    }
}

/* Do the same for integer sums, each of which is too large by `less`. */
INLINE void put_sums(const int outs, const INTS *sums, int32_t less, float step,
                     const float *scales, float *to) {
    if (outs == 1) {
        *to = (float)(sum_of(sums[0]) - less) * (step * *scales);
    } else {
        const __m128i four = four_sums(sums[0], sums[1], sums[2], sums[3]);
        const __m128 whole = _mm_cvtepi32_ps(_mm_sub_epi32(four, _mm_set1_epi32(less)));
        _mm_storeu_ps(to, _mm_mul_ps(whole, _mm_mul_ps(_mm_set1_ps(step), _mm_loadu_ps(scales))));
    }
}

INLINE void four_quarters(const int rows, const int outs, const uint8_t *weight, long next_out,
                          const int16_t *x, long in, Sums sums) {
    INTS raw[OUTS], quarter[OUTS];
    fetch_next(outs, weight, next_out);
    EACH(o, outs) raw[o] = ints_at(weight + o * next_out);
    EACH(q, 4) {
        EACH(o, outs) {
            quarter[o] = VI(and)(raw[o], V(set1_epi16)(0x0F));
            raw[o] = V(srli_epi16)(raw[o], 4);
        }
        add_words(rows, outs, quarter, x + q * WORDS, in, sums);
    }
}

INLINE void two_halves(const int rows, const int outs, const uint8_t *weight, long next_out,
                       const int16_t *x, long in, Sums sums) {
    INTS low[OUTS], high[OUTS];
    fetch_next(outs, weight, next_out);
    EACH(o, outs) {
        const INTS raw = V(cvtepu8_epi16)(HALF_FROM(weight + o * next_out));
        low[o] = VI(and)(raw, V(set1_epi16)(0x0F));
        high[o] = V(srli_epi16)(raw, 4);
    }
    add_words(rows, outs, low, x, in, sums);
    add_words(rows, outs, high, x + WORDS, in, sums);
}

#if WIDE == 16
/* Add 32 weights, where a group has no more. */
INLINE void one_vector(const int rows, const int outs, const uint8_t *weight, long next_out,
                       const int16_t *x, long in, Sums sums) {
    INTS wide[OUTS];
    EACH(o, outs) {
        const __m128i raw = _mm_loadu_si128((const __m128i *)(weight + o * next_out));
        const __m128i low = _mm_set1_epi8(0x0F), high = _mm_and_si128(_mm_srli_epi16(raw, 4), low);
        wide[o] = V(cvtepu8_epi16)(_mm256_set_m128i(high, _mm_and_si128(raw, low)));
    }
    add_words(rows, outs, wide, x, in, sums);
}
#endif

INLINE void int4_dot(const int rows, const int outs, const Product *a, const Inputs *in, long row,
                     long out) {
    const long groups = in->groups, group = a->group, next_out = a->inputs / 2;
    const int16_t *x = (const int16_t *)in->levels + row * a->inputs;
    const uint8_t *weight = (const uint8_t *)a->weight + out * next_out;
    Totals totals;
    EACH(r, rows) EACH(o, outs) totals[r][o] = V(setzero_ps)();
    for (long g = 0; g < groups; g++, weight += group / 2, x += group) {
        Sums sums;
        EACH(o, outs) {
            const INTS less = V(set1_epi32)(a->zero ? -a->zero[(out + o) * groups + g] : 1);
            EACH(r, rows) {
                const INTS own = ints_at(in->sums + ((row + r) * groups + g) * WIDE);
                sums[r][o] = a->zero ? V(mullo_epi32)(less, own) : own;
            }
        }
        if (group % (4 * WORDS) == 0)
            for (long k = 0; k < group; k += 4 * WORDS)
                four_quarters(rows, outs, weight + k / 2, next_out, x + k, a->inputs, sums);
#if WIDE == 16
        else if (group == WORDS) one_vector(rows, outs, weight, next_out, x, a->inputs, sums);
#endif
        else two_halves(rows, outs, weight, next_out, x, a->inputs, sums);
        EACH(o, outs) {
            const float scale = a->scale[(out + o) * groups + g];
            EACH(r, rows) {
                const FLOATS factor = V(set1_ps)(scale * in->step[(row + r) * groups + g]);
                totals[r][o] = V(fmadd_ps)(factor, V(cvtepi32_ps)(sums[r][o]), totals[r][o]);
            }
        }
    }
    EACH(r, rows) put_totals(outs, totals[r], NULL, a->out + (row + r) * a->stride + out);
}

INLINE void int8_dot(const int rows, const int outs, const Product *a, const Inputs *in, long row,
                     long out) {
    const int16_t *x = (const int16_t *)in->levels + row * a->inputs;
    const int8_t *weight = (const int8_t *)a->weight + out * a->inputs;
    Totals totals;
    EACH(r, rows) EACH(o, outs) totals[r][o] = V(setzero_ps)();
    for (long g = 0; g < in->groups; g++) {
        Sums sums;
        EACH(r, rows) EACH(o, outs) sums[r][o] = VI(setzero)();
        for (long k = g * a->group; k < (g + 1) * a->group; k += WORDS) {
            INTS wide[OUTS];
            fetch_next(outs, weight + k, a->inputs);
            EACH(o, outs) wide[o] = V(cvtepi8_epi16)(HALF_FROM(weight + o * a->inputs + k));
            add_words(rows, outs, wide, x + k, a->inputs, sums);
        }
        EACH(r, rows) {
            const FLOATS step = V(set1_ps)(in->step[(row + r) * in->groups + g]);
            EACH(o, outs)
                totals[r][o] = V(fmadd_ps)(step, V(cvtepi32_ps)(sums[r][o]), totals[r][o]);
        }
    }
    EACH(r, rows)
        put_totals(outs, totals[r], a->scale + out, a->out + (row + r) * a->stride + out);
}

/* Byte products take unsigned weights: 128 is added, and 128 times the inputs' sum subtracted. */
INLINE void int8_dynamic_dot(const int rows, const int outs, const Product *a, const Inputs *in,
                             long row, long out) {
    const Level *x = (const Level *)in->levels + row * in->padded;
    const int8_t *weight = (const int8_t *)a->weight + out * a->inputs;
    Sums sums;
    EACH(r, rows) EACH(o, outs) sums[r][o] = VI(setzero)();
#ifdef BYTE_PRODUCTS
    const int32_t excess = 128;
    for (long k = 0; k < a->inputs; k += 4 * WIDE) {
        INTS raised[OUTS];
        fetch_next(outs, weight + k, a->inputs);
        EACH(o, outs) {
            const INTS raw = bytes_at(weight + o * a->inputs + k, a->inputs - k);
            raised[o] = VI(xor)(raw, V(set1_epi8)(-128));
        }
        EACH(r, rows) {
            const INTS own = ints_at(x + r * in->padded + k);
            EACH(o, outs) sums[r][o] = BYTE_PRODUCTS(sums[r][o], raised[o], own);
        }
    }
#else
    const int32_t excess = 0;
    for (long k = 0; k < a->inputs; k += WORDS) {
        INTS wide[OUTS];
        fetch_next(outs, weight + k, a->inputs);
        EACH(o, outs) wide[o] = V(cvtepi8_epi16)(HALF_FROM(weight + o * a->inputs + k));
        add_words(rows, outs, wide, x + k, in->padded, sums);
    }
#endif
    EACH(r, rows)
        put_sums(outs, sums[r], excess * in->sums[row + r], in->step[row + r], a->scale + out,
                 a->out + (row + r) * a->stride + out);
}

/* Convert bfloat16, the upper half of a float32: of two neighbours one is shifted, one masked. */
INLINE void bf16_dot(const int rows, const int outs, const Product *a, const Inputs *in, long row,
                     long out) {
    const float *x = (const float *)in->levels + row * in->padded;
    const uint16_t *weight = (const uint16_t *)a->weight + out * a->inputs;
    Totals totals;
    EACH(r, rows) EACH(o, outs) totals[r][o] = V(setzero_ps)();
    for (long k = 0; k < a->inputs; k += WORDS) {
        FLOATS even[OUTS], odd[OUTS];
        fetch_next(outs, weight + k, 2 * a->inputs);
        EACH(o, outs) {
            const INTS raw = bytes_at(weight + o * a->inputs + k, 2 * (a->inputs - k));
            even[o] = AS_FLOATS(V(slli_epi32)(raw, 16));
            odd[o] = AS_FLOATS(VI(and)(raw, V(set1_epi32)((int)0xFFFF0000u)));
        }
        add_floats(rows, outs, even, x + k, WIDE, in->padded, totals);
        add_floats(rows, outs, odd, x + k + WIDE, WIDE, in->padded, totals);
    }
    EACH(r, rows) put_totals(outs, totals[r], NULL, a->out + (row + r) * a->stride + out);
}

INLINE void f32_dot(const int rows, const int outs, const Product *a, const Inputs *in, long row,
                    long out) {
    const float *x = (const float *)in->levels + row * a->inputs;
    const float *weight = (const float *)a->weight + out * a->inputs;
    const long whole = a->inputs / WIDE * WIDE, left = a->inputs - whole;
    FLOATS own[OUTS];
    Totals totals;
    EACH(r, rows) EACH(o, outs) totals[r][o] = V(setzero_ps)();
    for (long k = 0; k < whole; k += WIDE) {
        fetch_next(outs, weight + k, 4 * a->inputs);
        EACH(o, outs) own[o] = V(loadu_ps)(weight + o * a->inputs + k);
        add_floats(rows, outs, own, x + k, WIDE, a->inputs, totals);
    }
    if (left) {
        EACH(o, outs) own[o] = floats_at(weight + o * a->inputs + whole, left);
        add_floats(rows, outs, own, x + whole, left, a->inputs, totals);
    }
    EACH(r, rows) put_totals(outs, totals[r], NULL, a->out + (row + r) * a->stride + out);
}

/* ---- products ---- */

#define ROWS(n, dot) \
    case n: dot(n, OUTS, a, in, row, out); break;
#if MAX_ROWS > 4
#define MORE_ROWS(dot) ROWS(4, dot) ROWS(5, dot)
#else
#define MORE_ROWS(dot)
#endif
/* rows: up to MAX_ROWS; 0: one row times one output, where there are no four left. */
#define SOME_ROWS(dot)                                                                      \
    static void dot##s(const Product *a, const Inputs *in, long row, long rows, long out) { \
        switch (rows) {                                                                     \
            ROWS(1, dot) ROWS(2, dot) ROWS(3, dot) MORE_ROWS(dot)                           \
            case 0: dot(1, 1, a, in, row, out); break;                                      \
            default: dot(MAX_ROWS, OUTS, a, in, row, out);                                  \
        }                                                                                   \
    }
SOME_ROWS(int4_dot)
SOME_ROWS(int8_dot)
SOME_ROWS(int8_dynamic_dot)
SOME_ROWS(bf16_dot)
SOME_ROWS(f32_dot)

typedef void (*Dots)(const Product *, const Inputs *, long, long, long);
typedef void (*Prepare)(const Product *, const float *, const Inputs *);

static const float *in_order(const Product *a) {
    if (!a->order) return a->x;
    for (long r = 0; r < a->rows; r++)
        for (long k = 0; k < a->inputs; k++)
            a->ordered[r * a->inputs + k] = a->x[r * a->inputs + a->order[k]];
    return a->ordered;
}

int multiply(const Product *a) {
    static const Prepare prepare[] = {to_int16, to_int16, to_int8, to_pairs, NULL};
    static const Dots all[] = {int4_dots, int8_dots, int8_dynamic_dots, bf16_dots, f32_dots};
    const float *x = in_order(a);
    Inputs in = inputs_of(a);
    if (prepare[a->kind]) prepare[a->kind](a, x, &in);
    else in.levels = (void *)x;
    const Dots dots = all[a->kind];
    const long passes = (a->rows + MAX_ROWS - 1) / MAX_ROWS, whole = a->outputs / OUTS;
#pragma omp parallel for num_threads((int)a->threads) schedule(static)
    for (long block = 0; block < whole; block++)
        for (long i = 0; i < passes; i++) {
            const long row = i * a->rows / passes, next = (i + 1) * a->rows / passes;
            dots(a, &in, row, next - row, block * OUTS);
        }
    for (long o = whole * OUTS; o < a->outputs; o++)
        for (long row = 0; row < a->rows; row++) dots(a, &in, row, 0, o);
    if (a->bias)
        for (long r = 0; r < a->rows; r++)
            for (long o = 0; o < a->outputs; o++) a->out[r * a->stride + o] += a->bias[o];
    return 0;
}
