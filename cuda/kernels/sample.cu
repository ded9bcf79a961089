// From rows of logits to one token id each, as engine/src/op/sample.rs defines it: four kernels, the first three
// with a block for each PART of a row's tokens, the last with a block for each row.
//
//   sample_values   logits adjusted, masked and over temperature, into scratch; the largest of each part
//   sample_bins     where a row has top-k or top-p: tokens and their mass by distance from the row's largest
//   sample_noise    noise where the bins settle that a token is kept; what they leave open goes to a list
//   sample_finish   the filters on that list, and the best of all
//
// Filters are thresholds on values: a bin of distances settles all but its own tokens, and a radix descent over the
// bits of those finds the value itself. Probabilities are summed as integers (units of 2^-40 of the largest), so that
// atomics give one answer in any order. Parts are cut at fixed tokens, and no float is added across threads.
#include "ponder.cuh"

const u32 SAMPLE_THREADS = 256, PART = 2048, BINS = 1024, LIST = 2048; // PART, BINS, LIST: also in src/record.rs
const u32 ERROR_TOKEN = 0xFFFFFFFFu, SEEN = 0x80000000u;

/// engine::op::SampleRow.
struct SampleRow {
    float temperature, top_p, min_p, repetition, presence, frequency;
    u32 top_k, seed_lo, seed_hi, choice, position, mask;
};
/// engine::op::Adjust.
struct Adjust {
    u32 token, count;
    float bias;
};

