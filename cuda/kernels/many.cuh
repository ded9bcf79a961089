// The matrix product of many token rows, as a prefill has them: 256 weight rows by 64 token rows a block (by 32 for
// formats with scales), where product.cuh takes 16 by up to 32. The numbers are the same, bit for bit.
//
// What it saves: a weight is read and made an operand once for a block's token rows, by the one warp that owns its two
// tiles of 16 rows; activations are split into their bf16 terms once for all blocks (split.cu), in the order of
// operands, and come to shared memory by asynchronous copies while the tile before them is multiplied.
//
// The order of product.cuh is kept by visiting the tiles of k class by class, where a class is what one of its
// warps adds: tiles c, c + CLASSES, c + 2 * CLASSES, ... into one accumulator, then the classes in their order.
// Where there are too few blocks to fill a device, classes go to blocks of their own, which store their sums
// for split.cu to add.
#pragma once
#include "product.cuh"

const u32 CLASSES = WARPS; // of product.cuh's warps

/// Weight tiles of a warp.
const u32 MANY_TILES = 2;
/// Column tiles of eight token rows of a block: half as many where a group's sums and scales need registers too; the
/// weights are fewer bytes there. `src/many.rs` knows it.
template <class F>
struct Many {
    static const u32 COLS = F::GROUP ? 4 : 8, ROWS = 8 * COLS;
    typedef float Sums[MANY_TILES][COLS][4];
};

// Split activations of 32 token rows and the columns of one tile: for each step, column tile and lane terms 0 and 1 of
// its Operand (16 bytes), for each the same term 2 (8 bytes); then for each group of 32 columns the rows' sums. Tiles lie
// along k, and then along the rows.
const u32 SPLIT_COLS = 4, SPLIT_ROWS = 8 * SPLIT_COLS, SPLIT_LANES = STEPS * SPLIT_COLS * 32;
const u32 SPLIT_TERMS = 24 * SPLIT_LANES, SPLIT_BYTES = SPLIT_TERMS + 2 * SPLIT_ROWS * 4;

DEVICE const u8* split_tile(const u8* split, u32 tile, u32 chunks, u32 chunk) { return split + ((u64)tile * chunks + chunk) * SPLIT_BYTES; }
/// Which of a tile's lanes has the operand of lane `lane` of a step and column tile.
DEVICE u32 split_lane(u32 step, u32 j, u32 lane) { return (step * SPLIT_COLS + j) * 32 + lane; }

/// Adds the products of one tile of k to `sum[weight tile][column tile][fragment]`, as `multiply` of product.cuh does.
/// `load_next` is called when `weights` is needed no more, or at once where there are registers for both.
/// `terms` has the block's split tiles one after the other; `totals(tile)` is where the sums of one are.
template <class F, class Totals, class Load>
DEVICE void multiply_tile(typename Many<F>::Sums& sum, const F (&weights)[MANY_TILES], const u8* terms, Totals totals, Load load_next) {
    const u32 lane = lane_of(), t = lane % 4;
    const u32 span = F::GROUP ? F::GROUP : 1;  // steps whose sums share a scale
    const u32 PAIR = 2;                        // column tiles under way at once
    const u32 LAST = F::GROUP ? STEPS / span - 1 : 0;
#pragma unroll
    for (u32 group = 0; group < STEPS / span; group++) {
        u32 a[MANY_TILES][span][F::TERMS][4];
        float scale[MANY_TILES][2], minimum[MANY_TILES][2];
#pragma unroll
        for (u32 w = 0; w < MANY_TILES; w++) {
#pragma unroll
            for (u32 s = 0; s < span; s++)
                for (u32 term = 0; term < F::TERMS; term++) weights[w].fragment(group * span + s, term, a[w][s][term]);
            for (u32 h = 0; h < 2; h++) {
                scale[w][h] = Scales<F, F::GROUP>::scale(weights[w], group, h);
                minimum[w][h] = Scales<F, F::GROUP>::minimum(weights[w], group, h);
            }
        }
        if (group == LAST) load_next();
#pragma unroll
        for (u32 j = 0; j < Many<F>::COLS; j += PAIR) {
            float part[MANY_TILES][PAIR][4] = {};
#pragma unroll
            for (u32 s = 0; s < span; s++) {
                u32 b[PAIR][3][2];
                for (u32 p = 0; p < PAIR; p++) {
                    const u8* tile = terms + (j + p) / SPLIT_COLS * SPLIT_TERMS;
                    u32 at = split_lane(group * span + s, (j + p) % SPLIT_COLS, lane);
                    U32x4 first = ((const U32x4*)tile)[at];
                    U32x2 last = ((const U32x2*)(tile + 16 * SPLIT_LANES))[at];
                    b[p][0][0] = first.x, b[p][0][1] = first.y, b[p][1][0] = first.z, b[p][1][1] = first.w;
                    b[p][2][0] = last.x, b[p][2][1] = last.y;
                }
#pragma unroll
                for (u32 term = 0; term < F::TERMS; term++)
#pragma unroll
                    for (u32 i = 0; i + term < 3; i++)
#pragma unroll
                        for (u32 p = 0; p < PAIR; p++)
#pragma unroll
                            for (u32 w = 0; w < MANY_TILES; w++)
                                mma_bf16(F::GROUP ? part[w][p] : sum[w][j + p], a[w][s][term], b[p][i][0], b[p][i][1]);
            }
            if (F::GROUP == 0) continue;
#pragma unroll
            for (u32 p = 0; p < PAIR; p++) {
                U32x2 minima = {0, 0};
                if (F::MINIMA) minima = load_u32x2(totals((j + p) / SPLIT_COLS) + group * SPLIT_ROWS + (j + p) % SPLIT_COLS * 8 + 2 * t);
#pragma unroll
                for (u32 w = 0; w < MANY_TILES; w++)
#pragma unroll
                    for (u32 i = 0; i < 4; i++) {
                        float& c = sum[w][j + p][i];
                        c = fmaf(scale[w][i / 2], part[w][p][i], c);
                        if (F::MINIMA) c = fmaf(minimum[w][i / 2], float_of(i % 2 ? minima.y : minima.x), c);
                    }
            }
        }
    }
}

