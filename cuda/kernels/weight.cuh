// Weights as they lie on the device, and how each format becomes operands of an mma.
//
// A matrix [n, k] is cut into tiles of 16 rows by 64 columns, stored one after the other along k, so
// that a warp streams contiguous bytes. Within a tile lane l = 4 * g + t owns, for each of four mma
// steps s, rows g and g + 8 and columns 16 * s + 4 * t + {0, 1, 2, 3}: eight values, in the order of the
// A fragment's four registers (register i: row g + 8 * (i & 1), columns 2 * (i >> 1) and + 1 of the four).
// The order of columns inside an mma is ours to choose as long as the activations follow it; this one
// lets a lane load its activations as one float4.
//
// Integers are exact in bf16, so quantised weights enter the mma as plain levels, and scale and minimum
// are applied to the sums of their group in f32. Scales lie behind all tiles; src/weight.rs writes what
// is read here.
#pragma once
#include "ponder.cuh"

const u32 TILE_N = 16, TILE_K = 64, STEPS = 4;

/// (128 + q) in bf16 for a pair of levels below 128, minus `zero`, exactly. `fields` has one level in each half.
DEVICE u32 levels_bf16(u32 fields, u32 zero_bf16x2) { return fma_bf16x2(fields | 0x43004300u, 0x3F803F80u, zero_bf16x2); }
const u32 MINUS_128 = 0xC300C300u, MINUS_136 = 0xC308C308u, MINUS_144 = 0xC310C310u, MINUS_160 = 0xC320C320u;

// Each format: TERMS fragments per step (a weight is their sum), GROUP steps per scale (0: no scales),
// MINIMA, TILE_BYTES, SCALE_BYTES per 16 rows and SCALE_CHUNKS tiles.

struct WeightBF16 {
    static const u32 TERMS = 1, GROUP = 0, MINIMA = 0, TILE_BYTES = 2048, SCALE_BYTES = 0, SCALE_CHUNKS = 1;
    U32x4 step[STEPS];
    DEVICE void load(const u8* tile, u32 lane) {
        for (u32 s = 0; s < STEPS; s++) step[s] = load_stream_x4(tile + (s * 32 + lane) * 16);
    }
    DEVICE void fragment(u32 s, u32, u32 (&a)[4]) const { a[0] = step[s].x, a[1] = step[s].y, a[2] = step[s].z, a[3] = step[s].w; }
};

/// An f16 has 11 significant bits: bf16 holds 8 of them, a second bf16 the rest.
struct WeightF16 {
    static const u32 TERMS = 2, GROUP = 0, MINIMA = 0, TILE_BYTES = 2048, SCALE_BYTES = 0, SCALE_CHUNKS = 1;
    U32x4 step[STEPS];
    DEVICE void load(const u8* tile, u32 lane) {
        for (u32 s = 0; s < STEPS; s++) step[s] = load_stream_x4(tile + (s * 32 + lane) * 16);
    }
    DEVICE void fragment(u32 s, u32 term, u32 (&a)[4]) const {
        const u32 words[4] = {step[s].x, step[s].y, step[s].z, step[s].w};
        for (u32 i = 0; i < 4; i++) {
            float low = f32_of_f16((u16)words[i]), high = f32_of_f16((u16)(words[i] >> 16));
            u32 top = bf16x2_of_f32(low, high);
            a[i] = term == 0 ? top : bf16x2_of_f32(low - bf16_low(top), high - bf16_high(top));
        }
    }
};

