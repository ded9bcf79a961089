// Rows of the embedding, decoded from the tiles of weight.cuh: a tied table is stored once, for the
// output projection, and read here.
#include "weight.cuh"

/// A warp reads one step (16 columns) of eight tiles at a time: lane 4 * i + t has columns 4 * t.. of tile i.
/// grid (tiles of k / 8, rows), 32 * STEPS threads: warp s reads step s.
template <class F>
DEVICE void embed(const u32* live, const u32* tokens, const void* table, float* out, u32 vocab, u32 hidden, float scale) {
    wait_for_previous();
    u32 row = blockIdx.y;
    if (row >= live[0]) return;
    u32 token = tokens[row], s = warp_of(), t = lane_of() % 4, chunk = blockIdx.x * 8 + lane_of() / 4;
    Matrix<F> matrix(table, vocab, hidden);
    if (token >= vocab || chunk >= matrix.chunks) return;
    u32 tile_n = token / TILE_N, g = token % 8, upper = token % TILE_N / 8;
    F tile;
    tile.load(matrix.tile(tile_n, chunk), g * 4 + t);
    Scales<F, F::GROUP>::load(tile, matrix.scale(tile_n, chunk), chunk, g);
    const u32 span = F::GROUP ? F::GROUP : 1;
    float d = Scales<F, F::GROUP>::scale(tile, s / span, upper), m = Scales<F, F::GROUP>::minimum(tile, s / span, upper);
    float value[4] = {};
    for (u32 term = 0; term < F::TERMS; term++) {
        u32 a[4];
        tile.fragment(s, term, a);
        for (u32 j = 0; j < 4; j++) {
            u32 pair = a[upper + 2 * (j / 2)];
            value[j] = value[j] + (j % 2 ? bf16_high(pair) : bf16_low(pair));
        }
    }
    for (u32 j = 0; j < 4; j++) {
        u32 column = chunk * TILE_K + 16 * s + 4 * t + j;
        if (column < hidden) out[(u64)row * hidden + column] = scale * fmaf(d, value[j], m);
    }
    launch_next();
}

#define EMBED(format)                                                                                                 \
    KERNEL(128) embed_##format(const u32* live, const u32* tokens, const void* table, float* out, u32 vocab,          \
        u32 hidden, float scale) { embed<Weight##format>(live, tokens, table, out, vocab, hidden, scale); }           \
    EXPORT(embed_##format)

EACH_FORMAT(EMBED)

#if HAS_F32
/// A row-major f32 table. grid (hidden / 512, rows).
KERNEL(128) embed_F32(const u32* live, const u32* tokens, const float* table, float* out, u32 vocab, u32 hidden, float scale) {
    wait_for_previous();
    u32 row = blockIdx.y;
    if (row >= live[0] || tokens[row] >= vocab) return;
    for (u32 i = blockIdx.x * 512 + threadIdx.x; i < hidden && i < (blockIdx.x + 1) * 512; i += 128)
        out[(u64)row * hidden + i] = scale * table[(u64)tokens[row] * hidden + i];
    launch_next();
}
EXPORT(embed_F32)
#endif
