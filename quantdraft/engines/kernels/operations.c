/* The operations of a decoder besides its Linears, for CPUs with AVX2 and FMA: embedding, residual
 * and norm, gate; attention.c has the rest. Each is one call, where a framework makes ten.
 *
 * Every operation takes a pointer to its arguments and returns 0 or the code of a fault, so that a
 * list of operations runs in one call; the products of few_rows.c are operations too. Arguments are
 * structures of pointers, longs and doubles only, which operations.py mirrors.
 *
 * Activations and sums are float32. More threads are used only where the work is large enough.
 */
#include "vectors.h"

typedef struct {
    int (*run)(const void *arguments);
    const void *arguments;
} Operation;

/* Run operations; return 0, or the fault of the operation at which it stopped. */
int run(const Operation *operations, long count) {
    for (long i = 0; i < count; i++) {
        const int fault = operations[i].run(operations[i].arguments);
        if (fault) return fault;
    }
    return 0;
}

/* ---- embedding ---- */

typedef struct {
    const Given *given;
    const void *table;  /* (vocab, size) float32 or bfloat16 */
    float *out;         /* (rows, size) */
    long rows, size, vocab, is_bf16;
} Embedding;

int embedding(const Embedding *a) {
    for (long r = 0; r < a->rows; r++) {
        const int64_t id = a->given->ids[r];
        if (id < 0 || id >= a->vocab) return NO_SUCH_TOKEN;
        float *to = a->out + r * a->size;
        if (!a->is_bf16) {
            memcpy(to, (const float *)a->table + id * a->size, a->size * sizeof(float));
            continue;
        }
        const uint16_t *from = (const uint16_t *)a->table + id * a->size;
        for (long k = 0; k < a->size; k++) {
            const uint32_t bits = (uint32_t)from[k] << 16;
            memcpy(to + k, &bits, sizeof bits);
        }
    }
    return 0;
}

/* ---- residual and norm ---- */

typedef struct {
    const Given *given;
    float *x;            /* (rows, size), to which `added` is added, unless that is NULL */
    const float *added;  /* (rows, size) */
    const float *weight; /* (size) */
    float *out;          /* x / sqrt(mean(x^2) + eps) * weight */
    long rows, size, threads;
    long tokens, picked; /* of `picked_norm`: new tokens a row, and how many are normalized */
    double eps;
} Norm;

INLINE void normalize(const Norm *a, const float *row, float *to) {
    const long size = a->size;
    const __m256 factor = _mm256_set1_ps(inverse_root(squares_of(row, size), size, a->eps));
    for (long k = 0; k < size; k += LANES) {
        const __m256 value = _mm256_mul_ps(some(row + k, size - k), factor);
        put(to + k, _mm256_mul_ps(value, some(a->weight + k, size - k)), size - k);
    }
}

INLINE void add(const float *one, const float *two, float *to, long size) {
    for (long k = 0; k < size; k += LANES)
        put(to + k, _mm256_add_ps(some(one + k, size - k), some(two + k, size - k)), size - k);
}

int add_norm(const Norm *a) {
    const int threads = a->rows * a->size < ELEMENTS_PER_WAKE ? 1 : (int)a->threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < a->rows; r++) {
        float *row = a->x + r * a->size;
        if (a->added) add(row, a->added + r * a->size, row, a->size);
        normalize(a, row, a->out + r * a->size);
    }
    return 0;
}

/* Normalize picked tokens only, for the head: x stays, out is (batch, picked, size). */
int picked_norm(const Norm *a) {
    for (long r = 0; r < a->rows / a->tokens * a->picked; r++) {
        const int64_t at = a->given->at[r];
        if (at < 0 || at >= a->tokens) return NO_SUCH_PLACE;
        const long from = (r / a->picked * a->tokens + at) * a->size;
        float *to = a->out + r * a->size;
        add(a->x + from, a->added + from, to, a->size);
        normalize(a, to, to);
    }
    return 0;
}

/* ---- gate ---- */

typedef struct {
    const float *gate_up;  /* (rows, 2 * size), the gates first */
    float *out;            /* (rows, size) = silu(gate) * up */
    long rows, size, threads;
} Gate;

int multiply_gate(const Gate *a) {
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
    const long size = a->size;
    const int threads = a->rows * size < ELEMENTS_PER_WAKE ? 1 : (int)a->threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < a->rows; r++) {
        const float *gates = a->gate_up + r * 2 * size, *ups = gates + size;
        for (long k = 0; k < size; k += LANES) {
            const __m256 gate = some(gates + k, size - k), up = some(ups + k, size - k);
            const __m256 below = _mm256_add_ps(one, exponential(_mm256_xor_ps(gate, sign)));
            put(a->out + r * size + k, _mm256_mul_ps(_mm256_div_ps(gate, below), up), size - k);
        }
    }
    return 0;
}
