// Softmax over the tokens of a paged cache, on tensor cores: what attention.cu and latent.cu share.
//
// A column is one head of one row. A block takes up to 8 * J columns that attend to the same vectors of one
// sequence, so that those are read once: the heads of a decoded row, or those of neighbouring rows of a chunk.
// Keys and values are the mma's A side, straight from the cache: which dimension or token a position inside an
// mma stands for is ours to choose as long as both sides agree, and is chosen so that a lane loads neighbours.
//
// A sequence is cut into splits of SPLIT tokens at fixed places, whatever the batch. A score adds up along
// the key; within a split the sums go over tokens in ascending order; splits are merged in ascending order.
// So neither the columns beside one, nor J, nor the way to run the splits changes a bit: attend_split +
// combine (a block per split: few rows) or attend_rows (a block walks all splits: many rows).
//
// Queries and weights are three bf16 terms, keys and values as many as hold their bits.
//
// A kernel brings the cache as the rows of one sequence see it, a type C:
//   Format              of what lies at k and at v
//   k, v                const void*: stored vectors
//   key_dim, value_dim  elements of a key, elements of a value from its beginning
//   at(token)           its first element, in k and in v
//   turns(d)            whether keys from element d on, a multiple of 32, have another scale than before
//   ratio(token)        the scale before over the one after
//   key_scale(token)    of a key's last elements
//   value_scale(token)
#pragma once
#include "ponder.cuh"

const u32 SPLIT = 256;
/// Words between the scores of two columns: 4 beyond a multiple of 32, so that fragments meet few banks twice.
const u32 STRIDE = SPLIT + 4;

template <u32 BYTES>
DEVICE void load_words(u32* w, const void* p) {
    if (BYTES == 2) w[0] = *(const u16*)p;
    if (BYTES == 4) w[0] = *(const u32*)p;
    if (BYTES == 8) {
        U32x2 a = load_u32x2(p);
        w[0] = a.x, w[1] = a.y;
    }
    for (u32 i = 0; i < BYTES / 16; i++) {
        U32x4 a = load_u32x4((const u8*)p + 16 * i);
        w[4 * i] = a.x, w[4 * i + 1] = a.y, w[4 * i + 2] = a.z, w[4 * i + 3] = a.w;
    }
}

// N stored neighbours of one token. `pair(i, term)`: elements 2i and 2i + 1 as bf16, whose TERMS terms add up
// to them. `broken()`: some are not finite.
template <class Kv, u32 N>
struct Run;
template <u32 N>
struct Run<KvBF16, N> {
    static const u32 TERMS = 1, WORDS = N / 2;
    u32 w[WORDS];
    DEVICE void load(const u16* p) { load_words<2 * N>(w, p); }
    DEVICE u32 pair(u32 i, u32) const { return w[i]; }
    DEVICE bool broken() const {
        bool found = false;
        for (u32 i = 0; i < WORDS; i++) found = found || (w[i] & 0x7F80u) == 0x7F80u || (w[i] & 0x7F800000u) == 0x7F800000u;
        return found;
    }
};
template <u32 N>
struct Run<KvF16, N> {
    static const u32 TERMS = 2, WORDS = N / 2;
    u32 w[WORDS];
    DEVICE void load(const u16* p) { load_words<2 * N>(w, p); }
    DEVICE u32 pair(u32 i, u32 term) const {
        float low = f32_of_f16((u16)w[i]), high = f32_of_f16((u16)(w[i] >> 16));
        u32 top = bf16x2_of_f32(low, high);
        return term == 0 ? top : bf16x2_of_f32(low - bf16_low(top), high - bf16_high(top));
    }
    DEVICE bool broken() const {
        bool found = false;
        for (u32 i = 0; i < WORDS; i++) found = found || (w[i] & 0x7C00u) == 0x7C00u || (w[i] & 0x7C000000u) == 0x7C000000u;
        return found;
    }
};
template <u32 N>
struct Run<KvF32, N> {
    static const u32 TERMS = 3, WORDS = N;
    u32 w[WORDS];
    DEVICE void load(const float* p) { load_words<4 * N>(w, p); }
    DEVICE u32 pair(u32 i, u32 term) const {
        float low = float_of(w[2 * i]), high = float_of(w[2 * i + 1]);
        u32 top = bf16x2_of_f32(low, high);
        for (u32 n = 0; n < term; n++) {
            low = low - bf16_low(top), high = high - bf16_high(top);
            top = bf16x2_of_f32(low, high);
        }
        return top;
    }
    DEVICE bool broken() const {
        bool found = false;
        for (u32 i = 0; i < WORDS; i++) found = found || (w[i] & 0x7F800000u) == 0x7F800000u;
        return found;
    }
};
template <u32 N>
struct Run<KvE2M5, N> {
    static const u32 TERMS = 1, WORDS = (N + 3) / 4;
    u32 w[WORDS];
    DEVICE void load(const u8* p) { load_words<N>(w, p); }
    DEVICE u32 pair(u32 i, u32) const { return bf16x2_of_f8<5>(w[i / 2] >> (16 * (i % 2))); }
    /// Never: that a scale tells.
    DEVICE bool broken() const { return false; }
};

