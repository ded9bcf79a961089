// The store of new keys and values in caches of FP8 codes, after qkv_finish or scales_of has set the
// scales of the blocks that rows begin. A warp serves a head. A latent vector is two heads: the last one, here as
// everywhere, has a width of its own.
#include "ponder.cuh"

const u32 HEADS_PER_BLOCK = 4;

/// Bits of the largest magnitude of a head, the same in every lane.
DEVICE u32 largest_of(const float* x, u32 dim) {
    u32 largest = 0;
    for (u32 i = lane_of(); i < dim; i += 32) largest = max(largest, bits_of(x[i]) & 0x7FFFFFFFu);
    return warp_max(largest);
}

/// The heads of a row: `dim` elements each, `last` of the last.
struct Heads {
    u32 count, dim, last;
    DEVICE u64 at(u64 row, u32 head) const { return row * ((count - 1) * dim + last) + head * dim; }
    DEVICE u32 width(u32 head) const { return head + 1 < count ? dim : last; }
};

/// Sets the scales of blocks that rows begin, for E3M4 (`keys`) or E4M3. grid (kv_heads / HEADS_PER_BLOCK, rows).
KERNEL(32 * HEADS_PER_BLOCK) scales_of(const u32* live, const float* x, const i32* slot_mapping, float* scales, u32 kv_heads, u32 dim,
                                       u32 last, u32 block_size, u32 keys) {
    wait_for_previous();
    u32 row = blockIdx.y, head = blockIdx.x * HEADS_PER_BLOCK + warp_of();
    if (row >= live[0] || head >= kv_heads) return;
    i32 slot = slot_mapping[row];
    if (slot < 0 || (u32)slot % block_size != 0) return;
    Heads heads = {kv_heads, dim, last};
    u32 largest = largest_of(x + heads.at(row, head), heads.width(head));
    launch_next();
    if (lane_of() == 0) scales[(u64)slot / block_size * kv_heads + head] = keys ? KvE3M4::scale(largest) : KvE4M3::scale(largest);
}
EXPORT(scales_of)

/// Stores one tensor, or keys and values, the first `keys` of them as E3M4, the others as E4M3. A head with a value that
/// is no number becomes all NaN codes. grid (kv_heads / HEADS_PER_BLOCK, rows, tensors).
KERNEL(32 * HEADS_PER_BLOCK) store_codes(const u32* live, const i32* slot_mapping, const float* k, const float* k_scales, u8* k_cache,
                                         const float* v, const float* v_scales, u8* v_cache, u32 kv_heads, u32 dim, u32 last, u32 block_size,
                                         u32 keys) {
    wait_for_previous();
    u32 row = blockIdx.y, head = blockIdx.x * HEADS_PER_BLOCK + warp_of();
    if (row >= live[0] || head >= kv_heads) return;
    i32 slot = slot_mapping[row];
    if (slot < 0) return;
    Heads heads = {kv_heads, dim, last};
    u32 width = heads.width(head);
    const float* from = (blockIdx.z == 0 ? k : v) + heads.at(row, head);
    float scale = (blockIdx.z == 0 ? k_scales : v_scales)[(u64)slot / block_size * kv_heads + head];
    u8* to = (blockIdx.z == 0 ? k_cache : v_cache) + heads.at((u32)slot, head);
    float inverse = float_of(0x7F000000u - bits_of(scale)); // of a power of two
    bool broken = largest_of(from, width) >= 0x7F800000u;
    launch_next();
    for (u32 i = lane_of(); i < width; i += 32) {
        float x = from[i] * inverse;
        to[i] = broken ? KvE4M3::NOT_A_NUMBER : blockIdx.z < keys ? KvE3M4::encode(x) : KvE4M3::encode(x);
    }
}
EXPORT(store_codes)
