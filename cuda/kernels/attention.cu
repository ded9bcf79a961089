// Causal grouped-query attention over the paged cache, on tensor cores: decoding and prefill alike.
//
// A column is one head of one row. A block takes up to 8 * J columns of one key head and one sequence: the
// heads of a decoded row, or those of neighbouring rows of a chunk, for all of which keys and values are read
// once. Keys and values are the mma's A side, straight from the cache: which dimension or token a position
// inside an mma stands for is ours to choose as long as both sides agree, and is chosen so that a lane loads
// neighbours.
//
// A sequence is cut into splits of SPLIT tokens at fixed places, whatever the batch. A score adds up along
// the head; within a split the sums go over tokens in ascending order; splits are merged in ascending order.
// So neither the columns beside one, nor J, nor the way to run the splits changes a bit: attention_split +
// attention_combine (a block per split: few rows) or attention_rows (a block walks all splits: many rows).
//
// Queries and weights are three bf16 terms, keys and values as many as hold their bits.
#include "ponder.cuh"

const u32 SPLIT = 256, ATTENTION_THREADS = 128, ATTENTION_WARPS = ATTENTION_THREADS / 32;
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
template <u32 M, u32 N>
struct Run<KvF8<M>, N> {
    static const u32 TERMS = 1, WORDS = (N + 3) / 4;
    u32 w[WORDS];
    DEVICE void load(const u8* p) { load_words<N>(w, p); }
    DEVICE u32 pair(u32 i, u32) const { return broken() ? 0x7FC07FC0u : bf16x2_of_f8<M>(w[i / 2] >> (16 * (i % 2))); }
    /// A head that is not finite holds this code everywhere.
    DEVICE bool broken() const { return (w[0] & 0xFFu) == KvF8<M>::NOT_A_NUMBER; }
};