/// Merges a later part of a softmax into an earlier one: the weights of both become relative to the larger maximum.
struct Merge {
    float m, l, keep, take;
    DEVICE Merge(float m0, float l0, float m1, float l1) {
        m = fmaxf(m0, m1);
        keep = l0 == 0.0f ? 0.0f : expf(m0 - m);
        take = expf(m1 - m);
        l = fmaf(l0, keep, l1 * take);
    }
};

/// The columns of a block: `each` heads of each of its rows, `heads` of them real.
struct Columns {
    u32 row, rows, each, heads, first_head; // first_head counts from the row's first
    /// Shared: tokens [begin, end) of each column; maximum and sum of exponentials of its present split.
    u32 *begin, *end;
    float *maximum, *weight;
    u32 lowest, highest;       // tokens that some column sees
    u32 all_begin, all_end;    // tokens that every real column sees
    DEVICE u32 count() const { return rows * each; }
    DEVICE bool real(u32 c) const { return c < count() && c % each < heads; }
    DEVICE bool sees(u32 c, u32 token) const { return token >= begin[c] && token < end[c]; }
    DEVICE bool any_of(u32 c, u32 split) const { return max(begin[c], split * SPLIT) < min(end[c], (split + 1) * SPLIT); }
    /// Of q or out, [rows, all_heads, dim].
    DEVICE u64 at(u32 c, u32 all_heads, u32 dim) const {
        return ((u64)(row + c / each) * all_heads + first_head + c % each) * dim;
    }
};

/// Fills `columns` for the block whose first row is `row`: the rows after it up to a multiple of 8 * J / each that
/// belong to the same sequence. False where an earlier row's block takes `row`. All threads of the block.
template <u32 J>
DEVICE bool gather_columns(Columns& columns, u32 row, u32 live, const u32* positions, const u32* row_seq, u32 window) {
    SHARED(u32, begin, 8 * J);
    SHARED(u32, end, 8 * J);
    SHARED(float, maximum, 8 * J);
    SHARED(float, weight, 8 * J);
    const u32 most = 8 * J / columns.each, seq = row_seq[row], lane = lane_of();
    if (row % most != 0 && row_seq[row - 1] == seq) return false;
    bool other = row + lane >= live || row_seq[row + lane] != seq;
    u32 same = 32 - warp_max(other ? 32 - lane : 0u);
    columns.row = row, columns.rows = min(same, most - row % most);
    columns.begin = begin, columns.end = end, columns.maximum = maximum, columns.weight = weight;
    if (threadIdx.x < 8 * J) {
        bool real = columns.real(threadIdx.x);
        u32 stop = real ? positions[row + threadIdx.x / columns.each] + 1 : 0;
        begin[threadIdx.x] = window && stop > window ? stop - window : 0;
        end[threadIdx.x] = stop;
    }
    __syncthreads();
    bool real = lane < 8 * J && columns.real(lane);
    u32 from = real ? begin[lane % (8 * J)] : 0, to = real ? end[lane % (8 * J)] : 0;
    columns.highest = warp_max(to), columns.all_begin = warp_max(from);
    columns.lowest = ~warp_max(real ? ~from : 0u), columns.all_end = ~warp_max(real ? ~to : 0u);
    return true;
}

