// Attention in the absorbed form of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): all
// heads attend to one vector a token, whose first `latent` elements are the value too. attend.cuh has the
// arithmetic; columns are heads, which read the vector once, two groups of sixteen in a block.
//
// Codes have a scale for the latent part of a token and one for its rope part.
#include "attend.cuh"

const u32 LATENT_THREADS = 256, LATENT_WARPS = LATENT_THREADS / 32;
/// With J 4 the sums of a block are 512 by 32: 64 registers of each thread, twice that in latent_rows.
const u32 T = 4;
/// J in latent_rows: the vectors of an F32 cache leave registers for one group of heads only.
template <class Kv>
DEVICE constexpr u32 rows_j() { return sizeof(typename Kv::Stored) == 4 ? 2 : 4; }

/// The cache as the rows of one sequence see it: [blocks, block_size, latent + rope].
template <class Kv>
struct Latent {
    typedef Kv Format;
    const void *k, *v; // the same
    const u32* table;
    u32 key_dim, value_dim, block_size;
    const float* scales; // [blocks, 2, block_size], of formats that have them
    DEVICE u64 at(u32 token) const { return ((u64)table[token / block_size] * block_size + token % block_size) * key_dim; }
    DEVICE bool turns(u32 d) const { return d == value_dim; }
    DEVICE float ratio(u32 token) const { return value_scale(token) / key_scale(token); }
    DEVICE float key_scale(u32 token) const { return scale(token, 1); }
    DEVICE float value_scale(u32 token) const { return scale(token, 0); }
    DEVICE float scale(u32 token, u32 part) const {
        return scales[(2 * (u64)table[token / block_size] + part) * block_size + token % block_size];
    }
};

#define LATENT_OPERANDS                                                                                               \
    const u32 *live, const float *q, const void *cache, const float *scales, const u32 *positions,                    \
        const u32 *row_seq, const u32 *tables, float *out, u32 heads, u32 latent, u32 rope, u32 block_size,           \
        u32 max_blocks, float scale
#define LATENT_NAMES live, q, cache, scales, positions, row_seq, tables, out, heads, latent, rope, block_size, max_blocks, scale

/// grid (ceil(heads / 32), splits, rows): blocks that read the same tokens run side by side. Writes part_o
/// [rows, heads, splits, latent] and part_ml [.., 2].
template <class Kv>
DEVICE void latent_split(LATENT_OPERANDS, float* part_o, float* part_ml) {
    wait_for_previous();
    const u32 J = 4;
    u32 row = blockIdx.z, kv_head;
    if (row >= live[0]) return;
    Columns columns = columns_of(heads, 1, blockIdx.x, 8 * J, kv_head);
    if (!gather_columns<J>(columns, row, live[0], positions, row_seq, 0)) return;
    Latent<Kv> tokens = {cache, cache, tables + (u64)row_seq[row] * max_blocks, latent + rope, latent, block_size, scales};
    attend_split<Latent<Kv>, J, T, LATENT_WARPS>(tokens, columns, q, heads, blockIdx.y, gridDim.y, scale, part_o, part_ml);
}

/// grid (ceil(heads / (8 * rows_j)), rows).
template <class Kv>
DEVICE void latent_rows(LATENT_OPERANDS) {
    wait_for_previous();
    const u32 J = rows_j<Kv>();
    u32 row = blockIdx.y, kv_head;
    if (row >= live[0]) return;
    Columns columns = columns_of(heads, 1, blockIdx.x, 8 * J, kv_head);
    if (!gather_columns<J>(columns, row, live[0], positions, row_seq, 0)) return;
    Latent<Kv> tokens = {cache, cache, tables + (u64)row_seq[row] * max_blocks, latent + rope, latent, block_size, scales};
    attend_rows<Latent<Kv>, J, T, LATENT_WARPS>(tokens, columns, q, heads, scale, out);
}

/// Merges the splits of each head in ascending order. grid (heads, rows), LATENT_THREADS threads.
KERNEL(LATENT_THREADS) latent_combine(const u32* live, const u32* positions, float* out, u32 heads, u32 latent, const float* part_o,
                                      const float* part_ml, u32 splits) {
    wait_for_previous();
    u32 row = blockIdx.y;
    if (row >= live[0]) return;
    combine<LATENT_THREADS>(row, blockIdx.x, 0, positions[row] + 1, out, heads, latent, part_o, part_ml, splits);
    launch_next();
}
EXPORT(latent_combine)

#define LATENT(kv)                                                                                                    \
    KERNEL(LATENT_THREADS) latent_split_##kv(LATENT_OPERANDS, float* part_o, float* part_ml) {                        \
        latent_split<Kv##kv>(LATENT_NAMES, part_o, part_ml);                                                          \
    }                                                                                                                 \
    EXPORT(latent_split_##kv)                                                                                         \
    KERNEL(LATENT_THREADS) latent_rows_##kv(LATENT_OPERANDS) { latent_rows<Kv##kv>(LATENT_NAMES); }                   \
    EXPORT(latent_rows_##kv)

EACH_CACHE(LATENT)