/// Which part of a product a warp has.
struct Share {
    const u8* split; // the activations of all rows
    u32 first, last; // classes: all of them, or where `gridDim.z` is their number one
    bool idle;       // its weight tiles are beyond the matrix: it only copies
    DEVICE Share(const u8* split, u32 chunks, bool idle) : split(split), first(blockIdx.z), idle(idle) {
        last = gridDim.z == 1 ? min(CLASSES, chunks) : first + 1;
    }
};

/// Adds to `total`, which is zero, the sums of a share's classes: products of tile row `tile_n[w]` of `weights[w]`.
template <class F>
DEVICE void multiply_many(typename Many<F>::Sums& total, const void* const (&weights)[MANY_TILES], u32 n, u32 k,
                          const u32 (&tile_n)[MANY_TILES], const Share& share) {
    const u32 HALVES = Many<F>::COLS / SPLIT_COLS, STAGE = HALVES * SPLIT_TERMS;
    SHARED(u8, stages, 2 * STAGE);
    const u32 chunks = div_up(k, TILE_K);
    auto fetch = [&](u32 chunk, u32 stage) {
        for (u32 half = 0; half < HALVES; half++) {
            const u8* from = split_tile(share.split, blockIdx.x * HALVES + half, chunks, chunk);
            u8* to = stages + stage * STAGE + half * SPLIT_TERMS;
            for (u32 i = 0, mine = 16 * opaque(threadIdx.x); i < SPLIT_TERMS; i += 16 * THREADS) copy_x4(to + mine + i, from + mine + i);
        }
    };
    F next[MANY_TILES];
    auto load = [&](u32 chunk) {
        for (u32 w = 0; w < MANY_TILES; w++) {
            const u32 tile = opaque(tile_n[w]), lane = opaque(lane_of());
            const Matrix<F> matrix(weights[w], opaque(n), k);
            next[w].load(matrix.tile(tile, chunk), lane);
            Scales<F, F::GROUP>::load(next[w], matrix.scale(tile, chunk), chunk, lane / 4);
        }
    };
    u32 chunk = share.first, part = chunk, stage = 0;
    fetch(chunk, stage);
    load(chunk);
    typename Many<F>::Sums sum = {};
    while (part < share.last) {
        u32 after = chunk + CLASSES, its_part = part;
        if (after >= chunks) after = ++its_part;
        // Everyone's copies of this tile have landed, and everyone has done with the tile before it.
        wait_for_copies();
        __syncthreads();
        const bool more = its_part < share.last;
        if (more) fetch(after, stage ^ 1);
        if (!share.idle) {
            const F now[MANY_TILES] = {next[0], next[1]};
            auto totals = [&](u32 half) { return (const float*)(split_tile(share.split, blockIdx.x * HALVES + half, chunks, chunk) + SPLIT_TERMS); };
            multiply_tile(sum, now, stages + stage * STAGE, totals, [&] {
                if (more) load(after);
            });
            if (its_part != part) {
                for (u32 w = 0; w < MANY_TILES; w++)
                    for (u32 j = 0; j < Many<F>::COLS; j++)
                        for (u32 i = 0; i < 4; i++) total[w][j][i] = total[w][j][i] + sum[w][j][i], sum[w][j][i] = 0.0f;
            }
        }
        chunk = after, part = its_part, stage ^= 1;
    }
}

/// Calls `each(n, token, values)` with this lane's elements: row of a weight tile, token row of the block, and the
/// values of the warp's weight tiles.
template <u32 COLS, class Each>
DEVICE void each_result(const float (&sum)[MANY_TILES][COLS][4], Each each) {
    const u32 g = lane_of() / 4, t = lane_of() % 4;
#pragma unroll
    for (u32 j = 0; j < COLS; j++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) each(g + 8 * (i / 2), 8 * j + 2 * t + i % 2, sum[0][j][i], sum[1][j][i]);
}
