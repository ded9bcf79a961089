// Causal grouped-query attention over the paged cache.
//
// A sequence is cut into splits of SPLIT tokens at fixed places, whatever the batch. Within a split the
// order of sums is fixed; splits are merged in ascending order. Two ways to run them give the same bits:
// attention_split + attention_combine (a block per split: few rows, long contexts) and attention_rows
// (a block walks all splits of its row: many rows).
#include "ponder.cuh"

const u32 SPLIT = 256, ATTENTION_THREADS = 128, ATTENTION_WARPS = ATTENTION_THREADS / 32, MAX_DIM = 256;

/// Operands that every kernel here takes.
struct Cache {
    const void *k, *v;
    const u32* table; // of this row's sequence
    u32 kv_heads, dim, block_size, kv_head;
    const float *k_scales, *v_scales; // of formats that have them
    DEVICE u64 block(u32 token) const { return (u64)table[token / block_size] * kv_heads + kv_head; }
    DEVICE u64 at(u32 token) const {
        u64 slot = (u64)table[token / block_size] * block_size + token % block_size;
        return (slot * kv_heads + kv_head) * dim;
    }
};
/// Merges a later part of a softmax into an earlier one: the weights of both become relative to the larger maximum.
struct Merge {
    float m, l, keep, take;
    DEVICE Merge(float m0, float l0, float m1, float l1) {
        m = fmaxf(m0, m1);
        keep = l0 == 0.0f ? 0.0f : expf(m0 - m);
        take = expf(m1 - m);
        l = fmaf(l0, keep, l1 * take);
    }
};

/// One split for H query heads of one key head. Lanes in groups of `lanes` share a token, eight values each.
/// Results: `maximum[h]`, `weight[h]` (sum of exponentials) in every thread, and the weighted sum of values
/// of head h in `sums[h * MAX_DIM ..]` (shared), complete after the last barrier inside.
template <class Kv, u32 H>
DEVICE void attend(const Cache& cache, const float (&q)[H][8], u32 begin, u32 end, u32 split, u32 lanes, float scale, float (&maximum)[H],
                   float (&weight)[H], float*& sums) {
    SHARED(float, scores, H * SPLIT);
    SHARED(float, parts, ATTENTION_WARPS * H * MAX_DIM);
    typedef typename Kv::Stored Stored;
    const u32 groups = ATTENTION_THREADS / lanes, group = threadIdx.x / lanes, part = threadIdx.x % lanes;
    const u32 origin = split * SPLIT;
    const bool useful = part * 8 < cache.dim;
    __syncthreads(); // the split before is done with the shared arrays
    for (u32 base = (begin - origin) / groups * groups; base < end - origin; base += groups) {
        u32 token = origin + base + group;
        bool valid = token >= begin && token < end;
        float k[8] = {};
        if (valid && useful) Kv::load8((const Stored*)cache.k + cache.at(token) + part * 8, k);
        // A power of two, so it may be applied to the score: exact here as anywhere.
        float k_scale = Kv::SCALED && valid ? cache.k_scales[cache.block(token)] : 1.0f;
#pragma unroll
        for (u32 h = 0; h < H; h++) {
            float dot = 0.0f;
            for (u32 i = 0; i < 8; i++) dot = fmaf(q[h][i], k[i], dot);
            for (u32 mask = lanes / 2; mask; mask >>= 1) dot = dot + shuffle_xor(dot, mask);
            if (Kv::SCALED) dot = dot * k_scale;
            if (part == 0 && base + group < SPLIT) scores[h * SPLIT + base + group] = valid ? dot * scale : minus_infinity();
        }
    }
    __syncthreads();
    // A warp for each head in turn: maximum, exponentials, their sum.
    const u32 first = begin - origin, last = end - origin;
    for (u32 h = warp_of(); h < H; h += ATTENTION_WARPS) {
        float m = minus_infinity(), l = 0.0f;
        for (u32 i = first + lane_of(); i < last; i += 32) m = fmaxf(m, scores[h * SPLIT + i]);
        m = warp_max(m);
        for (u32 i = first + lane_of(); i < last; i += 32) {
            float e = expf(scores[h * SPLIT + i] - m);
            scores[h * SPLIT + i] = e;
            l = l + e;
        }
        l = warp_sum(l);
        if (lane_of() == 0) parts[2 * h] = m, parts[2 * h + 1] = l;
    }
    __syncthreads();
    for (u32 h = 0; h < H; h++) maximum[h] = parts[2 * h], weight[h] = parts[2 * h + 1];
    float out[H][8] = {};
    for (u32 token = begin / groups * groups + group; token < end; token += groups) {
        float v[8];
        if (token < begin || !useful) continue;
        Kv::load8((const Stored*)cache.v + cache.at(token) + part * 8, v);
        float v_scale = Kv::SCALED ? cache.v_scales[cache.block(token)] : 1.0f;
        if (Kv::SCALED)
            for (u32 i = 0; i < 8; i++) v[i] = v[i] * v_scale;
#pragma unroll
        for (u32 h = 0; h < H; h++)
            for (u32 i = 0; i < 8; i++) out[h][i] = fmaf(scores[h * SPLIT + token - origin], v[i], out[h][i]);
    }
    __syncthreads(); // everyone has read the maxima in `parts`
#pragma unroll
    for (u32 h = 0; h < H; h++)
        for (u32 i = 0; i < 8; i++) {
            float x = out[h][i];
            for (u32 mask = 16; mask >= lanes; mask >>= 1) x = x + shuffle_xor(x, mask);
            if (lane_of() < lanes && useful) parts[(warp_of() * H + h) * MAX_DIM + part * 8 + i] = x;
        }
    __syncthreads();
    // Each thread later reads only what it sums here.
    for (u32 e = threadIdx.x; e < H * MAX_DIM; e += ATTENTION_THREADS) {
        if (e % MAX_DIM >= cache.dim) continue;
        float x = parts[e];
        for (u32 w = 1; w < ATTENTION_WARPS; w++) x = x + parts[w * H * MAX_DIM + e];
        parts[e] = x;
    }
    sums = parts;
}