/// Levels of BITS bits: 512 bytes of nibbles, then the bits above them. ZERO is -(128 + zero point) twice in bf16.
template <u32 BITS, u32 ZERO>
struct Levels {
    U32x4 low;
    u32 high[BITS == 4 ? 1 : BITS - 4];
    DEVICE void load_levels(const u8* tile, u32 lane) {
        low = load_stream_x4(tile + lane * 16);
        if (BITS > 4)
            for (u32 i = 0; i < BITS - 4; i++) high[i] = load_stream(tile + 512 + (i * 32 + lane) * 4);
    }
    DEVICE void levels(u32 s, u32 (&a)[4]) const {
        u32 nibbles = s == 0 ? low.x : s == 1 ? low.y : s == 2 ? low.z : low.w;
        for (u32 i = 0; i < 4; i++) {
            u32 fields = nibbles >> (4 * i) & 0x000F000Fu;
            if (BITS == 5) fields |= (high[0] >> (4 * s + i) & 0x00010001u) << 4;
            if (BITS == 6) fields |= ((s < 2 ? high[0] : high[BITS == 6 ? 1 : 0]) >> (8 * (s % 2) + 2 * i) & 0x00030003u) << 4;
            a[i] = levels_bf16(fields, ZERO);
        }
    }
};

/// One f16 scale for 32 columns: per 16 rows and tile, [row][2].
struct OneScale {
    static const u32 GROUP = 2, MINIMA = 0, SCALE_BYTES = 64, SCALE_CHUNKS = 1;
    u32 pair[2];
    DEVICE void load_scales(const u8* scales, u32, u32 g) {
        for (u32 h = 0; h < 2; h++) pair[h] = load_stream(scales + (g + 8 * h) * 4);
    }
    DEVICE float scale(u32 group, u32 h) const { return f32_of_f16((u16)(pair[h] >> (16 * group))); }
    DEVICE float minimum(u32, u32) const { return 0.0f; }
};
/// f16 scale and minimum for 32 columns: [row][d0, d1, m0, m1].
struct ScaleAndMinimum {
    static const u32 GROUP = 2, MINIMA = 1, SCALE_BYTES = 128, SCALE_CHUNKS = 1;
    u32 d[2], m[2];
    DEVICE void load_scales(const u8* scales, u32, u32 g) {
        for (u32 h = 0; h < 2; h++) {
            d[h] = load_stream(scales + (g + 8 * h) * 8);
            m[h] = load_stream(scales + (g + 8 * h) * 8 + 4);
        }
    }
    DEVICE float scale(u32 group, u32 h) const { return f32_of_f16((u16)(d[h] >> (16 * group))); }
    DEVICE float minimum(u32 group, u32 h) const { return f32_of_f16((u16)(m[h] >> (16 * group))); }
};
/// 256 columns: [row][5 words]: (d, dmin) in f16, then for each tile (scale 0, scale 1, minimum 0, minimum 1) in bytes.
struct SuperScales {
    static const u32 GROUP = 2, MINIMA = 1, SCALE_BYTES = 320, SCALE_CHUNKS = 4;
    u32 d[2], packed[2];
    DEVICE void load_scales(const u8* scales, u32 chunk, u32 g) {
        for (u32 h = 0; h < 2; h++) {
            d[h] = load_stream(scales + (g + 8 * h) * 20);
            packed[h] = load_stream(scales + (g + 8 * h) * 20 + 4 + chunk % 4 * 4);
        }
    }
    DEVICE float scale(u32 group, u32 h) const { return f32_of_f16((u16)d[h]) * (float)(packed[h] >> (8 * group) & 255); }
    DEVICE float minimum(u32 group, u32 h) const {
        return -f32_of_f16((u16)(d[h] >> 16)) * (float)(packed[h] >> (16 + 8 * group) & 255);
    }
};
/// 256 columns: [row][5 words]: for each tile four int8 scales of 16 columns; last d in f16.
struct SignedScales {
    static const u32 GROUP = 1, MINIMA = 0, SCALE_BYTES = 320, SCALE_CHUNKS = 4;
    u32 d[2], packed[2];
    DEVICE void load_scales(const u8* scales, u32 chunk, u32 g) {
        for (u32 h = 0; h < 2; h++) {
            d[h] = load_stream(scales + (g + 8 * h) * 20 + 16);
            packed[h] = load_stream(scales + (g + 8 * h) * 20 + chunk % 4 * 4);
        }
    }
    DEVICE float scale(u32 group, u32 h) const { return f32_of_f16((u16)d[h]) * (float)(i8)(packed[h] >> (8 * group)); }
    DEVICE float minimum(u32, u32) const { return 0.0f; }
};

