// The gated MLP's first half in one launch: out = act(gate(x)) * up(x), both products from one read of
// x; and the same as a small op. The second half is linear.cu.
#include "many.cuh"

// grid (ffn / 16, token rows / (8 * COLS)).
template <class F, u32 COLS>
DEVICE void gate_up(const u32* live, const float* x, u32 k, const void* gate, const void* up, float* out, u32 n, u32 activation) {
    wait_for_previous();
    u32 rows = live[0], first = blockIdx.y * 8 * COLS;
    if (first >= rows) return;
    const Matrix<F> weights[2] = {Matrix<F>(gate, n, k), Matrix<F>(up, n, k)};
    const float* mine[COLS];
    for (u32 j = 0; j < COLS; j++) {
        u32 row = first + 8 * j + lane_of() / 4;
        mine[j] = row < rows ? x + (u64)row * k : nullptr;
    }
    float sum[2][COLS][4] = {};
    multiply<F, 2, COLS>(sum, weights, blockIdx.x, mine, k);
    launch_next();
    reduce<2, COLS>(sum, [&](u32 i, u32 token, const float(&value)[2]) {
        u32 row = first + token, column = blockIdx.x * TILE_N + i;
        if (row < rows && column < n) out[(u64)row * n + column] = activate(value[0], activation) * value[1];
    });
}

#define GATE_UP(format, cols)                                                                                         \
    KERNEL(THREADS) gate_up_##format##_##cols(const u32* live, const float* x, u32 k, const void* gate,               \
        const void* up, float* out, u32 n, u32 activation) {                                                          \
        gate_up<Weight##format, cols>(live, x, k, gate, up, out, n, activation);                                      \
    }                                                                                                                 \
    EXPORT(gate_up_##format##_##cols)

// The same of many rows, already split; a warp has a tile of each matrix. grid (token rows / 64, ffn / 128, 1 or the
// classes of k tiles). Sums of single classes go to `partial` [classes][rows][gate's n, up's n].
template <class F>
DEVICE void gate_up_many(const u32* live, const u8* split, u32 k, float* partial, const void* gate, const void* up, float* out, u32 n, u32 activation) {
    wait_for_previous();
    u32 rows = live[0], first = blockIdx.x * Many<F>::ROWS;
    if (first >= rows) return;
    const void* const weights[MANY_TILES] = {gate, up};
    u32 tile = blockIdx.y * WARPS + warp_of(), last = div_up(n, TILE_N) - 1;
    const u32 tiles[MANY_TILES] = {min(tile, last), min(tile, last)};
    typename Many<F>::Sums sum = {};
    multiply_many<F>(sum, weights, n, k, tiles, Share(split, div_up(k, TILE_K), tile > last));
    launch_next();
    const u64 plane = (u64)blockIdx.z * gridDim.x * Many<F>::ROWS;
    each_result(sum, [&](u32 i, u32 token, float value, float value_of_up) {
        u32 row = first + token, column = tile * TILE_N + i;
        if (row >= rows || column >= n) return;
        float* part = partial + (plane + row) * 2 * n + column;
        if (gridDim.z > 1) part[0] = value, part[n] = value_of_up;
        else out[(u64)row * n + column] = activate(value, activation) * value_of_up;
    });
}

#define GATE_UP_MANY(format)                                                                                          \
    KERNEL(THREADS) gate_up_##format##_many(const u32* live, const u8* split, u32 k, float* partial,                  \
        const void* gate, const void* up, float* out, u32 n, u32 activation) {                                        \
        gate_up_many<Weight##format>(live, split, k, partial, gate, up, out, n, activation);                          \
    }                                                                                                                 \
    EXPORT(gate_up_##format##_many)
#define GATE_UP_ALL(format) GATE_UP(format, 1) GATE_UP(format, 2) GATE_UP(format, 4) GATE_UP_MANY(format)

EACH_FORMAT(GATE_UP_ALL)

#if HAS_F32 // in the module without tiles
/// out = act(gate) * up, element by element; out may be gate. grid (n / 256, rows).
KERNEL(256) gated_act(const u32* live, const float* gate, const float* up, float* out, u32 n, u32 activation) {
    wait_for_previous();
    u32 i = blockIdx.x * 256 + threadIdx.x;
    if (blockIdx.y >= live[0] || i >= n) return;
    u64 at = (u64)blockIdx.y * n + i;
    out[at] = activate(gate[at], activation) * up[at];
}
EXPORT(gated_act)
#endif