/// Scores of tokens [from, to) of a split, to `scores[column * STRIDE + token - origin]`. A warp takes tiles of
/// 16 tokens, M at a time; inside an mma lane (g, t) has tokens g and g + 8, dimensions 8 * t.. of 32.
template <class C, u32 J, u32 WARPS>
DEVICE void score(const C& cache, const Columns& columns, const float* q, u32 heads, u32 origin, u32 from, u32 to, float scale, float* scores) {
    typedef typename C::Format Kv;
    typedef Run<Kv, 8> Keys;
    const u32 M = J == 1 ? 4 : 2, g = lane_of() / 4, t = lane_of() % 4;
    for (u32 tile = (from - origin) / 16 + warp_of(); tile * 16 < to - origin; tile += WARPS * M) {
        float c[M][J][4] = {};
        for (u32 d = 0; d < cache.key_dim; d += 32) {
            const u32 mine = d + 8 * t;
            if (Kv::SCALED && cache.turns(d)) {
#pragma unroll
                for (u32 m = 0; m < M; m++)
                    for (u32 h = 0; h < 2; h++) {
                        u32 token = origin + (tile + WARPS * m) * 16 + g + 8 * h;
                        float ratio = token >= from && token < to ? cache.ratio(token) : 1.0f; // of powers of two
                        for (u32 j = 0; j < J; j++)
                            for (u32 e = 0; e < 2; e++) c[m][j][2 * h + e] = c[m][j][2 * h + e] * ratio;
                    }
            }
            Keys keys[M][2];
#pragma unroll
            for (u32 m = 0; m < M; m++)
                for (u32 h = 0; h < 2; h++) {
                    u32 token = origin + (tile + WARPS * m) * 16 + g + 8 * h;
                    for (u32 i = 0; i < Keys::WORDS; i++) keys[m][h].w[i] = 0;
                    if (token >= from && token < to && mine < cache.key_dim)
                        keys[m][h].load((const typename Kv::Stored*)cache.k + cache.at(token) + mine);
                }
#pragma unroll
            for (u32 j = 0; j < J; j++) {
                if (j * 8 >= columns.count()) continue;
                bool useful = columns.real(j * 8 + g) && mine < cache.key_dim;
                const float* row = q + columns.at(j * 8 + g, heads, cache.key_dim) + mine;
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    F32x4 v = {0.0f, 0.0f, 0.0f, 0.0f};
                    if (useful) v = load_f32x4(row + 4 * half);
                    Operand b(v);
#pragma unroll
                    for (u32 m = 0; m < M; m++)
                        for (u32 term = 0; term < Keys::TERMS; term++) {
                            u32 a[4];
                            for (u32 i = 0; i < 4; i++) a[i] = keys[m][i % 2].pair(2 * half + i / 2, term);
                            for (u32 i = 0; i + term < 3; i++) mma_bf16(c[m][j], a, b.term[i][0], b.term[i][1]);
                        }
                }
            }
        }
#pragma unroll
        for (u32 m = 0; m < M; m++)
            for (u32 h = 0; h < 2; h++) {
                u32 at = (tile + WARPS * m) * 16 + g + 8 * h, token = origin + at;
                if (token < from || token >= to) continue;
                // A power of two, so it may be applied to the score: exact here as anywhere.
                float k_scale = Kv::SCALED ? cache.key_scale(token) : 1.0f;
                for (u32 j = 0; j < J; j++)
                    for (u32 e = 0; e < 2; e++) scores[(j * 8 + 2 * t + e) * STRIDE + at] = c[m][j][2 * h + e] * k_scale * scale;
            }
    }
}

/// Scores become exponentials relative to their column's maximum, 0 for tokens that a column does not see, over
/// the tiles of 16 tokens that [from, to) touches. A warp for each column in turn.
template <u32 WARPS>
DEVICE void exponentials(const Columns& columns, u32 split, u32 from, u32 to, float* scores) {
    const u32 origin = split * SPLIT, first = (from - origin) / 16 * 16, last = div_up(to - origin, 16) * 16;
    for (u32 c = warp_of(); c < columns.count(); c += WARPS) {
        float* mine = scores + c * STRIDE;
        float m = minus_infinity(), l = 0.0f;
        // Lanes meet the same tokens wherever the range begins.
        for (u32 i = first / 32 * 32 + lane_of(); i < last; i += 32)
            if (columns.sees(c, origin + i)) m = fmaxf(m, mine[i]);
        m = warp_max(m);
        for (u32 i = first / 32 * 32 + lane_of(); i < last; i += 32) {
            if (i < first) continue;
            float e = columns.sees(c, origin + i) ? expf(mine[i] - m) : 0.0f;
            mine[i] = e;
            l = l + e;
        }
        l = warp_sum(l);
        if (lane_of() == 0) columns.maximum[c] = m, columns.weight[c] = l;
    }
}

