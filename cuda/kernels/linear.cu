// out[r, n] = sum_k x[r, k] * w[n, k] (+ bias[n]), for up to three matrices of one format that share x:
// q, k and v are one launch.
//
// grid (16-row tiles of all three, token rows / (8 * COLS)), THREADS threads.
#include "many.cuh"

template <class F, u32 COLS>
DEVICE void linear(const u32* live, u32 space, const float* x, u32 k, const void* w0, const float* b0, float* o0, u32 n0,
                   const void* w1, const float* b1, float* o1, u32 n1, const void* w2, const float* b2, float* o2, u32 n2) {
    wait_for_previous();
    u32 rows = live[space], first = blockIdx.y * 8 * COLS, tile = blockIdx.x;
    if (first >= rows) return;
    const void* w = w0;
    const float* bias = b0;
    float* out = o0;
    u32 n = n0;
    if (tile >= div_up(n, TILE_N)) tile -= div_up(n, TILE_N), w = w1, bias = b1, out = o1, n = n1;
    if (tile >= div_up(n, TILE_N)) tile -= div_up(n, TILE_N), w = w2, bias = b2, out = o2, n = n2;

    const Matrix<F> weights[1] = {Matrix<F>(w, n, k)};
    const float* mine[COLS];
    for (u32 j = 0; j < COLS; j++) {
        u32 row = first + 8 * j + lane_of() / 4;
        mine[j] = row < rows ? x + (u64)row * k : nullptr;
    }
    float sum[1][COLS][4] = {};
    multiply<F, 1, COLS>(sum, weights, tile, mine, k);
    launch_next();
    reduce<1, COLS>(sum, [&](u32 i, u32 token, const float(&value)[1]) {
        u32 row = first + token, column = tile * TILE_N + i;
        if (row >= rows || column >= n) return;
        out[(u64)row * n + column] = bias ? value[0] + bias[column] : value[0];
    });
}

#define LINEAR(format, cols)                                                                                          \
    KERNEL(THREADS) linear_##format##_##cols(const u32* live, u32 space, const float* x, u32 k, const void* w0,       \
        const float* b0, float* o0, u32 n0, const void* w1, const float* b1, float* o1, u32 n1, const void* w2,       \
        const float* b2, float* o2, u32 n2) {                                                                         \
        linear<Weight##format, cols>(live, space, x, k, w0, b0, o0, n0, w1, b1, o1, n1, w2, b2, o2, n2);              \
    }                                                                                                                 \
    EXPORT(linear_##format##_##cols)

// The same of many rows, already split. grid (token rows / 64, 256-row parts of all three, 1 or the classes of k tiles):
// blocks that read the same weights run together. Sums of single classes go to `partial` [classes][rows][n0 + n1 + n2].
template <class F>
DEVICE void linear_many(const u32* live, u32 space, const u8* split, u32 k, float* partial, const void* w0, const float* b0, float* o0, u32 n0,
                        const void* w1, const float* b1, float* o1, u32 n1, const void* w2, const float* b2, float* o2, u32 n2) {
    wait_for_previous();
    const u32 PART = WARPS * MANY_TILES * TILE_N;
    u32 rows = live[space], first = blockIdx.x * Many<F>::ROWS, part = blockIdx.y, before = 0;
    if (first >= rows) return;
    const void* w = w0;
    const float* bias = b0;
    float* out = o0;
    u32 n = n0;
    if (part >= div_up(n, PART)) part -= div_up(n, PART), before += n, w = w1, bias = b1, out = o1, n = n1;
    if (part >= div_up(n, PART)) part -= div_up(n, PART), before += n, w = w2, bias = b2, out = o2, n = n2;

    const void* const weights[MANY_TILES] = {w, w};
    u32 tile = (part * WARPS + warp_of()) * MANY_TILES, last = div_up(n, TILE_N) - 1;
    const u32 tiles[MANY_TILES] = {min(tile, last), min(tile + 1, last)};
    typename Many<F>::Sums sum = {};
    multiply_many<F>(sum, weights, n, k, tiles, Share(split, div_up(k, TILE_K), tile > last));
    launch_next();
    u32 stride = n;
    if (gridDim.z > 1) stride = n0 + n1 + n2, bias = nullptr, out = partial + (u64)blockIdx.z * gridDim.x * Many<F>::ROWS * stride + before;
    each_result(sum, [&](u32 i, u32 token, float value, float value_of_next) {
        u32 row = first + token, column = tile * TILE_N + i;
        float* to = out + (u64)row * stride + column;
        if (row < rows && column < n) to[0] = bias ? value + bias[column] : value;
        if (row < rows && column + TILE_N < n) to[TILE_N] = bias ? value_of_next + bias[column + TILE_N] : value_of_next;
    });
}

#define LINEAR_MANY(format)                                                                                           \
    KERNEL(THREADS) linear_##format##_many(const u32* live, u32 space, const u8* split, u32 k, float* partial,        \
        const void* w0, const float* b0, float* o0, u32 n0, const void* w1, const float* b1, float* o1, u32 n1,       \
        const void* w2, const float* b2, float* o2, u32 n2) {                                                         \
        linear_many<Weight##format>(live, space, split, k, partial, w0, b0, o0, n0, w1, b1, o1, n1, w2, b2, o2, n2);  \
    }                                                                                                                 \
    EXPORT(linear_##format##_many)
#define LINEAR_ALL(format) LINEAR(format, 1) LINEAR(format, 2) LINEAR(format, 4) LINEAR_MANY(format)

EACH_FORMAT(LINEAR_ALL)

#if HAS_F32
// F32 weights stay row-major and are summed without tensor cores: a warp per output, lane l adds
// columns l, l + 32, ... in ascending order. grid (n / WARPS, rows / 8).
KERNEL(THREADS) linear_F32(const u32* live, u32 space, const float* x, u32 k, const float* w, const float* bias, float* out, u32 n) {
    wait_for_previous();
    const u32 ROWS = 8;
    u32 rows = live[space], first = blockIdx.y * ROWS, column = blockIdx.x * WARPS + warp_of();
    if (first >= rows || column >= n) return;
    float sum[ROWS] = {};
    for (u32 i = lane_of(); i < k; i += 32) {
        float weight = w[(u64)column * k + i];
#pragma unroll
        for (u32 r = 0; r < ROWS; r++)
            if (first + r < rows) sum[r] = fmaf(x[(u64)(first + r) * k + i], weight, sum[r]);
    }
    launch_next();
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
        float value = warp_sum(sum[r]);
        if (lane_of() == 0 && first + r < rows) out[(u64)(first + r) * n + column] = bias ? value + bias[column] : value;
    }
}
EXPORT(linear_F32)
#endif