/// Lanes that share a token: the smallest power of two that covers dim / 8.
DEVICE u32 lanes_for(u32 dim) {
    u32 lanes = 1;
    while (lanes * 8 < dim) lanes *= 2;
    return lanes;
}
template <u32 H>
DEVICE void load_queries(float (&q)[H][8], const float* row, u32 first_head, u32 heads_here, u32 dim, u32 lanes) {
    u32 part = threadIdx.x % lanes;
    for (u32 h = 0; h < H; h++)
        for (u32 i = 0; i < 8; i++)
            q[h][i] = h < heads_here && part * 8 + i < dim ? row[(first_head + h) * dim + part * 8 + i] : 0.0f;
}

#define ATTENTION_OPERANDS                                                                                            \
    const u32 *live, const float *q, const void *k_cache, const void *v_cache, const u32 *positions,                  \
        const u32 *row_seq, const u32 *tables, float *out, u32 heads, u32 kv_heads, u32 dim, u32 block_size,          \
        u32 max_blocks, float scale, u32 window, const float *k_scales, const float *v_scales
#define ATTENTION_NAMES                                                                                               \
    live, q, k_cache, v_cache, positions, row_seq, tables, out, heads, kv_heads, dim, block_size, max_blocks, scale, window,       \
        k_scales, v_scales

/// grid (splits, kv_heads * ceil(group / H), rows). Writes part_o [rows, heads, splits, dim] and part_ml [.., 2].
template <class Kv, u32 H>
DEVICE void attention_split(ATTENTION_OPERANDS, float* part_o, float* part_ml) {
    wait_for_previous();
    u32 row = blockIdx.z, split = blockIdx.x, splits = gridDim.x;
    if (row >= live[0]) return;
    u32 end = positions[row] + 1, begin = window && end > window ? end - window : 0;
    u32 from = max(begin, split * SPLIT), to = min(end, (split + 1) * SPLIT);
    if (from >= to) return;
    u32 group = heads / kv_heads, tiles = div_up(group, H), first = blockIdx.y % tiles * H;
    u32 here = min(H, group - first), kv_head = blockIdx.y / tiles, lanes = lanes_for(dim);
    Cache cache = {k_cache, v_cache, tables + (u64)row_seq[row] * max_blocks, kv_heads, dim, block_size, kv_head, k_scales, v_scales};
    float queries[H][8], maximum[H], weight[H], *sums;
    load_queries<H>(queries, q + (u64)row * heads * dim, kv_head * group + first, here, dim, lanes);
    attend<Kv, H>(cache, queries, from, to, split, lanes, scale, maximum, weight, sums);
    launch_next();
    for (u32 e = threadIdx.x; e < here * MAX_DIM; e += ATTENTION_THREADS) {
        if (e % MAX_DIM >= dim) continue;
        u64 at = ((u64)row * heads + kv_head * group + first + e / MAX_DIM) * splits + split;
        part_o[at * dim + e % MAX_DIM] = sums[e];
    }
#pragma unroll
    for (u32 h = 0; h < H; h++) {
        u64 at = ((u64)row * heads + kv_head * group + first + h) * splits + split;
        if (threadIdx.x == h && h < here) part_ml[2 * at] = maximum[h], part_ml[2 * at + 1] = weight[h];
    }
}