template <u32 BITS, u32 ZERO, class S>
struct Quantised : Levels<BITS, ZERO>, S {
    static const u32 TERMS = 1, TILE_BYTES = BITS * 128;
    DEVICE void load(const u8* tile, u32 lane) { this->load_levels(tile, lane); }
    DEVICE void fragment(u32 s, u32, u32 (&a)[4]) const { this->levels(s, a); }
};
typedef Quantised<4, MINUS_136, OneScale> WeightQ4_0;
typedef Quantised<4, MINUS_128, ScaleAndMinimum> WeightQ4_1;
typedef Quantised<5, MINUS_144, OneScale> WeightQ5_0;
typedef Quantised<5, MINUS_128, ScaleAndMinimum> WeightQ5_1;
typedef Quantised<4, MINUS_128, SuperScales> WeightQ4_K;
typedef Quantised<5, MINUS_128, SuperScales> WeightQ5_K;
typedef Quantised<6, MINUS_160, SignedScales> WeightQ6_K;

/// int8: per lane and step eight bytes, register i's pair in bytes 2 * i and 2 * i + 1.
struct WeightQ8_0 : OneScale {
    static const u32 TERMS = 1, TILE_BYTES = 1024;
    U32x4 words[2];
    DEVICE void load(const u8* tile, u32 lane) {
        for (u32 i = 0; i < 2; i++) words[i] = load_stream_x4(tile + (i * 32 + lane) * 16);
    }
    DEVICE void fragment(u32 s, u32, u32 (&a)[4]) const {
        U32x4 w = words[s / 2];
        u32 half[2] = {s % 2 ? w.z : w.x, s % 2 ? w.w : w.y};
        for (u32 i = 0; i < 4; i++) {
            u32 pair = half[i / 2] >> (16 * (i % 2));
            a[i] = bf16x2_of_f32((float)(i8)pair, (float)(i8)(pair >> 8));
        }
    }
};

/// FP8 E4M3 codes as int8 lie in Q8_0, and an f32 scale for 128 columns: per 16 rows and two tiles, [row].
struct WeightF8_E4M3 {
    static const u32 TERMS = 1, GROUP = 4, MINIMA = 0, TILE_BYTES = 1024, SCALE_BYTES = 64, SCALE_CHUNKS = 2;
    U32x4 words[2];
    float d[2];
    DEVICE void load(const u8* tile, u32 lane) {
        for (u32 i = 0; i < 2; i++) words[i] = load_stream_x4(tile + (i * 32 + lane) * 16);
    }
    DEVICE void fragment(u32 s, u32, u32 (&a)[4]) const {
        U32x4 w = words[s / 2];
        u32 half[2] = {s % 2 ? w.z : w.x, s % 2 ? w.w : w.y};
        for (u32 i = 0; i < 4; i++) a[i] = bf16x2_of_f8<3>(half[i / 2] >> (16 * (i % 2)));
    }
    DEVICE void load_scales(const u8* scales, u32, u32 g) {
        for (u32 h = 0; h < 2; h++) d[h] = float_of(load_stream(scales + (g + 8 * h) * 4));
    }
    DEVICE float scale(u32, u32 h) const { return d[h]; }
    DEVICE float minimum(u32, u32) const { return 0.0f; }
};

