// The matrix product that linear.cu and mlp.cu share: 16 weight rows by up to 32 token rows a block.
//
// Weights are the mma's A side, so one to eight token rows cost one column tile. Activations are f32,
// split into three bf16 terms, which hold all 24 bits of a value; sums are f32.
//
// One order for every number of rows: tile c of k goes to warp c % WARPS, a warp adds its tiles in
// ascending order, and the warps' sums are added in the order of warps. Nothing in it depends on the
// number of token rows, on COLS, or on what else runs.
#pragma once
#include "weight.cuh"

const u32 WARPS = 8, THREADS = 32 * WARPS;

/// Four activations of one token row: columns k0..k0 + 4, zero beyond k or for a missing row.
DEVICE F32x4 load_activations(const float* row, u32 k0, u32 k) {
    if (row == nullptr) return {0.0f, 0.0f, 0.0f, 0.0f};
    if (k0 + 4 <= k && k % 4 == 0) return load_f32x4(row + k0);
    F32x4 v = {0.0f, 0.0f, 0.0f, 0.0f};
    if (k0 < k) v.x = row[k0];
    if (k0 + 1 < k) v.y = row[k0 + 1];
    if (k0 + 2 < k) v.z = row[k0 + 2];
    if (k0 + 3 < k) v.w = row[k0 + 3];
    return v;
}

template <class F>
DEVICE void multiply_step(float (&c)[4], const F& weight, u32 s, const Operand& b) {
    for (u32 term = 0; term < F::TERMS; term++) {
        u32 a[4];
        weight.fragment(s, term, a);
        // The last term of both would be 2^-24 of the product.
#pragma unroll
        for (u32 i = 0; i + term < 3; i++) mma_bf16(c, a, b.term[i][0], b.term[i][1]);
    }
}

/// Adds this warp's share of tile row `tile_n` of W weight matrices to `sum[weight][column tile][fragment]`.
/// `rows[j]` is this lane's token row (lane / 4 of column tile j), null where it is padding.
template <class F, u32 W, u32 COLS>
DEVICE void multiply(float (&sum)[W][COLS][4], const Matrix<F> (&weights)[W], u32 tile_n, const float* const (&rows)[COLS], u32 k) {
    const u32 lane = lane_of(), g = lane / 4, t = lane % 4;
    const u32 span = F::GROUP ? F::GROUP : 1; // steps whose sums share a scale
    for (u32 chunk = warp_of(); chunk < weights[0].chunks; chunk += WARPS) {
        F tile[W];
        for (u32 w = 0; w < W; w++) {
            tile[w].load(weights[w].tile(tile_n, chunk), lane);
            Scales<F, F::GROUP>::load(tile[w], weights[w].scale(tile_n, chunk), chunk, g);
        }
#pragma unroll
        for (u32 group = 0; group < STEPS / span; group++) {
#pragma unroll
            for (u32 j = 0; j < COLS; j++) {
                float part[W][4] = {}, total = 0.0f;
#pragma unroll
                for (u32 s = group * span; s < (group + 1) * span; s++) {
                    F32x4 v = load_activations(rows[j], chunk * TILE_K + 16 * s + 4 * t, k);
                    if (F::MINIMA) total = total + ((v.x + v.y) + (v.z + v.w));
                    Operand b(v);
#pragma unroll
                    for (u32 w = 0; w < W; w++) multiply_step(F::GROUP ? part[w] : sum[w][j], tile[w], s, b);
                }
                if (F::GROUP == 0) continue;
                float totals[2] = {0.0f, 0.0f};
                if (F::MINIMA) {
                    // Lane (g, t) summed its columns of token g; the fragment wants tokens 2t and 2t + 1.
                    total = total + shuffle_xor(total, 1);
                    total = total + shuffle_xor(total, 2);
                    totals[0] = shuffle(total, 8 * t);
                    totals[1] = shuffle(total, 8 * t + 4);
                }
#pragma unroll
                for (u32 w = 0; w < W; w++)
#pragma unroll
                    for (u32 i = 0; i < 4; i++) {
                        float& c = sum[w][j][i];
                        c = fmaf(Scales<F, F::GROUP>::scale(tile[w], group, i / 2), part[w][i], c);
                        if (F::MINIMA) c = fmaf(Scales<F, F::GROUP>::minimum(tile[w], group, i / 2), totals[i % 2], c);
                    }
            }
        }
    }
}

/// Gathers the warps' sums; `finish(n, token, value per weight)` gets each of the 16 x 8 * COLS results once.
template <u32 W, u32 COLS, class Finish>
DEVICE void reduce(const float (&sum)[W][COLS][4], Finish finish) {
    SHARED(float, parts, WARPS * W * COLS * 128);
    const u32 lane = lane_of(), g = lane / 4, t = lane % 4;
    for (u32 w = 0; w < W; w++)
        for (u32 j = 0; j < COLS; j++)
            for (u32 i = 0; i < 4; i++) {
                u32 n = g + 8 * (i / 2), token = j * 8 + 2 * t + i % 2;
                parts[((warp_of() * W + w) * COLS * 8 + token) * 16 + n] = sum[w][j][i];
            }
    __syncthreads();
    for (u32 e = threadIdx.x; e < COLS * 128; e += THREADS) {
        float value[W];
        for (u32 w = 0; w < W; w++) {
            value[w] = 0.0f;
            for (u32 warp = 0; warp < WARPS; warp++) value[w] = value[w] + parts[(warp * W + w) * COLS * 128 + e];
        }
        finish(e % 16, e / 16, value);
    }
}