/// Weighted sums of values: `out[i][j]` is the fragment of dimensions mine + 2i and + 2i + 1 by the columns of j,
/// `mine` being this lane's first of 2 * T. Inside an mma lane (g, t) has tokens 4 * t.. of 16.
template <class C, u32 J, u32 T>
DEVICE void weigh(const C& cache, const Columns& columns, u32 origin, u32 from, u32 to, const float* scores, float (&out)[T][J][4]) {
    typedef typename C::Format Kv;
    typedef Run<Kv, 2 * T> Values;
    const u32 g = lane_of() / 4, t = lane_of() % 4, mine = (warp_of() * 8 + g) * 2 * T;
    for (u32 i = 0; i < T; i++)
        for (u32 j = 0; j < J; j++)
            for (u32 e = 0; e < 4; e++) out[i][j][e] = 0.0f;
    if (warp_of() * 16 * T >= cache.value_dim) return;
    for (u32 first = (from - origin) / 16 * 16; first < to - origin; first += 16) {
        const u32 token = origin + first + 4 * t;
        Values values[4];
        float v_scale[4] = {1.0f, 1.0f, 1.0f, 1.0f};
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            for (u32 i = 0; i < Values::WORDS; i++) values[n].w[i] = 0;
            if (token + n < from || token + n >= to) continue;
            if (mine < cache.value_dim) values[n].load((const typename Kv::Stored*)cache.v + cache.at(token + n) + mine);
            if (Kv::SCALED) v_scale[n] = cache.value_scale(token + n);
        }
        // A value that is not finite would spoil columns that do not see it (0 * infinity): where some do not, it
        // becomes a weight that is no number for those that do.
        u32 broken = 0;
        if (origin + first < columns.all_begin || origin + first + 16 > columns.all_end) {
            for (u32 n = 0; n < 4; n++) {
                if (!values[n].broken() && v_scale[n] > 0.0f) continue;
                broken |= 1u << n, v_scale[n] = 1.0f;
                for (u32 i = 0; i < Values::WORDS; i++) values[n].w[i] = 0;
            }
            for (u32 mask = 4; mask < 32; mask *= 2) broken |= shuffle_xor(broken, mask);
        }
#pragma unroll
        for (u32 j = 0; j < J; j++) {
            if (j * 8 >= columns.count()) continue;
            const u32 column = j * 8 + g;
            float p[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (column < columns.count())
                for (u32 n = 0; n < 4; n++) {
                    p[n] = scores[column * STRIDE + first + 4 * t + n];
                    if (Kv::SCALED) p[n] = p[n] * v_scale[n]; // a power of two
                    if (broken >> n & 1 && columns.sees(column, token + n)) p[n] = float_of(0x7FC00000u);
                }
            Operand b({p[0], p[1], p[2], p[3]});
#pragma unroll
            for (u32 i = 0; i < T; i++)
                for (u32 term = 0; term < Values::TERMS; term++) {
                    u32 x[4];
                    for (u32 n = 0; n < 4; n++) x[n] = values[n].pair(i, term);
                    const u32 a[4] = {(x[0] & 0xFFFFu) | x[1] << 16, x[0] >> 16 | (x[1] & 0xFFFF0000u), (x[2] & 0xFFFFu) | x[3] << 16,
                                      x[2] >> 16 | (x[3] & 0xFFFF0000u)};
                    for (u32 n = 0; n + term < 3; n++) mma_bf16(out[i][j], a, b.term[n][0], b.term[n][1]);
                }
        }
    }
}

/// One split for all columns: `out` as of `weigh`, maxima and weights in `columns`.
template <class C, u32 J, u32 T, u32 WARPS>
DEVICE void attend(const C& cache, const Columns& columns, const float* q, u32 heads, u32 split, float scale, float (&out)[T][J][4]) {
    SHARED(float, scores, 8 * J * STRIDE);
    const u32 origin = split * SPLIT, from = max(columns.lowest, origin), to = min(columns.highest, origin + SPLIT);
    __syncthreads(); // the split before is done with the shared arrays
    score<C, J, WARPS>(cache, columns, q, heads, origin, from, to, scale, scores);
    __syncthreads();
    exponentials<WARPS>(columns, split, from, to, scores);
    __syncthreads();
    weigh<C, J, T>(cache, columns, origin, from, to, scores, out);
}

/// Columns of the heads of tile `tile` of a row: as many as there are in a group, up to `most`.
DEVICE Columns columns_of(u32 heads, u32 kv_heads, u32 tile, u32 most, u32& kv_head) {
    Columns columns;
    u32 group = heads / kv_heads;
    columns.each = 1;
    while (columns.each < group && columns.each < most) columns.each *= 2;
    u32 tiles = div_up(group, columns.each), first = tile % tiles * columns.each;
    columns.heads = min(columns.each, group - first);
    kv_head = tile / tiles;
    columns.first_head = kv_head * group + first;
    return columns;
}

