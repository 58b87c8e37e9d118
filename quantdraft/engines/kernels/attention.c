/* Attention of a few new tokens over a static cache, for CPUs with AVX2 and FMA: normalize
 * and rotate heads, store keys and values, compute every token's output over the slots up to its own.
 *
 * The cache is (batch, 2 * kv heads, slots, padded) of float32 or bfloat16, the keys' heads first.
 * `padded` is head_dim up to the next multiple of 8: queries are zero there, so whatever finite
 * numbers the cache holds there add nothing, and attention needs no tails.
 *
 * The query rows of the heads that share a key are read together. Slots are read in blocks; when a
 * larger score comes, earlier sums are rescaled, so no memory grows with the context.
 */
#include "vectors.h"

#define QUERIES 8   /* query rows that share one reading of the keys */
#define BLOCK 64    /* slots between two updates of the running maximum */
#define SPLIT 256   /* the fewest slots that are worth a thread of their own */
#define MAX_DIM 512
#define PRODUCTS_PER_WAKE 524288L  /* one thread finishes fewer before another one is awake */

/* Self-attention of new tokens: their keys and values go into the cache at their positions, and
 * each token sees the slots up to its own.
 */
typedef struct {
    const Given *given;
    const float *projected;  /* (batch, tokens, heads + 2 * kv heads, dim): queries, keys, values */
    const float *cos, *sin;  /* (slots, dim), the first half of every sine negative: a rotation is
                              * x cos + swapped(x) sin */
    const float *query_norm, *key_norm;  /* (dim), or both NULL */
    void *entries;           /* the cache of this layer */
    float *scratch, *out;    /* `attention_scratch` floats; (batch, tokens, heads, dim) */
    long batch, tokens, heads, kv_heads, dim, padded, slots, is_bf16, threads;
    double eps;
} Attention;

INLINE uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

/* Rotate one head (dim), after its norm where `norm` is given, and multiply it by `scale`. */
static void rotate_head(const float *head, const float *norm, const float *cos, const float *sin,
                   float *restrict to, long dim, double eps, float scale) {
    float x[MAX_DIM];
    const long half = dim / 2;
    const float factor = norm ? inverse_root(squares_of(head, dim), dim, eps) : 1.0f;
    for (long d = 0; d < dim; d++) x[d] = norm ? head[d] * factor * norm[d] : head[d];
    for (long d = 0; d < half; d++) {
        to[d] = (x[d] * cos[d] + x[d + half] * sin[d]) * scale;
        to[d + half] = (x[d + half] * cos[d + half] + x[d] * sin[d + half]) * scale;
    }
}

static void store_head(const Attention *a, const float *head, void *entries, long slot) {
    if (a->is_bf16) {
        uint16_t *to = (uint16_t *)entries + slot * a->padded;
        for (long d = 0; d < a->dim; d++) to[d] = to_bf16(head[d]);
    } else {
        memcpy((float *)entries + slot * a->padded, head, a->dim * sizeof(float));
    }
}

/* Write a token's queries to (batch, kv heads, rows, padded), keys and values to the cache. */
static void rotate_token(const Attention *s, long r, float *queries) {
    const long row = r / s->tokens, token = r % s->tokens, group = s->heads / s->kv_heads;
    const long position = s->given->positions[r], dim = s->dim, rows = s->tokens * group;
    const float *cos = s->cos + position * dim, *sin = s->sin + position * dim;
    const float *head = s->projected + r * (s->heads + 2 * s->kv_heads) * dim;
    const float scale = (float)(1.0 / sqrt((double)dim));
    for (long h = 0; h < s->heads; h++, head += dim) {
        const long pair = row * s->kv_heads + h / group, place = token * group + h % group;
        float *to = queries + (pair * rows + place) * s->padded;
        rotate_head(head, s->query_norm, cos, sin, to, dim, s->eps, scale);
        for (long d = dim; d < s->padded; d++) to[d] = 0.0f;
    }
    float key[MAX_DIM];
    for (long h = 0; h < 2 * s->kv_heads; h++, head += dim) {
        const long slot = (row * 2 * s->kv_heads + h) * s->slots + position;
        const int is_key = h < s->kv_heads;
        if (is_key) rotate_head(head, s->key_norm, cos, sin, key, dim, s->eps, 1.0f);
        store_head(s, is_key ? key : head, s->entries, slot);
    }
}

