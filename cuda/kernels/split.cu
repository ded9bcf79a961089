// What many.cuh needs around its products: activations split into bf16 terms before them, and sums of classes of k
// tiles added after them.
#include "many.cuh"

/// One tile of k for 32 token rows. grid (tiles of k, token rows / 32), a warp per column tile of eight rows.
KERNEL(32 * SPLIT_COLS) split_terms(const u32* live, u32 space, const float* x, u32 k, u8* split) {
    wait_for_previous();
    u32 rows = live[space], chunk = blockIdx.x, lane = lane_of(), g = lane / 4, t = lane % 4;
    if (blockIdx.y / 2 * 2 * SPLIT_ROWS >= rows) return; // a block may take two tiles: the second is zeros, not stale
    u32 row = blockIdx.y * SPLIT_ROWS + 8 * warp_of() + g;
    const float* mine = row < rows ? x + (u64)row * k : nullptr;
    u8* tile = (u8*)split_tile(split, blockIdx.y, gridDim.x, chunk);
    float total = 0.0f;
#pragma unroll
    for (u32 s = 0; s < STEPS; s++) {
        F32x4 v = load_activations(mine, chunk * TILE_K + 16 * s + 4 * t, k);
        Operand b(v);
        u32 at = split_lane(s, warp_of(), lane);
        ((U32x4*)tile)[at] = {b.term[0][0], b.term[0][1], b.term[1][0], b.term[1][1]};
        ((U32x2*)(tile + 16 * SPLIT_LANES))[at] = {b.term[2][0], b.term[2][1]};
        // The sum of 32 columns, for formats with minima, as product.cuh has it.
        if (s % 2 == 0) total = 0.0f;
        total = total + ((v.x + v.y) + (v.z + v.w));
        if (s % 2 == 0) continue;
        total = total + shuffle_xor(total, 1);
        total = total + shuffle_xor(total, 2);
        if (t == 0) ((float*)(tile + SPLIT_TERMS))[s / 2 * SPLIT_ROWS + 8 * warp_of() + g] = total;
    }
    launch_next();
}
EXPORT(split_terms)

/// The sum over the classes of element `at` of matrices of `elements`, in the order of product.cuh.
DEVICE float add_classes(const float* partial, u32 classes, u64 elements, u64 at) {
    float value = 0.0f;
#pragma unroll 4
    for (u32 c = 0; c < classes; c++) value = value + partial[c * elements + at];
    return value;
}

/// Of up to three matrices that lie side by side in `partial` [classes][rows][n0 + n1 + n2].
/// grid (columns / 256, token rows).
KERNEL(THREADS) join_linear(const u32* live, u32 space, const float* partial, u32 classes, u32 rows, const float* b0, float* o0, u32 n0,
                            const float* b1, float* o1, u32 n1, const float* b2, float* o2, u32 n2) {
    wait_for_previous();
    u32 row = blockIdx.y, column = blockIdx.x * THREADS + threadIdx.x, columns = n0 + n1 + n2;
    if (row >= live[space] || column >= columns) return;
    float value = add_classes(partial, classes, (u64)rows * columns, (u64)row * columns + column);
    const float* bias = b0;
    float* out = o0;
    u32 n = n0;
    if (column >= n) column -= n, bias = b1, out = o1, n = n1;
    if (column >= n) column -= n, bias = b2, out = o2, n = n2;
    out[(u64)row * n + column] = bias ? value + bias[column] : value;
}
EXPORT(join_linear)

/// Of gate and up, side by side in `partial` [classes][rows][2 * n]. grid (n / 256, token rows).
KERNEL(THREADS) join_gate_up(const u32* live, const float* partial, u32 classes, u32 rows, float* out, u32 n, u32 activation) {
    wait_for_previous();
    u32 row = blockIdx.y, column = blockIdx.x * THREADS + threadIdx.x;
    if (row >= live[0] || column >= n) return;
    u64 elements = (u64)rows * 2 * n, at = (u64)row * 2 * n + column;
    float gate = add_classes(partial, classes, elements, at), up = add_classes(partial, classes, elements, at + n);
    out[(u64)row * n + column] = activate(gate, activation) * up;
}
EXPORT(join_gate_up)
