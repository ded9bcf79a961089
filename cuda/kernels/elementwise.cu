// Ops that only move or add: residual add, row gather, copies of KV blocks.
#include "ponder.cuh"

/// residual += delta. grid (n / 256, rows).
KERNEL(256) add(const u32* live, float* residual, const float* delta, u32 n) {
    wait_for_previous();
    u32 i = blockIdx.x * 256 + threadIdx.x;
    if (blockIdx.y >= live[0] || i >= n) return;
    u64 at = (u64)blockIdx.y * n + i;
    residual[at] = residual[at] + delta[at];
    launch_next();
}
EXPORT(add)

/// out[l] = x[index[l]] for the live logit rows. grid (n / 256, logit rows).
KERNEL(256) gather_rows(const u32* live, const float* x, const u32* index, float* out, u32 n) {
    wait_for_previous();
    u32 i = blockIdx.x * 256 + threadIdx.x;
    if (blockIdx.y >= live[1] || i >= n) return;
    out[(u64)blockIdx.y * n + i] = x[(u64)index[blockIdx.y] * n + i];
    launch_next();
}
EXPORT(gather_rows)

/// Copies block pairs[2p] of `cache` to block pairs[2p + 1], `words` 16-byte words each. grid (words / 256, pairs).
KERNEL(256) copy_blocks(const u32* live, const u32* pairs, U32x4* cache, u32 words) {
    wait_for_previous();
    u32 i = blockIdx.x * 256 + threadIdx.x, pair = blockIdx.y;
    if (pair >= live[0] || i >= words) return;
    cache[(u64)pairs[2 * pair + 1] * words + i] = cache[(u64)pairs[2 * pair] * words + i];
    launch_next();
}
EXPORT(copy_blocks)

/// The same for blocks of any number of 4-byte words (scales). grid (words / 256, pairs).
KERNEL(256) copy_blocks_4(const u32* live, const u32* pairs, u32* cache, u32 words) {
    wait_for_previous();
    u32 i = blockIdx.x * 256 + threadIdx.x, pair = blockIdx.y;
    if (pair >= live[0] || i >= words) return;
    cache[(u64)pairs[2 * pair + 1] * words + i] = cache[(u64)pairs[2 * pair] * words + i];
    launch_next();
}
EXPORT(copy_blocks_4)