/// One split of `splits`: to part_o [rows, heads, splits, value_dim] and part_ml [.., 2].
template <class C, u32 J, u32 T, u32 WARPS>
DEVICE void attend_split(const C& cache, const Columns& columns, const float* q, u32 heads, u32 split, u32 splits, float scale, float* part_o,
                         float* part_ml) {
    if (max(columns.lowest, split * SPLIT) >= min(columns.highest, (split + 1) * SPLIT)) return;
    float sums[T][J][4];
    attend<C, J, T, WARPS>(cache, columns, q, heads, split, scale, sums);
    launch_next();
    const u32 g = lane_of() / 4, t = lane_of() % 4, mine = (warp_of() * 8 + g) * 2 * T;
#pragma unroll
    for (u32 j = 0; j < J; j++)
#pragma unroll
        for (u32 e = 0; e < 2; e++) {
            u32 c = 8 * j + 2 * t + e;
            if (!columns.real(c) || !columns.any_of(c, split) || mine >= cache.value_dim) continue;
            u64 at = columns.at(c, heads, 1) * splits + split;
            for (u32 i = 0; i < 2 * T; i++) part_o[at * cache.value_dim + mine + i] = sums[i / 2][j][2 * (i % 2) + e];
            if (mine == 0) part_ml[2 * at] = columns.maximum[c], part_ml[2 * at + 1] = columns.weight[c];
        }
}

/// Merges the splits of one head of one row, which sees tokens [begin, end), in ascending order.
template <u32 THREADS>
DEVICE void combine(u32 row, u32 head, u32 begin, u32 end, float* out, u32 heads, u32 dim, const float* part_o, const float* part_ml,
                    u32 splits) {
    u64 at = ((u64)row * heads + head) * splits;
    for (u32 i = threadIdx.x; i < dim; i += THREADS) {
        float m = minus_infinity(), l = 0.0f, sum = 0.0f;
        for (u32 split = begin / SPLIT; split * SPLIT < end; split++) {
            Merge merge(m, l, part_ml[2 * (at + split)], part_ml[2 * (at + split) + 1]);
            sum = fmaf(sum, merge.keep, part_o[(at + split) * dim + i] * merge.take);
            m = merge.m, l = merge.l;
        }
        out[((u64)row * heads + head) * dim + i] = sum / l;
    }
}

/// All splits one after another.
template <class C, u32 J, u32 T, u32 WARPS>
DEVICE void attend_rows(const C& cache, const Columns& columns, const float* q, u32 heads, float scale, float* out) {
    SHARED(float, keep, 8 * J);
    SHARED(float, take, 8 * J);
    const u32 g = lane_of() / 4, t = lane_of() % 4, mine = (warp_of() * 8 + g) * 2 * T;
    // The first threads keep the maximum and weight of a column each: in all of them they would cost registers.
    const u32 own = threadIdx.x;
    float sum[T][J][4] = {}, m = minus_infinity(), l = 0.0f;
    for (u32 split = columns.lowest / SPLIT; split * SPLIT < columns.highest; split++) {
        float part[T][J][4];
        attend<C, J, T, WARPS>(cache, columns, q, heads, split, scale, part);
        if (own < 8 * J && columns.real(own) && columns.any_of(own, split)) {
            Merge merge(m, l, columns.maximum[own], columns.weight[own]);
            m = merge.m, l = merge.l, keep[own] = merge.keep, take[own] = merge.take;
        }
        __syncthreads();
#pragma unroll
        for (u32 j = 0; j < J; j++)
#pragma unroll
            for (u32 e = 0; e < 2; e++) {
                u32 c = 8 * j + 2 * t + e;
                if (!columns.real(c) || !columns.any_of(c, split)) continue;
                for (u32 i = 0; i < 2 * T; i++) {
                    float& s = sum[i / 2][j][2 * (i % 2) + e];
                    s = fmaf(s, keep[c], part[i / 2][j][2 * (i % 2) + e] * take[c]);
                }
            }
    }
    launch_next();
    __syncthreads();
    if (own < 8 * J) keep[own] = l;
    __syncthreads();
#pragma unroll
    for (u32 j = 0; j < J; j++)
#pragma unroll
        for (u32 e = 0; e < 2; e++) {
            u32 c = 8 * j + 2 * t + e;
            if (!columns.real(c) || mine >= cache.value_dim) continue;
            float* to = out + columns.at(c, heads, cache.value_dim) + mine;
            for (u32 i = 0; i < 2 * T; i++) to[i] = sum[i / 2][j][2 * (i % 2) + e] / keep[c];
        }
}