/// INT4 with a word of scale and zero (the engine's format/int4.rs) for each of WORDS parts of a tile's columns:
/// per 16 rows and CHUNKS tiles, [row][WORDS]. The zero joins the 128 of the level, so no minimum is summed.
template <u32 WORDS, u32 CHUNKS>
struct Int4 {
    static const u32 TERMS = 1, GROUP = STEPS / WORDS, MINIMA = 0, TILE_BYTES = 512, SCALE_BYTES = 64 * WORDS, SCALE_CHUNKS = CHUNKS;
    U32x4 low;
    u32 words[2][WORDS];
    DEVICE void load(const u8* tile, u32 lane) { low = load_stream_x4(tile + lane * 16); }
    DEVICE void load_scales(const u8* scales, u32, u32 g) {
        for (u32 h = 0; h < 2; h++)
            for (u32 w = 0; w < WORDS; w++) words[h][w] = load_stream(scales + ((g + 8 * h) * WORDS + w) * 4);
    }
    DEVICE u32 word(u32 group, u32 h) const { return group == 0 ? words[h][0] : words[h][WORDS - 1]; }
    DEVICE void fragment(u32 s, u32, u32 (&a)[4]) const {
        u32 nibbles = s == 0 ? low.x : s == 1 ? low.y : s == 2 ? low.z : low.w;
        for (u32 i = 0; i < 4; i++) {
            // -(128 + zero) twice in bf16, exactly.
            u32 zero = MINUS_128 | (word(s / GROUP, i % 2) & 15) * 0x00010001u;
            a[i] = levels_bf16(nibbles >> (4 * i) & 0x000F000Fu, zero);
        }
    }
    DEVICE float scale(u32 group, u32 h) const { return float_of(word(group, h) & ~15u); }
    DEVICE float minimum(u32, u32) const { return 0.0f; }
};
typedef Int4<2, 1> WeightI4_G32;
typedef Int4<1, 2> WeightI4_G128;

/// Where the tiles and scales of a matrix begin.
template <class F>
struct Matrix {
    const u8 *tiles, *scales;
    u32 chunks, scale_chunks;
    DEVICE Matrix(const void* w, u32 n, u32 k) {
        chunks = div_up(k, TILE_K);
        scale_chunks = div_up(chunks, F::SCALE_CHUNKS);
        tiles = (const u8*)w;
        scales = tiles + (u64)div_up(n, TILE_N) * chunks * F::TILE_BYTES;
    }
    DEVICE const u8* tile(u32 tile_n, u32 chunk) const { return tiles + ((u64)tile_n * chunks + chunk) * F::TILE_BYTES; }
    DEVICE const u8* scale(u32 tile_n, u32 chunk) const {
        return scales + ((u64)tile_n * scale_chunks + chunk / F::SCALE_CHUNKS) * F::SCALE_BYTES;
    }
};

/// Loads the scales of a tile where the format has any.
template <class F, u32 GROUP>
struct Scales {
    static DEVICE void load(F& f, const u8* scales, u32 chunk, u32 g) { f.load_scales(scales, chunk, g); }
    static DEVICE float scale(const F& f, u32 group, u32 h) { return f.scale(group, h); }
    static DEVICE float minimum(const F& f, u32 group, u32 h) { return f.minimum(group, h); }
};
template <class F>
struct Scales<F, 0> {
    static DEVICE void load(F&, const u8*, u32, u32) {}
    static DEVICE float scale(const F&, u32, u32) { return 1.0f; }
    static DEVICE float minimum(const F&, u32, u32) { return 0.0f; }
};

// A module holds the kernels of one format, named by VARIANT (F32: those that know no tiles), so that a
// model compiles only what it uses. Without VARIANT all are there.
#if !defined(VARIANT)
#define EACH_FORMAT(M) M(F16) M(BF16) M(Q8_0) M(Q4_0) M(Q4_1) M(Q5_0) M(Q5_1) M(Q4_K) M(Q5_K) M(Q6_K) M(F8_E4M3) M(I4_G32) M(I4_G128)
#define HAS_F32 1
#elif VARIANT_F32
#define EACH_FORMAT(M)
#define HAS_F32 1
#else
#define EACH_FORMAT_(M, variant) M(variant)
#define EACH_FORMAT(M) EACH_FORMAT_(M, VARIANT)
#define HAS_F32 0
#endif