/// Threefry-2x32 with 20 rounds (Salmon et al. 2011); the first word.
DEVICE u32 threefry(u32 key0, u32 key1, u32 x0, u32 x1) {
    const u32 rotations[8] = {13, 15, 26, 6, 17, 29, 16, 24}, keys[3] = {key0, key1, key0 ^ key1 ^ 0x1BD11BDAu};
    x0 += keys[0];
    x1 += keys[1];
#pragma unroll
    for (u32 round = 0; round < 20; round++) {
        u32 r = rotations[round % 8];
        x0 += x1;
        x1 = (x1 << r | x1 >> (32 - r)) ^ x0;
        if (round % 4 == 3) {
            u32 i = round / 4 + 1;
            x0 += keys[i % 3];
            x1 += keys[(i + 1) % 3] + i;
        }
    }
    return x0;
}
DEVICE float gumbel(const SampleRow& row, u32 token) {
    u32 bits = threefry(row.seed_lo, row.seed_hi, token, row.position | row.choice << 24) >> 9;
    float u = ((float)bits + 0.5f) * 1.1920928955078125e-7f; // exact: (bits + 0.5) / 2^23
    return -logf(-logf(u));
}
/// Order of floats as order of integers; both zeros are one.
DEVICE u32 key_of(float x) {
    u32 bits = bits_of(x + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
DEVICE float adjusted(float logit, const SampleRow& row, const Adjust& a) {
    logit = logit + a.bias;
    if (a.count & SEEN) logit = logit > 0.0f ? logit / row.repetition : logit * row.repetition;
    u32 count = a.count & ~SEEN;
    return count ? logit - fmaf(row.frequency, (float)count, row.presence) : logit;
}

/// The larger value; of equal values the lower index.
struct Best {
    float value;
    u32 index;
    DEVICE void take(float v, u32 i) {
        if (v > value || (v == value && i < index)) value = v, index = i;
    }
};
DEVICE Best nothing() { return {minus_infinity(), ERROR_TOKEN}; }
DEVICE Best block_best(Best best) {
    SHARED(float, values, SAMPLE_THREADS / 32);
    SHARED(u32, indices, SAMPLE_THREADS / 32);
    for (u32 mask = 16; mask; mask >>= 1) {
        float v = shuffle_xor(best.value, mask);
        best.take(v, shuffle_xor(best.index, mask));
    }
    __syncthreads();
    if (lane_of() == 0) values[warp_of()] = best.value, indices[warp_of()] = best.index;
    __syncthreads();
    for (u32 w = 0; w < SAMPLE_THREADS / 32; w++) best.take(values[w], indices[w]);
    return best;
}

struct Candidate {
    float value;
    u32 token;
};
/// What a part says of itself: its largest value (+infinity: a fault), and its best with noise.
struct Part {
    Best largest, noisy;
};
/// A row's scratch.
struct Scratch {
    u64* mass;       // [BINS], units of 2^-40 of the largest
    Candidate* list; // [LIST]
    Part* parts;     // [n_parts]
    u32* count;      // [BINS]
    u32* listed;     // candidates there are, which may be more than the list holds
    float* z;        // [vocab]
    u32 n_parts;
    DEVICE Scratch(u8* scratch, u32 row_bytes, u32 row, u32 vocab) {
        n_parts = div_up(vocab, PART);
        mass = (u64*)(scratch + (u64)row * row_bytes);
        list = (Candidate*)(mass + BINS);
        parts = (Part*)(list + LIST);
        count = (u32*)(parts + n_parts);
        listed = count + BINS;
        z = (float*)(listed + 4);
    }
    /// The row's largest value, for the whole block.
    DEVICE Best largest() const {
        Best best = nothing();
        for (u32 p = threadIdx.x; p < n_parts; p += SAMPLE_THREADS) best.take(parts[p].largest.value, parts[p].largest.index);
        return block_best(best);
    }
};

/// A row that has a finite largest value, and needs more than that.
DEVICE bool is_random(const SampleRow& row, float largest) {
    return row.temperature != 0.0f && largest > minus_infinity() && largest < -minus_infinity();
}
DEVICE bool has_filter(const SampleRow& row) { return row.top_k || row.top_p < 1.0f; }
/// Distances from the largest in steps of 1/32, the last bin for all from 32 on, whose mass is 0. Rounding keeps the
/// order: a token in a lower bin is larger.
DEVICE u32 bin_of(float distance) { return distance < 31.96875f ? (u32)(distance * 32.0f) : BINS - 1; }
DEVICE u64 mass_of(float z, float largest) { return (u64)(expf(z - largest) * 1099511627776.0f); }
DEVICE u64 nucleus(const SampleRow& row, u64 total) {
    u64 limit = (u64)((double)row.top_p * (double)total);
    return limit ? limit : 1;
}
DEVICE float margin_of(const SampleRow& row) { return row.min_p > 0.0f ? logf(row.min_p) : minus_infinity(); }

/// A bin, the sum of those before it (and what was before them), and the sum of all.
struct Cut {
    u32 bin;
    u64 before, total;
};
/// The first of N bins up to which the sum reaches limit(total), or the last that is not empty. For the whole block.
template <u32 N, class Limit>
DEVICE Cut cut_at(const u64* bins, u64 before, Limit limit_of) {
    SHARED(u32, bin, 1);
    SHARED(u64, sums, 2);
    const u32 span = N / 32, lane = lane_of();
    __syncthreads();
    if (warp_of() == 0) {
        u64 mine = 0;
        for (u32 i = 0; i < span; i++) mine += bins[lane * span + (i + lane) % span]; // each lane in a bank of its own
        u64 upto = mine;
        for (u32 step = 1; step < 32; step *= 2) {
            u32 low = shuffle((u32)upto, lane - step), high = shuffle((u32)(upto >> 32), lane - step);
            if (lane >= step) upto += (u64)high << 32 | low;
        }
        u32 low = shuffle((u32)upto, 31), high = shuffle((u32)(upto >> 32), 31);
        u64 total = (u64)high << 32 | low, limit = limit_of(total), sum = before + upto - mine;
        if (limit > before + total) limit = before + total;
        if (lane == 0) sums[1] = total;
        if (sum < limit && sum + mine >= limit)
            for (u32 i = 0; i < span; i++) {
                u64 next = sum + bins[lane * span + i];
                if (next >= limit) {
                    bin[0] = lane * span + i, sums[0] = sum;
                    break;
                }
                sum = next;
            }
    }
    __syncthreads();
    return {bin[0], sums[0], sums[1]};
}

/// What the bins settle: tokens in bins below `sure` are kept by top-k and top-p, those beyond `cut` are not.
struct Settled {
    u32 sure, cut;
    bool top_k;        // top-k leaves tokens out; if not, and top-p does:
    u64 before, total; // mass before the cut, and of all
};
DEVICE Settled settle(const SampleRow& row, const Scratch& scratch) {
    SHARED(u64, bins, BINS);
    if (row.top_k) {
        for (u32 b = threadIdx.x; b < BINS; b += SAMPLE_THREADS) bins[b] = scratch.count[b];
        Cut cut = cut_at<BINS>(bins, 0, [&](u64) { return (u64)row.top_k; });
        // Top-p asks for the mass of what top-k keeps, to the token: all of it goes to the list.
        if (cut.total > row.top_k) return {0, cut.bin, true, 0, 0};
    }
    if (row.top_p < 1.0f) {
        __syncthreads();
        for (u32 b = threadIdx.x; b < BINS; b += SAMPLE_THREADS) bins[b] = scratch.mass[b];
        Cut cut = cut_at<BINS>(bins, 0, [&](u64 total) { return nucleus(row, total); });
        return {cut.bin, cut.bin, false, cut.before, cut.total};
    }
    return {BINS, BINS, false, 0, 0};
}

/// The tokens that the bins leave open: the list, or, where it is too short, all tokens of the row that belong there.
struct Open {
    const Scratch& scratch;
    Settled settled;
    float largest;
    u32 vocab;
    template <class Visit>
    DEVICE void each(Visit visit) const {
        u32 n = scratch.listed[0];
        if (n <= LIST) {
            for (u32 i = threadIdx.x; i < n; i += SAMPLE_THREADS) visit(scratch.list[i].value, scratch.list[i].token);
            return;
        }
        for (u32 i = threadIdx.x; i < vocab; i += SAMPLE_THREADS) {
            float v = scratch.z[i];
            u32 bin = bin_of(largest - v);
            if (v > minus_infinity() && bin >= settled.sure && bin <= settled.cut) visit(v, i);
        }
    }
};

/// The smallest key of an open token whose larger keys weigh less than `limit` together, `before` of them outside.
template <class Weigh>
DEVICE u32 threshold(const Open& open, u64 before, u64 limit, Weigh weigh) {
    SHARED(u64, bins, 256);
    u32 prefix = 0;
    for (u32 shift = 24;; shift -= 8) {
        __syncthreads();
        bins[threadIdx.x] = 0;
        __syncthreads();
        open.each([&](float value, u32) {
            u32 key = key_of(value);
            if (shift != 24 && key >> (shift + 8) != prefix) return;
            u64 weight = weigh(value);
            if (weight) atomicAdd(&bins[255 - (key >> shift & 255)], weight);
        });
        Cut cut = cut_at<256>(bins, before, [&](u64) { return limit; });
        prefix = prefix << 8 | (255 - cut.bin);
        before = cut.before;
        if (shift == 0) return prefix;
    }
}

/// grid (parts, logit rows).
KERNEL(SAMPLE_THREADS) sample_values(const u32* live, const float* logits, const SampleRow* params, const u32* offsets, const Adjust* adjust, const u32* masks, u32 vocab, u8* scratch, u32 row_bytes) {
    SHARED(float, z, PART);
    wait_for_previous();
    if (blockIdx.y >= live[1]) return;
    launch_next();
    const SampleRow row = params[blockIdx.y];
    const Scratch mine(scratch, row_bytes, blockIdx.y, vocab);
    const u32 first = blockIdx.x * PART, n = min(PART, vocab - first);
    for (u32 i = threadIdx.x; i < n; i += SAMPLE_THREADS) z[i] = logits[(u64)blockIdx.y * vocab + first + i];
    for (u32 b = blockIdx.x * SAMPLE_THREADS + threadIdx.x; b < BINS; b += mine.n_parts * SAMPLE_THREADS)
        mine.mass[b] = 0, mine.count[b] = 0;
    if (blockIdx.x == 0 && threadIdx.x == 0) mine.listed[0] = 0;
    __syncthreads();
    for (u32 a = offsets[blockIdx.y] + threadIdx.x; a < offsets[blockIdx.y + 1]; a += SAMPLE_THREADS) {
        u32 i = adjust[a].token - first; // of another part: not below n
        if (i < n) z[i] = adjusted(z[i], row, adjust[a]);
    }
    __syncthreads();
    Best best = nothing();
    for (u32 i = threadIdx.x; i < n; i += SAMPLE_THREADS) {
        float v = z[i];
        u32 token = first + i;
        bool fault = !(v < -minus_infinity()); // NaN or +infinity, outside the mask too
        if (row.mask && !(masks[(u64)(row.mask - 1) * div_up(vocab, 32) + token / 32] >> (token % 32) & 1)) v = minus_infinity();
        if (row.temperature != 0.0f) v = v / row.temperature;
        mine.z[token] = v;
        best.take(fault ? -minus_infinity() : v, token);
    }
    best = block_best(best);
    if (threadIdx.x == 0) mine.parts[blockIdx.x].largest = best;
}
EXPORT(sample_values)

/// grid (parts, logit rows).
KERNEL(SAMPLE_THREADS) sample_bins(const u32* live, const SampleRow* params, u32 vocab, u8* scratch, u32 row_bytes) {
    SHARED(u64, mass, BINS);
    SHARED(u32, count, BINS);
    wait_for_previous();
    if (blockIdx.y >= live[1]) return;
    launch_next();
    const SampleRow row = params[blockIdx.y];
    const Scratch mine(scratch, row_bytes, blockIdx.y, vocab);
    const float largest = mine.largest().value;
    if (!is_random(row, largest) || !has_filter(row)) return;
    for (u32 b = threadIdx.x; b < BINS; b += SAMPLE_THREADS) mass[b] = 0, count[b] = 0;
    __syncthreads();
    const u32 first = blockIdx.x * PART, end = min(first + PART, vocab);
    for (u32 i = first + threadIdx.x; i < end; i += SAMPLE_THREADS) {
        float v = mine.z[i];
        if (!(v > minus_infinity())) continue;
        u32 bin = bin_of(largest - v);
        atomicAdd(&count[bin], 1u);
        u64 weight = mass_of(v, largest);
        if (weight) atomicAdd(&mass[bin], weight);
    }
    __syncthreads();
    for (u32 b = threadIdx.x; b < BINS; b += SAMPLE_THREADS) {
        if (count[b] == 0) continue;
        atomicAdd(&mine.count[b], count[b]);
        if (mass[b]) atomicAdd(&mine.mass[b], mass[b]);
    }
}
EXPORT(sample_bins)

/// grid (parts, logit rows).
KERNEL(SAMPLE_THREADS) sample_noise(const u32* live, const SampleRow* params, u32 vocab, u8* scratch, u32 row_bytes) {
    wait_for_previous();
    if (blockIdx.y >= live[1]) return;
    launch_next();
    const SampleRow row = params[blockIdx.y];
    const Scratch mine(scratch, row_bytes, blockIdx.y, vocab);
    const float largest = mine.largest().value;
    if (!is_random(row, largest)) return;
    const Settled settled = settle(row, mine);
    const float margin = margin_of(row);
    Best best = nothing();
    const u32 first = blockIdx.x * PART, end = min(first + PART, vocab);
    for (u32 i = first + threadIdx.x; i < end; i += SAMPLE_THREADS) {
        float v = mine.z[i];
        u32 bin = bin_of(largest - v);
        if (!(v > minus_infinity()) || bin > settled.cut) continue;
        if (bin < settled.sure) {
            if (v - largest >= margin) best.take(v + gumbel(row, i), i);
            continue;
        }
        u32 at = atomicAdd(mine.listed, 1u);
        if (at < LIST) mine.list[at] = {v, i};
    }
    best = block_best(best);
    if (threadIdx.x == 0) mine.parts[blockIdx.x].noisy = best;
}
EXPORT(sample_noise)

/// grid (logit rows).
KERNEL(SAMPLE_THREADS) sample_finish(const u32* live, const SampleRow* params, u32* out, u32 vocab, u8* scratch, u32 row_bytes) {
    SHARED(u64, total, 1);
    wait_for_previous();
    if (blockIdx.x >= live[1]) return;
    launch_next();
    const SampleRow row = params[blockIdx.x];
    const Scratch mine(scratch, row_bytes, blockIdx.x, vocab);
    Best best = mine.largest();
    const float largest = best.value;
    if (!is_random(row, largest)) {
        bool fault = largest == minus_infinity() || largest == -minus_infinity();
        if (threadIdx.x == 0) out[blockIdx.x] = fault ? ERROR_TOKEN : best.index;
        return;
    }
    const Settled settled = settle(row, mine);
    const Open open = {mine, settled, largest, vocab};
    u32 lowest = key_of(minus_infinity()) + 1; // smallest key that is kept
    if (settled.top_k) lowest = threshold(open, 0, row.top_k, [](float) { return (u64)1; });
    if (row.top_p < 1.0f) {
        auto weigh = [&](float value) { return key_of(value) < lowest ? (u64)0 : mass_of(value, largest); };
        u64 limit = nucleus(row, settled.total);
        if (settled.top_k) {
            if (threadIdx.x == 0) total[0] = 0;
            __syncthreads();
            open.each([&](float value, u32) { atomicAdd(&total[0], weigh(value)); });
            __syncthreads();
            limit = nucleus(row, total[0]);
        }
        lowest = threshold(open, settled.before, limit, weigh);
    }
    const float margin = margin_of(row);
    best = nothing();
    for (u32 p = threadIdx.x; p < mine.n_parts; p += SAMPLE_THREADS) best.take(mine.parts[p].noisy.value, mine.parts[p].noisy.index);
    open.each([&](float value, u32 token) {
        if (key_of(value) >= lowest && value - largest >= margin) best.take(value + gumbel(row, token), token);
    });
    best = block_best(best);
    if (threadIdx.x == 0) out[blockIdx.x] = best.index;
}
EXPORT(sample_finish)