/// Merges the splits of each head in ascending order. grid (heads, rows), ATTENTION_THREADS threads.
KERNEL(ATTENTION_THREADS) attention_combine(const u32* live, const u32* positions, float* out, u32 heads, u32 dim, u32 window,
                                            const float* part_o, const float* part_ml, u32 splits) {
    wait_for_previous();
    u32 row = blockIdx.y, head = blockIdx.x;
    if (row >= live[0]) return;
    u32 end = positions[row] + 1, begin = window && end > window ? end - window : 0;
    u64 at = ((u64)row * heads + head) * splits;
    for (u32 i = threadIdx.x; i < dim; i += ATTENTION_THREADS) {
        float m = minus_infinity(), l = 0.0f, sum = 0.0f;
        for (u32 split = begin / SPLIT; split * SPLIT < end; split++) {
            Merge merge(m, l, part_ml[2 * (at + split)], part_ml[2 * (at + split) + 1]);
            sum = fmaf(sum, merge.keep, part_o[(at + split) * dim + i] * merge.take);
            m = merge.m, l = merge.l;
        }
        out[((u64)row * heads + head) * dim + i] = sum / l;
    }
    launch_next();
}
EXPORT(attention_combine)

/// grid (kv_heads * ceil(group / H), rows).
template <class Kv, u32 H>
DEVICE void attention_rows(ATTENTION_OPERANDS) {
    const u32 MINE = H * MAX_DIM / ATTENTION_THREADS;
    wait_for_previous();
    u32 row = blockIdx.y;
    if (row >= live[0]) return;
    u32 end = positions[row] + 1, begin = window && end > window ? end - window : 0;
    u32 group = heads / kv_heads, tiles = div_up(group, H), first = blockIdx.x % tiles * H;
    u32 here = min(H, group - first), kv_head = blockIdx.x / tiles, lanes = lanes_for(dim);
    Cache cache = {k_cache, v_cache, tables + (u64)row_seq[row] * max_blocks, kv_heads, dim, block_size, kv_head, k_scales, v_scales};
    float queries[H][8], m[H], l[H], sum[MINE];
    load_queries<H>(queries, q + (u64)row * heads * dim, kv_head * group + first, here, dim, lanes);
    for (u32 h = 0; h < H; h++) m[h] = minus_infinity(), l[h] = 0.0f;
    for (u32 j = 0; j < MINE; j++) sum[j] = 0.0f;
    for (u32 split = begin / SPLIT; split * SPLIT < end; split++) {
        float maximum[H], weight[H], *sums;
        attend<Kv, H>(cache, queries, max(begin, split * SPLIT), min(end, (split + 1) * SPLIT), split, lanes, scale, maximum, weight, sums);
#pragma unroll
        for (u32 h = 0; h < H; h++) {
            Merge merge(m[h], l[h], maximum[h], weight[h]);
            // Head h's values lie with MAX_DIM / ATTENTION_THREADS entries per thread.
            for (u32 j = 0; j < MAX_DIM / ATTENTION_THREADS; j++) {
                u32 column = threadIdx.x + j * ATTENTION_THREADS, mine = h * (MAX_DIM / ATTENTION_THREADS) + j;
                if (column < dim) sum[mine] = fmaf(sum[mine], merge.keep, sums[h * MAX_DIM + column] * merge.take);
            }
            m[h] = merge.m, l[h] = merge.l;
        }
    }
    launch_next();
#pragma unroll
    for (u32 h = 0; h < H; h++)
        for (u32 j = 0; j < MAX_DIM / ATTENTION_THREADS; j++) {
            u32 column = threadIdx.x + j * ATTENTION_THREADS;
            if (h < here && column < dim)
                out[((u64)row * heads + kv_head * group + first + h) * dim + column] = sum[h * (MAX_DIM / ATTENTION_THREADS) + j] / l[h];
        }
}

#define ATTENTION(kv, h)                                                                                              \
    KERNEL(ATTENTION_THREADS) attention_split_##kv##_##h(ATTENTION_OPERANDS, float* part_o, float* part_ml) {         \
        attention_split<Kv##kv, h>(ATTENTION_NAMES, part_o, part_ml);                                                 \
    }                                                                                                                 \
    EXPORT(attention_split_##kv##_##h)                                                                                \
    KERNEL(ATTENTION_THREADS) attention_rows_##kv##_##h(ATTENTION_OPERANDS) {                                         \
        attention_rows<Kv##kv, h>(ATTENTION_NAMES);                                                                   \
    }                                                                                                                 \
    EXPORT(attention_rows_##kv##_##h)
#define ATTENTION_ALL(kv) ATTENTION(kv, 1) ATTENTION(kv, 2) ATTENTION(kv, 4) ATTENTION(kv, 8)

EACH_CACHE(ATTENTION_ALL)
