// What follows the q, k and v products: norm of heads, RoPE, the transform of those whose keys become codes, the
// store into the paged cache, in one launch; and the same as small ops. A warp holds a head in shared memory.
#include "ponder.cuh"

const u32 HEADS_PER_BLOCK = 4, MAX_DIM = 256;

/// Rotates the first `dim` values of `head` in place; all lanes of the warp. `pairing` 0: (2i, 2i + 1), 1: (i, i + dim / 2).
DEVICE void rotate(float* head, const float* rope, u32 dim, u32 pairing) {
    for (u32 i = lane_of(); i < dim / 2; i += 32) {
        u32 a = pairing == 0 ? 2 * i : i, b = pairing == 0 ? 2 * i + 1 : i + dim / 2;
        float c = rope[2 * i], s = rope[2 * i + 1], x = head[a], y = head[b];
        head[a] = fmaf(x, c, -(y * s));
        head[b] = fmaf(x, s, y * c);
    }
}

/// The transform of the engine's `format::hadamard`, of `head` in place; all lanes of the warp. Runs of `run` values,
/// a power of two; nothing where that is 1.
DEVICE void hadamard(float* head, u32 dim, u32 run) {
    for (u32 apart = 1; apart < run; apart *= 2) {
        float factor = 2 * apart == run ? 1.0f / sqrtf((float)run) : 1.0f;
        for (u32 i = lane_of(); i < dim / 2; i += 32) {
            u32 at = 2 * i - i % apart;
            float a = head[at], b = head[at + apart];
            head[at] = (a + b) * factor;
            head[at + apart] = (a - b) * factor;
        }
        __syncwarp();
    }
}

/// grid ((heads + 2 * kv_heads) / HEADS_PER_BLOCK, rows): first the heads of q, then of k, then of v.
template <class Kv>
DEVICE void qkv_finish(const u32* live, float* q, const float* k, const float* v, const float* norm_q, const float* norm_k, float eps,
                       const float* rope, u32 rope_dim, u32 pairing, const i32* slot_mapping, void* k_cache, void* v_cache, u32 heads,
                       u32 kv_heads, u32 dim, float* k_scales, float* v_scales, u32 block_size, u32 run) {
    SHARED(float, shared, HEADS_PER_BLOCK * MAX_DIM);
    wait_for_previous();
    u32 row = blockIdx.y, head = blockIdx.x * HEADS_PER_BLOCK + warp_of();
    if (row >= live[0] || head >= heads + 2 * kv_heads) return;
    u32 part = head < heads ? 0 : head < heads + kv_heads ? 1 : 2; // q, k, v
    u32 local = part == 0 ? head : part == 1 ? head - heads : head - heads - kv_heads;
    const float* from = part == 0 ? q + ((u64)row * heads + local) * dim : (part == 1 ? k : v) + ((u64)row * kv_heads + local) * dim;
    const float* norm = part == 0 ? norm_q : part == 1 ? norm_k : nullptr;
    float* mine = shared + warp_of() * MAX_DIM;

    float square = 0.0f;
    for (u32 i = lane_of(); i < dim; i += 32) {
        mine[i] = from[i];
        square = fmaf(mine[i], mine[i], square);
    }
    if (norm) {
        float scale = 1.0f / sqrtf(warp_sum(square) / (float)dim + eps);
        for (u32 i = lane_of(); i < dim; i += 32) mine[i] = mine[i] * scale * norm[i];
    }
    __syncwarp();
    if (part != 2) rotate(mine, rope + (u64)row * rope_dim, rope_dim, pairing);
    __syncwarp();
    if (part != 2) hadamard(mine, dim, run);
    launch_next();
    if (part == 0) {
        for (u32 i = lane_of(); i < dim; i += 32) q[((u64)row * heads + local) * dim + i] = mine[i];
        return;
    }
    i32 slot = slot_mapping[row];
    if (slot < 0) return;
    typename Kv::Stored* to = (typename Kv::Stored*)(part == 1 ? k_cache : v_cache) + ((u64)slot * kv_heads + local) * dim;
    if (Kv::SCALED) {
        u64 place = ((u64)slot / block_size * kv_heads + local) * block_size + (u32)slot % block_size;
        return KvE2M5::store(mine, dim, (u8*)to, (part == 1 ? k_scales : v_scales) + place);
    }
    for (u32 i = lane_of(); i < dim; i += 32) to[i] = Kv::encode(mine[i]);
}

/// Rounds x to the cache's format and stores it at each row's slot. grid (width / 256, rows).
template <class Kv>
DEVICE void kv_store(const u32* live, const float* x, const i32* slot_mapping, void* cache, u32 width) {
    wait_for_previous();
    u32 i = blockIdx.x * 256 + threadIdx.x, row = blockIdx.y;
    if (row >= live[0] || i >= width || slot_mapping[row] < 0) return;
    ((typename Kv::Stored*)cache)[(u64)slot_mapping[row] * width + i] = Kv::encode(x[(u64)row * width + i]);
    launch_next();
}

#define FINISH(kv)                                                                                                    \
    KERNEL(32 * HEADS_PER_BLOCK) qkv_finish_##kv(const u32* live, float* q, const float* k, const float* v,           \
        const float* norm_q, const float* norm_k, float eps, const float* rope, u32 rope_dim, u32 pairing,            \
        const i32* slot_mapping, void* k_cache, void* v_cache, u32 heads, u32 kv_heads, u32 dim, float* k_scales,     \
        float* v_scales, u32 block_size, u32 run) {                                                                   \
        qkv_finish<Kv##kv>(live, q, k, v, norm_q, norm_k, eps, rope, rope_dim, pairing, slot_mapping, k_cache,        \
            v_cache, heads, kv_heads, dim, k_scales, v_scales, block_size, run);                                      \
    }                                                                                                                 \
    EXPORT(qkv_finish_##kv)
#define STORE(kv)                                                                                                     \
    KERNEL(256) kv_store_##kv(const u32* live, const float* x, const i32* slot_mapping, void* cache, u32 width) {     \
        kv_store<Kv##kv>(live, x, slot_mapping, cache, width);                                                        \
    }                                                                                                                 \
    EXPORT(kv_store_##kv)

EACH_CACHE(FINISH)
EACH_PLAIN_CACHE(STORE)

/// RoPE as a small op. grid (heads / HEADS_PER_BLOCK, rows).
KERNEL(32 * HEADS_PER_BLOCK) apply_rope(const u32* live, float* x, const float* rope, u32 heads, u32 head_dim, u32 dim, u32 pairing,
                                        u32 run) {
    wait_for_previous();
    u32 row = blockIdx.y, head = blockIdx.x * HEADS_PER_BLOCK + warp_of();
    if (row >= live[0] || head >= heads) return;
    float* mine = x + ((u64)row * heads + head) * head_dim;
    rotate(mine, rope + (u64)row * dim, dim, pairing);
    __syncwarp();
    hadamard(mine, head_dim, run);
    launch_next();
}
EXPORT(apply_rope)