/* ---- attention ---- */

/* State of up to QUERIES query rows after the slots read so far: acc / sum is their output. */
typedef struct {
    float *most, *sum, *acc;  /* (QUERIES), (QUERIES), (QUERIES, padded) */
} Part;

/* Return the next slots of one head as LANES rows of float32: the cache itself, or `room`, with
 * zeros where fewer are left.
 */
INLINE const float *slots_of(const Attention *s, const void *head, long slot, long left,
                             float *room) {
    const long size = s->padded, count = left < LANES ? left : LANES;
    if (!s->is_bf16) {
        const float *from = (const float *)head + slot * size;
        if (count >= LANES) return from;
        memcpy(room, from, count * size * sizeof(float));
    } else {
        const uint16_t *from = (const uint16_t *)head + slot * size;
        for (long k = 0; k < count * size; k += LANES) {
            const __m128i raw = _mm_loadu_si128((const __m128i *)(from + k));
            const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16);
            _mm256_storeu_ps(room + k, _mm256_castsi256_ps(wide));
        }
    }
    if (count < LANES) memset(room + count * size, 0, (LANES - count) * size * sizeof(float));
    return room;
}

/* Return the products of one query with the keys of LANES slots. */
INLINE __m256 scores_of(const float *query, const float *keys, long size) {
    __m256 sum[LANES];
    for (int j = 0; j < LANES; j++) sum[j] = _mm256_setzero_ps();
    for (long d = 0; d < size; d += LANES) {
        const __m256 q = _mm256_loadu_ps(query + d);
        for (int j = 0; j < LANES; j++)
            sum[j] = _mm256_fmadd_ps(q, _mm256_loadu_ps(keys + j * size + d), sum[j]);
    }
    const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(sum[0], sum[1]), _mm256_hadd_ps(sum[2], sum[3]));
    const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(sum[4], sum[5]), _mm256_hadd_ps(sum[6], sum[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

/* Add weights (count) times values (count, size) to acc (vectors * LANES), in registers. */
INLINE void add_values(const int vectors, const float *weights, const float *values, long count,
                       long size, float *acc) {
    __m256 sum[LANES];
    for (int v = 0; v < vectors; v++) sum[v] = _mm256_loadu_ps(acc + v * LANES);
    for (long j = 0; j < count; j++) {
        const __m256 weight = _mm256_broadcast_ss(weights + j);
        const float *value = values + j * size;
        for (int v = 0; v < vectors; v++)
            sum[v] = _mm256_fmadd_ps(weight, _mm256_loadu_ps(value + v * LANES), sum[v]);
    }
    for (int v = 0; v < vectors; v++) _mm256_storeu_ps(acc + v * LANES, sum[v]);
}

static void add_all_values(const float *weights, const float *values, long count, long size,
                           float *acc) {
    long d = 0;
    for (; d + 8 * LANES <= size; d += 8 * LANES)
        add_values(8, weights, values + d, count, size, acc + d);
    for (; d + 4 * LANES <= size; d += 4 * LANES)
        add_values(4, weights, values + d, count, size, acc + d);
    for (; d < size; d += LANES) add_values(1, weights, values + d, count, size, acc + d);
}

/* Turn the scores of `seen` slots of a block into weights, and rescale earlier sums. */
static void to_weights(float *scores, long seen, long size, float *most, float *sum, float *acc) {
    const long whole = (seen + LANES - 1) / LANES * LANES;
    for (long j = seen; j < whole; j++) scores[j] = -INFINITY;
    __m256 top = _mm256_set1_ps(*most), added = _mm256_setzero_ps();
    for (long j = 0; j < whole; j += LANES) top = _mm256_max_ps(_mm256_loadu_ps(scores + j), top);
    const float largest = largest_of(top);
    const float scale = *most == -INFINITY ? 0.0f : exponential_of(*most - largest);
    for (long j = 0; j < whole; j += LANES) {
        const __m256 away = _mm256_sub_ps(_mm256_loadu_ps(scores + j), _mm256_set1_ps(largest));
        const __m256 weight = exponential(away);
        added = _mm256_add_ps(added, weight);
        _mm256_storeu_ps(scores + j, weight);
    }
    if (scale != 1.0f)
        for (long d = 0; d < size; d += LANES) {
            const __m256 before = _mm256_loadu_ps(acc + d);
            _mm256_storeu_ps(acc + d, _mm256_mul_ps(before, _mm256_set1_ps(scale)));
        }
    *sum = *sum * scale + total(added);
    *most = largest;
}

/* Compute scores, (QUERIES, BLOCK), of `rows` query rows with `count` slots from `start` on. */
INLINE void score(const Attention *s, const float *queries, const long *seen, long rows,
                  const void *keys, long start, long count, float *scores) {
    float room[LANES * MAX_DIM];
    for (long j = 0; j < count; j += LANES) {
        const float *eight = slots_of(s, keys, start + j, count - j, room);
        for (long r = 0; r < rows; r++) {
            if (seen[r] <= j) continue;
            const __m256 found = scores_of(queries + r * s->padded, eight, s->padded);
            _mm256_storeu_ps(scores + r * BLOCK + j, found);
        }
    }
}

INLINE void add_weighted(const Attention *s, const float *weights, const long *seen, long rows,
                         const void *values, long start, long count, float *acc) {
    float room[LANES * MAX_DIM];
    const long size = s->padded, step = s->is_bf16 ? LANES : BLOCK;
    for (long j = 0; j < count; j += step) {
        const float *some_values = s->is_bf16 ? slots_of(s, values, start + j, count - j, room)
                                              : (const float *)values + (start + j) * size;
        for (long r = 0; r < rows; r++) {
            const long left = seen[r] - j < step ? seen[r] - j : step;
            if (left <= 0) continue;
            add_all_values(weights + r * BLOCK + j, some_values, left, size, acc + r * size);
        }
    }
}

/* Run up to QUERIES query rows over slots from..to-1; each row sees those below its limit. */
static void attend_slots(const Attention *s, const float *queries, const long *limits, long rows,
                     const void *keys, const void *values, long from, long to, Part part) {
    float scores[QUERIES * BLOCK];
    long seen[QUERIES];
    for (long start = from; start < to; start += BLOCK) {
        const long count = to - start < BLOCK ? to - start : BLOCK;
        for (long r = 0; r < rows; r++)
            seen[r] = limits[r] - start < count ? limits[r] - start : count;
        score(s, queries, seen, rows, keys, start, count, scores);
        for (long r = 0; r < rows; r++)
            if (seen[r] > 0)
                to_weights(scores + r * BLOCK, seen[r], s->padded, part.most + r, part.sum + r,
                           part.acc + r * s->padded);
        add_weighted(s, scores, seen, rows, values, start, count, part.acc);
    }
}

/* Division of a pass: rows of one (batch row, kv head) in blocks of QUERIES, slots in splits. */
typedef struct {
    long group, rows, blocks, splits, items, part_size;
} Cut;

static Cut cut_of(const Attention *s) {
    Cut cut;
    cut.group = s->heads / s->kv_heads;
    cut.rows = s->tokens * cut.group;
    cut.blocks = (cut.rows + QUERIES - 1) / QUERIES;
    const long whole = s->batch * s->kv_heads * cut.blocks;
    cut.splits = whole < s->threads ? (s->threads + whole - 1) / whole : 1;
    cut.items = whole * cut.splits;
    cut.part_size = QUERIES * (2 + s->padded);
    return cut;
}

static Part part_of(const Cut *cut, float *parts, long item) {
    float *own = parts + item * cut->part_size;
    return (Part){own, own + QUERIES, own + 2 * QUERIES};
}

static void attend_item(const Attention *s, const Cut *cut, const float *queries, float *parts,
                          long item) {
    const long split = item % cut->splits, block = item / cut->splits % cut->blocks;
    const long pair = item / cut->splits / cut->blocks;  /* batch row and kv head */
    const long row = pair / s->kv_heads, first = block * QUERIES;
    const long rows = cut->rows - first < QUERIES ? cut->rows - first : QUERIES;
    long limits[QUERIES], longest = 0;
    const Part part = part_of(cut, parts, item);
    for (long r = 0; r < rows; r++) {
        limits[r] = s->given->positions[row * s->tokens + (first + r) / cut->group] + 1;
        if (limits[r] > longest) longest = limits[r];
        part.most[r] = -INFINITY;
        part.sum[r] = 0.0f;
    }
    memset(part.acc, 0, rows * s->padded * sizeof(float));
    long share = (longest + cut->splits - 1) / cut->splits;
    share = share < SPLIT ? SPLIT : (share + BLOCK - 1) / BLOCK * BLOCK;
    const long from = split * share, to = from + share < longest ? from + share : longest;
    const long width = s->is_bf16 ? sizeof(uint16_t) : sizeof(float);
    const long head_bytes = s->slots * s->padded * width;
    const char *keys = (const char *)s->entries + (row * s->kv_heads + pair) * head_bytes;
    attend_slots(s, queries + (pair * cut->rows + first) * s->padded, limits, rows, keys,
             keys + s->kv_heads * head_bytes, from, to, part);
}

/* Merge the splits of one query row into out (batch, tokens, heads, dim). */
static void merge_splits(const Attention *s, const Cut *cut, const float *parts, long pair,
                         long place) {
    const long first = (pair * cut->blocks + place / QUERIES) * cut->splits, r = place % QUERIES;
    const long row = pair / s->kv_heads, kv_head = pair % s->kv_heads;
    float top = -INFINITY, sum = 0.0f;
    for (long i = 0; i < cut->splits; i++) {
        const Part part = part_of(cut, (float *)parts, first + i);
        if (part.most[r] > top) top = part.most[r];
    }
    float *to = s->out + ((row * s->tokens + place / cut->group) * s->heads + kv_head * cut->group +
                       place % cut->group) * s->dim;
    memset(to, 0, s->dim * sizeof(float));
    for (long i = 0; i < cut->splits; i++) {
        const Part part = part_of(cut, (float *)parts, first + i);
        if (part.sum[r] == 0.0f) continue;  /* a split beyond what this row sees */
        const float weight = cut->splits == 1 ? 1.0f : exponential_of(part.most[r] - top);
        sum += part.sum[r] * weight;
        for (long d = 0; d < s->dim; d++) to[d] += part.acc[r * s->padded + d] * weight;
    }
    for (long d = 0; d < s->dim; d++) to[d] /= sum;
}

/* Return the floats of `scratch` that `attention` needs: rotated queries, and the parts. */
long attention_scratch(const Attention *s) {
    const Cut cut = cut_of(s);
    return s->batch * s->heads * s->tokens * s->padded + cut.items * cut.part_size;
}

int attention(const Attention *s) {
    const long tokens = s->batch * s->tokens, width = (s->heads + 2 * s->kv_heads) * s->dim;
    const Cut cut = cut_of(s);
    float *queries = s->scratch, *parts = s->scratch + tokens * s->heads * s->padded;
    long seen = 0;
    for (long r = 0; r < tokens; r++) {
        const int64_t position = s->given->positions[r];
        if (position < 0 || position >= s->slots) return NO_SUCH_SLOT;
        seen += position + 1;
    }
    const int turners = tokens * width < ELEMENTS_PER_WAKE ? 1 : (int)s->threads;
#pragma omp parallel for num_threads(turners) schedule(static)
    for (long r = 0; r < tokens; r++) rotate_token(s, r, queries);
    const int readers = 2 * seen * s->heads * s->padded < PRODUCTS_PER_WAKE ? 1 : (int)s->threads;
#pragma omp parallel for num_threads(readers) schedule(dynamic)
    for (long item = 0; item < cut.items; item++) attend_item(s, &cut, queries, parts, item);
#pragma omp parallel for num_threads(turners) schedule(static)
    for (long i = 0; i < s->batch * s->kv_heads * cut.rows; i++)
        merge_splits(s, &cut, parts, i / cut.rows, i % cut.rows);
    return 0;
}
