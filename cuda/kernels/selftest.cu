// Kernels that test the wrappers and the CPU's runtime, not the engine: each can be asked to make a
// mistake, and a test sees that the mistake shows.
#include "ponder.cuh"

const u32 SELFTEST_THREADS = 128;

/// What goes wrong on purpose.
enum Mistake : u32 { NONE, NO_BARRIER, NEVER_ARRIVES, DIVERGENT, REFILL_TOO_EARLY, READ_TOO_EARLY };

/// out[i] = i + 33 (mod 128), through shared memory. grid (1).
KERNEL(SELFTEST_THREADS) selftest_exchange(float* out, u32 mistake) {
    SHARED(float, values, SELFTEST_THREADS);
    values[threadIdx.x] = (float)threadIdx.x;
    if (mistake != NO_BARRIER) __syncthreads();
    float value = values[(threadIdx.x + 33) % SELFTEST_THREADS];
    if (mistake == DIVERGENT && threadIdx.x % 32 < 16) value = shuffle(value, 0);
    if (mistake == DIVERGENT) __syncwarp();
    out[threadIdx.x] = value;
}
EXPORT(selftest_exchange)

/// out[i] = sum over tiles of (tile + 1) * x[tile * 128 + i], tiles streamed through a ring of bulk copies. grid (1).
KERNEL(SELFTEST_THREADS) selftest_ring(const float* x, float* out, u32 tiles, u32 mistake) {
#if HAS_BULK_COPY
    const u32 STAGES = 3, BYTES = SELFTEST_THREADS * 4;
    SHARED(float, ring, STAGES * SELFTEST_THREADS);
    SHARED(u64, full, STAGES);
    SHARED(u64, empty, STAGES);
    const bool producer = threadIdx.x == 0;
    if (producer) {
        for (u32 s = 0; s < STAGES; s++) mbarrier_init(&full[s], 1), mbarrier_init(&empty[s], SELFTEST_THREADS);
        mbarrier_fence();
    }
    __syncthreads();
    for (u32 s = 0; producer && s < STAGES && s < tiles; s++) {
        mbarrier_arrive_expect(&full[s], BYTES);
        bulk_copy(ring + s * SELFTEST_THREADS, x + s * SELFTEST_THREADS, BYTES, &full[s]);
    }
    float sum = 0.0f;
    for (u32 tile = 0; tile < tiles; tile++) {
        u32 s = tile % STAGES, parity = tile / STAGES % 2;
        if (mistake != READ_TOO_EARLY) mbarrier_wait(&full[s], parity);
        sum = fmaf((float)(tile + 1), ring[s * SELFTEST_THREADS + threadIdx.x], sum);
        if (mistake != NEVER_ARRIVES || threadIdx.x != 5) mbarrier_arrive(&empty[s]);
        if (producer && tile + STAGES < tiles) {
            if (mistake != REFILL_TOO_EARLY) mbarrier_wait(&empty[s], parity);
            mbarrier_arrive_expect(&full[s], BYTES);
            bulk_copy(ring + s * SELFTEST_THREADS, x + (tile + STAGES) * SELFTEST_THREADS, BYTES, &full[s]);
        }
    }
    out[threadIdx.x] = sum;
#else
    (void)x, (void)out, (void)tiles, (void)mistake; // nothing to test before sm_90
#endif
}
EXPORT(selftest_ring)

/// The same through two stages of each thread's own copies, read by its neighbour. grid (1).
KERNEL(SELFTEST_THREADS) selftest_copies(const float* x, float* out, u32 tiles, u32 mistake) {
    const u32 WORDS = SELFTEST_THREADS / 4; // copies of a tile
    SHARED(float, stages, 2 * SELFTEST_THREADS);
    auto fetch = [&](u32 tile) {
        if (threadIdx.x < WORDS && tile < tiles) copy_x4(stages + tile % 2 * SELFTEST_THREADS + threadIdx.x * 4, x + tile * SELFTEST_THREADS + threadIdx.x * 4);
    };
    fetch(0);
    float sum = 0.0f;
    for (u32 tile = 0; tile < tiles; tile++) {
        if (mistake == REFILL_TOO_EARLY) fetch(tile + 1), fetch(tile + 2);
        if (mistake != READ_TOO_EARLY) wait_for_copies();
        __syncthreads();
        if (mistake != REFILL_TOO_EARLY) fetch(tile + 1);
        sum = fmaf((float)(tile + 1), stages[tile % 2 * SELFTEST_THREADS + threadIdx.x], sum);
    }
    wait_for_copies();
    out[threadIdx.x] = sum;
}
EXPORT(selftest_copies)

/// What the tensor cores do when nothing keeps them waiting: `rounds` of eight independent products by each warp of a
/// full device. The sums are looked at, so that they are computed. grid (any), 256 threads.
KERNEL(256) matrix_rate(float* out, u32 rounds) {
    // Numbers near 1 with random last bits: zeros would flatter the clock.
    u32 a[4], b[2];
    for (u32 i = 0; i < 4; i++) a[i] = 0x3F803F80u | ((threadIdx.x * 4 + i) * 2654435761u & 0x007F807Fu);
    for (u32 i = 0; i < 2; i++) b[i] = 0x3F80BF80u | ((threadIdx.x * 2 + i) * 2246822519u & 0x007F007Fu);
    float sum[8][4];
    for (u32 j = 0; j < 8; j++)
        for (u32 i = 0; i < 4; i++) sum[j][i] = (float)(threadIdx.x + 4 * j + i); // no two alike, or one would do
    for (u32 round = 0; round < rounds; round++) {
#pragma unroll
        for (u32 j = 0; j < 8; j++) mma_bf16(sum[j], a, b[0], b[1]);
    }
    float all = 0.0f;
    for (u32 j = 0; j < 8; j++)
        for (u32 i = 0; i < 4; i++) all = all + sum[j][i];
    if (all == 12345.678f) out[0] = all;
}
EXPORT(matrix_rate)