/// The cache as the rows of one sequence see it.
struct Cache {
    const void *k, *v;
    const u32* table;
    u32 kv_heads, dim, block_size, kv_head;
    const float *k_scales, *v_scales; // of formats that have them
    DEVICE u64 block(u32 token) const { return (u64)table[token / block_size] * kv_heads + kv_head; }
    DEVICE u64 at(u32 token) const {
        u64 slot = (u64)table[token / block_size] * block_size + token % block_size;
        return (slot * kv_heads + kv_head) * dim;
    }
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
template <class Kv, u32 J>
DEVICE void score(const Cache& cache, const Columns& columns, const float* q, u32 heads, u32 origin, u32 from, u32 to, float scale, float* scores) {
    typedef Run<typename Kv::Keys, 8> Keys;
    const u32 M = J == 1 ? 4 : 2, g = lane_of() / 4, t = lane_of() % 4;
    for (u32 tile = (from - origin) / 16 + warp_of(); tile * 16 < to - origin; tile += ATTENTION_WARPS * M) {
        float c[M][J][4] = {};
        for (u32 d = 0; d < cache.dim; d += 32) {
            const u32 mine = d + 8 * t;
            Keys keys[M][2];
#pragma unroll
            for (u32 m = 0; m < M; m++)
                for (u32 h = 0; h < 2; h++) {
                    u32 token = origin + (tile + ATTENTION_WARPS * m) * 16 + g + 8 * h;
                    for (u32 i = 0; i < Keys::WORDS; i++) keys[m][h].w[i] = 0;
                    if (token >= from && token < to && mine < cache.dim)
                        keys[m][h].load((const typename Kv::Stored*)cache.k + cache.at(token) + mine);
                }
#pragma unroll
            for (u32 j = 0; j < J; j++) {
                if (j * 8 >= columns.count()) continue;
                bool useful = columns.real(j * 8 + g) && mine < cache.dim;
                const float* row = q + columns.at(j * 8 + g, heads, cache.dim) + mine;
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
                u32 at = (tile + ATTENTION_WARPS * m) * 16 + g + 8 * h, token = origin + at;
                if (token < from || token >= to) continue;
                // A power of two, so it may be applied to the score: exact here as anywhere.
                float k_scale = Kv::SCALED ? cache.k_scales[cache.block(token)] : 1.0f;
                for (u32 j = 0; j < J; j++)
                    for (u32 e = 0; e < 2; e++) scores[(j * 8 + 2 * t + e) * STRIDE + at] = c[m][j][2 * h + e] * k_scale * scale;
            }
    }
}

/// Scores become exponentials relative to their column's maximum, 0 for tokens that a column does not see, over
/// the tiles of 16 tokens that [from, to) touches. A warp for each column in turn.
DEVICE void exponentials(const Columns& columns, u32 split, u32 from, u32 to, float* scores) {
    const u32 origin = split * SPLIT, first = (from - origin) / 16 * 16, last = div_up(to - origin, 16) * 16;
    for (u32 c = warp_of(); c < columns.count(); c += ATTENTION_WARPS) {
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
template <class Kv, u32 J, u32 T>
DEVICE void weigh(const Cache& cache, const Columns& columns, u32 origin, u32 from, u32 to, const float* scores, float (&out)[T][J][4]) {
    typedef Run<Kv, 2 * T> Values;
    const u32 g = lane_of() / 4, t = lane_of() % 4, mine = (warp_of() * 8 + g) * 2 * T;
    for (u32 i = 0; i < T; i++)
        for (u32 j = 0; j < J; j++)
            for (u32 e = 0; e < 4; e++) out[i][j][e] = 0.0f;
    if (warp_of() * 16 * T >= cache.dim) return;
    for (u32 first = (from - origin) / 16 * 16; first < to - origin; first += 16) {
        const u32 token = origin + first + 4 * t;
        Values values[4];
        float v_scale[4] = {1.0f, 1.0f, 1.0f, 1.0f};
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            for (u32 i = 0; i < Values::WORDS; i++) values[n].w[i] = 0;
            if (token + n < from || token + n >= to) continue;
            if (mine < cache.dim) values[n].load((const typename Kv::Stored*)cache.v + cache.at(token + n) + mine);
            if (Kv::SCALED) v_scale[n] = cache.v_scales[cache.block(token + n)];
        }
        // A value that is not finite would spoil columns that do not see it (0 * infinity): where some do not, it
        // becomes a weight that is no number for those that do.
        u32 broken = 0;
        if (origin + first < columns.all_begin || origin + first + 16 > columns.all_end) {
            for (u32 n = 0; n < 4; n++) {
                if (!values[n].broken()) continue;
                broken |= 1u << n;
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
template <class Kv, u32 J, u32 T>
DEVICE void attend(const Cache& cache, const Columns& columns, const float* q, u32 heads, u32 split, float scale, float (&out)[T][J][4]) {
    SHARED(float, scores, 8 * J * STRIDE);
    const u32 origin = split * SPLIT, from = max(columns.lowest, origin), to = min(columns.highest, origin + SPLIT);
    __syncthreads(); // the split before is done with the shared arrays
    score<Kv, J>(cache, columns, q, heads, origin, from, to, scale, scores);
    __syncthreads();
    exponentials(columns, split, from, to, scores);
    __syncthreads();
    weigh<Kv, J, T>(cache, columns, origin, from, to, scores, out);
}

#define ATTENTION_OPERANDS                                                                                            \
    const u32 *live, const float *q, const void *k_cache, const void *v_cache, const u32 *positions,                  \
        const u32 *row_seq, const u32 *tables, float *out, u32 heads, u32 kv_heads, u32 dim, u32 block_size,          \
        u32 max_blocks, float scale, u32 window, const float *k_scales, const float *v_scales
#define ATTENTION_NAMES                                                                                               \
    live, q, k_cache, v_cache, positions, row_seq, tables, out, heads, kv_heads, dim, block_size, max_blocks, scale, window,       \
        k_scales, v_scales

/// Columns of the heads of tile `tile` of a row: as many as there are in a group, up to 8.
DEVICE Columns columns_of(u32 heads, u32 kv_heads, u32 tile, u32& kv_head) {
    Columns columns;
    u32 group = heads / kv_heads;
    columns.each = 1;
    while (columns.each < group && columns.each < 8) columns.each *= 2;
    u32 tiles = div_up(group, columns.each), first = tile % tiles * columns.each;
    columns.heads = min(columns.each, group - first);
    kv_head = tile / tiles;
    columns.first_head = kv_head * group + first;
    return columns;
}

/// grid (splits, kv_heads * ceil(group / 8), rows). Writes part_o [rows, heads, splits, dim] and part_ml [.., 2].
template <class Kv, u32 J, u32 T>
DEVICE void attention_split(ATTENTION_OPERANDS, float* part_o, float* part_ml) {
    wait_for_previous();
    u32 row = blockIdx.z, split = blockIdx.x, splits = gridDim.x, kv_head;
    if (row >= live[0]) return;
    Columns columns = columns_of(heads, kv_heads, blockIdx.y, kv_head);
    if (!gather_columns<J>(columns, row, live[0], positions, row_seq, window)) return;
    if (max(columns.lowest, split * SPLIT) >= min(columns.highest, (split + 1) * SPLIT)) return;
    Cache cache = {k_cache, v_cache, tables + (u64)row_seq[row] * max_blocks, kv_heads, dim, block_size, kv_head, k_scales, v_scales};
    float sums[T][J][4];
    attend<Kv, J, T>(cache, columns, q, heads, split, scale, sums);
    launch_next();
    const u32 g = lane_of() / 4, t = lane_of() % 4, mine = (warp_of() * 8 + g) * 2 * T;
#pragma unroll
    for (u32 j = 0; j < J; j++)
#pragma unroll
        for (u32 e = 0; e < 2; e++) {
            u32 c = 8 * j + 2 * t + e;
            if (!columns.real(c) || !columns.any_of(c, split) || mine >= dim) continue;
            u64 at = columns.at(c, heads, 1) * splits + split;
            for (u32 i = 0; i < 2 * T; i++) part_o[at * dim + mine + i] = sums[i / 2][j][2 * (i % 2) + e];
            if (mine == 0) part_ml[2 * at] = columns.maximum[c], part_ml[2 * at + 1] = columns.weight[c];
        }
}

/// Merges the splits of each head in ascending order. grid (heads, rows), ATTENTION_THREADS threads.
KERNEL(ATTENTION_THREADS) attention_combine(const u32* live, const u32* positions, float* out, u32 heads, u32 dim, u32 window,
                                            const float* part_o, const float* part_ml, u32 splits) {
    wait_for_previous();
    u32 row = blockIdx.y, head = blockIdx.x;
    if (row >= live[0]) return;
    u32 end = positions[row] + 1, begin = window && end > window ? end - window : 0;
    u64 at = ((u64)row * heads + head) * splits;
    for (u32 i = threadIdx.x; i < dim; i += ATTENTION_THREADS) {
        float m = minus_infinity(), l = 0.0f, sum = 0.0f;
        for (u32 split = begin / SPLIT; split * SPLIT < end; split++) {
            Merge merge(m, l, part_ml[2 * (at + split)], part_ml[2 * (at + split) + 1]);
            sum = fmaf(sum, merge.keep, part_o[(at + split) * dim + i] * merge.take);
            m = merge.m, l = merge.l;
        }
        out[((u64)row * heads + head) * dim + i] = sum / l;
    }
    launch_next();
}
EXPORT(attention_combine)

/// grid (kv_heads * ceil(group / 8), rows).
template <class Kv, u32 J, u32 T>
DEVICE void attention_rows(ATTENTION_OPERANDS) {
    wait_for_previous();
    u32 row = blockIdx.y, kv_head;
    if (row >= live[0]) return;
    Columns columns = columns_of(heads, kv_heads, blockIdx.x, kv_head);
    if (!gather_columns<J>(columns, row, live[0], positions, row_seq, window)) return;
    Cache cache = {k_cache, v_cache, tables + (u64)row_seq[row] * max_blocks, kv_heads, dim, block_size, kv_head, k_scales, v_scales};
    const u32 g = lane_of() / 4, t = lane_of() % 4, mine = (warp_of() * 8 + g) * 2 * T;
    float sum[T][J][4] = {}, m[J][2], l[J][2];
    for (u32 j = 0; j < J; j++)
        for (u32 e = 0; e < 2; e++) m[j][e] = minus_infinity(), l[j][e] = 0.0f;
    for (u32 split = columns.lowest / SPLIT; split * SPLIT < columns.highest; split++) {
        float part[T][J][4];
        attend<Kv, J, T>(cache, columns, q, heads, split, scale, part);
#pragma unroll
        for (u32 j = 0; j < J; j++)
#pragma unroll
            for (u32 e = 0; e < 2; e++) {
                u32 c = 8 * j + 2 * t + e;
                if (!columns.real(c) || !columns.any_of(c, split)) continue;
                Merge merge(m[j][e], l[j][e], columns.maximum[c], columns.weight[c]);
                for (u32 i = 0; i < 2 * T; i++) {
                    float& s = sum[i / 2][j][2 * (i % 2) + e];
                    s = fmaf(s, merge.keep, part[i / 2][j][2 * (i % 2) + e] * merge.take);
                }
                m[j][e] = merge.m, l[j][e] = merge.l;
            }
    }
    launch_next();
#pragma unroll
    for (u32 j = 0; j < J; j++)
#pragma unroll
        for (u32 e = 0; e < 2; e++) {
            u32 c = 8 * j + 2 * t + e;
            if (!columns.real(c) || mine >= dim) continue;
            float* to = out + columns.at(c, heads, dim) + mine;
            for (u32 i = 0; i < 2 * T; i++) to[i] = sum[i / 2][j][2 * (i % 2) + e] / l[j][e];
        }
}

// Named by the widest head. Few rows take eight columns a block, many rows as many as registers hold.
#define ATTENTION(kv, width, j)                                                                                       \
    KERNEL(ATTENTION_THREADS) attention_split_##kv##_##width(ATTENTION_OPERANDS, float* part_o, float* part_ml) {     \
        attention_split<Kv##kv, 1, width / 64>(ATTENTION_NAMES, part_o, part_ml);                                     \
    }                                                                                                                 \
    EXPORT(attention_split_##kv##_##width)                                                                            \
    KERNEL(ATTENTION_THREADS) attention_rows_##kv##_##width(ATTENTION_OPERANDS) {                                     \
        attention_rows<Kv##kv, j, width / 64>(ATTENTION_NAMES);                                                       \
    }                                                                                                                 \
    EXPORT(attention_rows_##kv##_##width)
#define ATTENTION_ALL(kv) ATTENTION(kv, 64, 4) ATTENTION(kv, 128, 4) ATTENTION(kv, 256, 2)

EACH_CACHE(ATTENTION_ALL)
