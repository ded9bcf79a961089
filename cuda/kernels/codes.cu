// The plain store of one tensor in a cache of FP8 codes. A warp serves a head. A latent vector is two heads: the last
// one, here as everywhere, has a width of its own.
#include "ponder.cuh"

const u32 HEADS_PER_BLOCK = 4;

/// The heads of a row: `dim` elements each, `last` of the last.
struct Heads {
    u32 count, dim, last;
    DEVICE u64 at(u64 row, u32 head) const { return row * ((count - 1) * dim + last) + head * dim; }
    DEVICE u32 width(u32 head) const { return head + 1 < count ? dim : last; }
};

/// Scales are [blocks, kv_heads, block_size]. grid (kv_heads / HEADS_PER_BLOCK, rows).
KERNEL(32 * HEADS_PER_BLOCK) store_codes(const u32* live, const float* x, const i32* slot_mapping, float* scales, u8* cache, u32 kv_heads,
                                         u32 dim, u32 last, u32 block_size) {
    wait_for_previous();
    u32 row = blockIdx.y, head = blockIdx.x * HEADS_PER_BLOCK + warp_of();
    if (row >= live[0] || head >= kv_heads) return;
    i32 slot = slot_mapping[row];
    if (slot < 0) return;
    Heads heads = {kv_heads, dim, last};
    launch_next();
    u64 place = ((u64)slot / block_size * kv_heads + head) * block_size + (u32)slot % block_size;
    KvE2M5::store(x + heads.at(row, head), heads.width(head), cache + heads.at((u32)slot, head), scales + place);
}
EXPORT(store_codes)
