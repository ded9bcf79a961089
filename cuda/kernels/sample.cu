// From a row of logits to one token id, as engine/src/op/sample.rs defines it. One block per row.
//
// Filters are thresholds on values, found by radix descent over the bits of the logits; probabilities
// are summed as integers (units of 2^-40 of the largest), so that shared-memory atomics give one answer
// in any order.
#include "ponder.cuh"

const u32 SAMPLE_THREADS = 512, ERROR_TOKEN = 0xFFFFFFFFu, SEEN = 0x80000000u;

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

/// The smallest key whose larger keys weigh less than `limit` together; `weigh(i)` is 0 for what takes no part.
template <class Weigh>
DEVICE u32 threshold(const float* z, u32 vocab, u64 limit, Weigh weigh) {
    SHARED(u64, bins, 256);
    SHARED(u32, digit, 1);
    SHARED(u64, above, 1);
    u32 prefix = 0;
    u64 before = 0;
    for (u32 shift = 24;; shift -= 8) {
        __syncthreads();
        if (threadIdx.x < 256) bins[threadIdx.x] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < vocab; i += SAMPLE_THREADS) {
            u32 key = key_of(z[i]);
            if (shift != 24 && key >> (shift + 8) != prefix) continue;
            u64 weight = weigh(i);
            if (weight) atomicAdd(&bins[key >> shift & 255], weight);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            u64 sum = before;
            digit[0] = 255, above[0] = before;
            for (u32 b = 256; b-- > 0;) {
                if (bins[b] == 0) continue;
                if (sum >= limit) break;
                digit[0] = b, above[0] = sum;
                sum += bins[b];
            }
        }
        __syncthreads();
        prefix = prefix << 8 | digit[0];
        before = above[0];
        if (shift == 0) return prefix;
    }
}

/// grid (logit rows).
KERNEL(SAMPLE_THREADS) sample(const u32* live, float* logits, const SampleRow* params, const u32* offsets, const Adjust* adjust, const u32* masks, u32* out, u32 vocab) {
    SHARED(u32, faults, 1);
    SHARED(u64, mass, 1);
    wait_for_previous();
    if (blockIdx.x >= live[1]) return;
    const SampleRow row = params[blockIdx.x];
    float* z = logits + (u64)blockIdx.x * vocab;
    if (threadIdx.x == 0) faults[0] = 0, mass[0] = 0;
    for (u32 i = offsets[blockIdx.x] + threadIdx.x; i < offsets[blockIdx.x + 1]; i += SAMPLE_THREADS)
        z[adjust[i].token] = adjusted(z[adjust[i].token], row, adjust[i]);
    __syncthreads();

    Best best = {minus_infinity(), 0xFFFFFFFFu};
    bool fault = false;
    for (u32 i = threadIdx.x; i < vocab; i += SAMPLE_THREADS) {
        float v = z[i];
        fault = fault || !(v < -minus_infinity()); // NaN or +infinity
        if (row.mask && !(masks[(u64)(row.mask - 1) * ((vocab + 31) / 32) + i / 32] >> (i % 32) & 1)) z[i] = v = minus_infinity();
        if (row.temperature != 0.0f) z[i] = v = v / row.temperature;
        best.take(v, i);
    }
    if (fault) atomicOr(&faults[0], 1u);
    best = block_best(best);
    launch_next();
    const float largest = best.value;
    if (faults[0] || largest == minus_infinity() || row.temperature == 0.0f) {
        if (threadIdx.x == 0) out[blockIdx.x] = faults[0] || largest == minus_infinity() ? ERROR_TOKEN : best.index;
        return;
    }
    u32 lowest = key_of(minus_infinity()) + 1; // smallest key that is kept
    if (row.top_k) lowest = threshold(z, vocab, row.top_k, [&](u32 i) { return (u64)(z[i] > minus_infinity()); });
    if (row.top_p < 1.0f) {
        auto weigh = [&](u32 i) { return key_of(z[i]) < lowest ? 0ull : (u64)(expf(z[i] - largest) * 1099511627776.0f); };
        u64 mine = 0;
        for (u32 i = threadIdx.x; i < vocab; i += SAMPLE_THREADS) mine += weigh(i);
        atomicAdd(&mass[0], mine);
        __syncthreads();
        u64 limit = (u64)((double)row.top_p * (double)mass[0]);
        lowest = threshold(z, vocab, limit ? limit : 1, weigh);
    }
    const float margin = row.min_p > 0.0f ? logf(row.min_p) : minus_infinity();
    best = {minus_infinity(), 0xFFFFFFFFu};
    for (u32 i = threadIdx.x; i < vocab; i += SAMPLE_THREADS)
        if (key_of(z[i]) >= lowest && z[i] - largest >= margin) best.take(z[i] + gumbel(row, i), i);
    best = block_best(best);
    if (threadIdx.x == 0) out[blockIdx.x] = best.index;
}
EXPORT(sample)
