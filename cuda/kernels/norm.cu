// RMS norm, alone or with the residual add before it. One block per row; the sum's order depends on the
// width alone.
#include "ponder.cuh"

const u32 NORM_THREADS = 256;

/// out = x / sqrt(mean(x^2) + eps) * weight over n values that this thread visits with stride NORM_THREADS.
DEVICE void normalise(const float* x, const float* weight, float* out, u32 n, float eps) {
    float square = 0.0f;
    for (u32 i = threadIdx.x; i < n; i += NORM_THREADS) square = fmaf(x[i], x[i], square);
    float scale = 1.0f / sqrtf(block_sum<NORM_THREADS>(square) / (float)n + eps);
    for (u32 i = threadIdx.x; i < n; i += NORM_THREADS) out[i] = x[i] * scale * weight[i];
}

/// residual += delta; out = norm(residual) * weight. grid (1, rows).
KERNEL(NORM_THREADS) add_rms_norm(const u32* live, float* residual, const float* delta, const float* weight, float* out, u32 n, float eps) {
    wait_for_previous();
    u32 row = blockIdx.y;
    if (row >= live[0]) return;
    float* r = residual + (u64)row * n;
    for (u32 i = threadIdx.x; i < n; i += NORM_THREADS) r[i] = r[i] + delta[(u64)row * n + i];
    // Each thread normalises the values that it added, so it sees its own sums.
    normalise(r, weight, out + (u64)row * n, n, eps);
    launch_next();
}
EXPORT(add_rms_norm)

/// Norm of a whole row. grid (1, rows).
KERNEL(NORM_THREADS) rms_norm(const u32* live, const float* x, const float* weight, float* out, u32 n, float eps) {
    wait_for_previous();
    u32 row = blockIdx.y;
    if (row >= live[0]) return;
    normalise(x + (u64)row * n, weight, out + (u64)row * n, n, eps);
    launch_next();
}
EXPORT(rms_norm)

/// Norm of each group of n values of a row, a warp per group; n is a head's width. grid (groups / 8, rows).
KERNEL(NORM_THREADS) rms_norm_groups(const u32* live, const float* x, const float* weight, float* out, u32 groups, u32 n, float eps) {
    wait_for_previous();
    u32 group = blockIdx.x * (NORM_THREADS / 32) + warp_of();
    if (blockIdx.y >= live[0] || group >= groups) return;
    u64 at = ((u64)blockIdx.y * groups + group) * n;
    float square = 0.0f;
    for (u32 i = lane_of(); i < n; i += 32) square = fmaf(x[at + i], x[at + i], square);
    float scale = 1.0f / sqrtf(warp_sum(square) / (float)n + eps);
    for (u32 i = lane_of(); i < n; i += 32) out[at + i] = x[at + i] * scale * weight[i];
    launch_next();
}
EXPORT(rms_norm_groups)
