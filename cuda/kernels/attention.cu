// Causal grouped-query attention over the paged cache: decoding and prefill alike. attend.cuh has the arithmetic;
// columns are heads of one key head.
#include "attend.cuh"

const u32 ATTENTION_THREADS = 128, ATTENTION_WARPS = ATTENTION_THREADS / 32;

/// The cache as the rows of one sequence see it.
template <class Kv>
struct Cache {
    typedef Kv Format;
    const void *k, *v;
    const u32* table;
    u32 kv_heads, key_dim, value_dim, block_size, kv_head;
    const float *k_scales, *v_scales; // [blocks, kv_heads, block_size], of formats that have them
    DEVICE u64 scale(u32 token) const { return ((u64)table[token / block_size] * kv_heads + kv_head) * block_size + token % block_size; }
    DEVICE u64 at(u32 token) const {
        u64 slot = (u64)table[token / block_size] * block_size + token % block_size;
        return (slot * kv_heads + kv_head) * key_dim;
    }
    DEVICE bool turns(u32) const { return false; }
    DEVICE float ratio(u32) const { return 1.0f; }
    DEVICE float key_scale(u32 token) const { return k_scales[scale(token)]; }
    DEVICE float value_scale(u32 token) const { return v_scales[scale(token)]; }
};

#define ATTENTION_OPERANDS                                                                                            \
    const u32 *live, const float *q, const void *k_cache, const void *v_cache, const u32 *positions,                  \
        const u32 *row_seq, const u32 *tables, float *out, u32 heads, u32 kv_heads, u32 dim, u32 block_size,          \
        u32 max_blocks, float scale, u32 window, const float *k_scales, const float *v_scales
#define ATTENTION_NAMES                                                                                               \
    live, q, k_cache, v_cache, positions, row_seq, tables, out, heads, kv_heads, dim, block_size, max_blocks, scale, window,       \
        k_scales, v_scales

/// grid (splits, kv_heads * ceil(group / 8), rows). Writes part_o [rows, heads, splits, dim] and part_ml [.., 2].
template <class Kv, u32 J, u32 T>
DEVICE void attention_split(ATTENTION_OPERANDS, float* part_o, float* part_ml) {
    wait_for_previous();
    u32 row = blockIdx.z, kv_head;
    if (row >= live[0]) return;
    Columns columns = columns_of(heads, kv_heads, blockIdx.y, 8, kv_head);
    if (!gather_columns<J>(columns, row, live[0], positions, row_seq, window)) return;
    Cache<Kv> cache = {k_cache, v_cache, tables + (u64)row_seq[row] * max_blocks, kv_heads, dim, dim, block_size, kv_head, k_scales, v_scales};
    attend_split<Cache<Kv>, J, T, ATTENTION_WARPS>(cache, columns, q, heads, blockIdx.x, gridDim.x, scale, part_o, part_ml);
}

/// Merges the splits of each head in ascending order. grid (heads, rows), ATTENTION_THREADS threads.
KERNEL(ATTENTION_THREADS) attention_combine(const u32* live, const u32* positions, float* out, u32 heads, u32 dim, u32 window,
                                            const float* part_o, const float* part_ml, u32 splits) {
    wait_for_previous();
    u32 row = blockIdx.y;
    if (row >= live[0]) return;
    u32 end = positions[row] + 1, begin = window && end > window ? end - window : 0;
    combine<ATTENTION_THREADS>(row, blockIdx.x, begin, end, out, heads, dim, part_o, part_ml, splits);
    launch_next();
}
EXPORT(attention_combine)

/// grid (kv_heads * ceil(group / 8), rows).
template <class Kv, u32 J, u32 T>
DEVICE void attention_rows(ATTENTION_OPERANDS) {
    wait_for_previous();
    u32 row = blockIdx.y, kv_head;
    if (row >= live[0]) return;
    Columns columns = columns_of(heads, kv_heads, blockIdx.x, 8, kv_head);
    if (!gather_columns<J>(columns, row, live[0], positions, row_seq, window)) return;
    Cache<Kv> cache = {k_cache, v_cache, tables + (u64)row_seq[row] * max_blocks, kv_heads, dim, dim, block_size, kv_head, k_scales, v_scales};
    attend_rows<Cache<Kv>, J, T, ATTENTION_WARPS>(cache, columns, q, heads, scale, out);
}

// Named by the widest head. Few rows take eight columns a block, many rows as many as registers hold.
#define ATTENTION(kv, width, j)                                                                                       \
    KERNEL(ATTENTION_THREADS) attention_split_##kv##_##width(ATTENTION_OPERANDS, float* part_o, float* part_ml) {     \
        attention_split<Kv##kv, 1, width / 64>(ATTENTION_NAMES, part_o, part_ml);                                     \
    }                                                                                                                 \
    EXPORT(attention_split_##kv##_##width)                                                                            \
    KERNEL(ATTENTION_THREADS) attention_rows_##kv##_##width(ATTENTION_OPERANDS) {                                     \
        attention_rows<Kv##kv, j, width / 64>(ATTENTION_NAMES);                                                       \
    }                                                                                                                 \
    EXPORT(attention_rows_##kv##_##width)
#define ATTENTION_ALL(kv) ATTENTION(kv, 64, 4) ATTENTION(kv, 128, 4) ATTENTION(kv, 256, 2)

EACH_CACHE(ATTENTION_ALL)
