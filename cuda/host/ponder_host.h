// The kernels' other world: what ponder.cuh names, on a CPU. Threads are fibers (host/runtime.cpp).
//
// The bodies here give the *meaning* of each wrapper; they are slow and exact where the hardware is
// (mma sums in f32 in order of k; the hardware's order within one mma is its own).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define __CUDA_ARCH__ 0
#define DEVICE inline
#define KERNEL(bounds) static void
#define __restrict__

namespace host {
struct Dim {
    u32 x, y, z;
};
/// Facts of the running fiber, for the threadIdx macros.
struct Here {
    Dim thread, block, block_dim, grid_dim;
    u32 lane;
};
/// Kinds of warp-wide operations: the lanes of a warp must meet at the same one.
enum WarpOp : u32 { SYNC = 1, SHUFFLE, MMA_BF16, VOTE };

extern thread_local Here here;

void block_barrier();
/// Meets the other lanes; returns the table of all deposits, valid until this lane's next warp operation.
/// `words` u32 of each lane are gathered; `finish` runs once, in the last lane to come.
const u32 (*meet(WarpOp op, const u32* words, u32 count, void (*finish)(u32 (*lanes)[16])))[16];
/// The block's shared array declared at `site`: the same address in all threads, poisoned first.
void* shared_array(const void* site, size_t bytes);
u8* dynamic_shared();
void barrier_init(const void* bar, u32 count);
void barrier_arrive(const void* bar, u32 bytes);
void barrier_wait(const void* bar, u32 parity);
void copy_async(void* to, const void* from, u32 bytes, const void* bar);
void copy_own(void* to, const void* from, u32 bytes);
void wait_for_own();
[[noreturn]] void fault(const char* format, ...);

struct Entry {
    const char* name;
    void (*call)(void** args);
    u32 params;
    Entry* next;
    static Entry* first;
    template <class... A>
    Entry(const char* name, void (*call)(void** args), void (*)(A...)) : name(name), call(call), params(sizeof...(A)), next(first) {
        first = this;
    }
};
template <u32... I> struct Indices {};
template <u32 N, u32... I> struct Count : Count<N - 1, N - 1, I...> {};
template <u32... I> struct Count<0, I...> { typedef Indices<I...> type; };
template <class... A, u32... I>
void unpack(void (*f)(A...), void** args, Indices<I...>) { f(*(typename std::remove_cv<A>::type*)args[I]...); }
template <class... A>
void unpack(void (*f)(A...), void** args) { unpack(f, args, typename Count<sizeof...(A)>::type()); }
} // namespace host

#define EXPORT(name) static host::Entry name##_entry(#name, [](void** args) { host::unpack(&name, args); }, &name);
#define SHARED(type, name, count)                                                                                    \
    static const char name##_site = 0;                                                                               \
    type* name = (type*)host::shared_array(&name##_site, sizeof(type) * (count))

#define threadIdx (host::here.thread)
#define blockIdx (host::here.block)
#define blockDim (host::here.block_dim)
#define gridDim (host::here.grid_dim)

inline void __syncthreads() { host::block_barrier(); }
inline void __syncwarp() { host::meet(host::SYNC, nullptr, 0, nullptr); }

inline u32 opaque(u32 x) { return x; }
inline u32 bits_of(float x) { u32 r; memcpy(&r, &x, 4); return r; }
inline float float_of(u32 x) { float r; memcpy(&r, &x, 4); return r; }

inline float f32_of_f16(u16 h) {
    u32 sign = (u32)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3FF;
    if (exponent == 0) {
        float tiny = (float)mantissa * 5.9604644775390625e-8f; // 2^-24, exact
        return sign ? -tiny : tiny;
    }
    if (exponent == 31) return float_of(sign | 0x7F800000u | mantissa << 13);
    return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}
inline u16 f16_of_f32(float f) {
    u32 x = bits_of(f), sign = x >> 16 & 0x8000;
    x &= 0x7FFFFFFF;
    if (x > 0x7F800000) return (u16)0x7FFF;              // NaN, as cvt gives it
    if (x >= 0x477FF000) return (u16)(sign | 0x7C00);    // rounds to infinity
    if (x < 0x38800000) {                                // subnormal: in units of 2^-24, ties to even
        float scaled = float_of(x) * 16777216.0f;
        return (u16)(sign | (u32)nearbyintf(scaled));
    }
    u32 rounded = x + 0xFFF + (x >> 13 & 1);
    return (u16)(sign | (rounded - 0x38000000) >> 13);
}
inline u16 bf16_of_f32(float f) {
    u32 x = bits_of(f);
    if ((x & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF;
    return (u16)((x + 0x7FFF + (x >> 16 & 1)) >> 16);
}
inline u32 bf16x2_of_f32(float low, float high) { return (u32)bf16_of_f32(high) << 16 | bf16_of_f32(low); }
inline u32 fma_bf16x2(u32 a, u32 b, u32 c) {
    // A product of two 8-bit significands plus a third fits a double exactly for the ranges in use.
    auto one = [](u32 x, u32 y, u32 z) {
        double d = (double)float_of(x << 16) * float_of(y << 16) + float_of(z << 16);
        return (u32)bf16_of_f32((float)d);
    };
    return one(a >> 16, b >> 16, c >> 16) << 16 | one(a & 0xFFFF, b & 0xFFFF, c & 0xFFFF);
}

inline void check_aligned(const void* p, size_t bytes) {
    if ((uintptr_t)p % bytes) host::fault("a %zu-byte access at the misaligned address %p", bytes, p);
}
inline U32x4 load_u32x4(const void* p) { check_aligned(p, 16); return *(const U32x4*)p; }
inline U32x2 load_u32x2(const void* p) { check_aligned(p, 8); return *(const U32x2*)p; }
inline U32x4 load_stream_x4(const void* p) { return load_u32x4(p); }
inline u32 load_stream(const void* p) { check_aligned(p, 4); return *(const u32*)p; }
inline F32x4 load_f32x4(const float* p) { check_aligned(p, 16); return *(const F32x4*)p; }

inline u32 shuffle(u32 x, u32 lane) { return host::meet(host::SHUFFLE, &x, 1, nullptr)[lane % 32][0]; }
inline float shuffle(float x, u32 lane) { return float_of(shuffle(bits_of(x), lane)); }
inline u32 shuffle_xor(u32 x, u32 mask) { return shuffle(x, host::here.lane ^ mask); }
inline float shuffle_xor(float x, u32 mask) { return float_of(shuffle(bits_of(x), host::here.lane ^ mask)); }

/// All 32 lanes' products at once, from the deposited fragments through PTX's layout: A(r, k) lies in lane
/// (r % 8) * 4 + k % 8 / 2, register (r >= 8) + 2 * (k >= 8); B(k, n) in lane n * 4 + k % 8 / 2, register k >= 8;
/// odd k in the high half; C of lane l at rows l / 4 and + 8, columns 2 * (l % 4) and + 1.
inline void mma_bf16_finish(u32 (*lanes)[16]) {
    typedef float Row __attribute__((vector_size(32)));
    float a[16][16];
    Row b[16];
    for (u32 k = 0; k < 16; k++) {
        u32 pair = k % 8 / 2, shift = k % 2 ? 0 : 16;
        for (u32 r = 0; r < 16; r++) a[r][k] = float_of(lanes[r % 8 * 4 + pair][(r >= 8) + 2 * (k >= 8)] << shift & 0xFFFF0000u);
        for (u32 n = 0; n < 8; n++) b[k][n] = float_of(lanes[n * 4 + pair][4 + (k >= 8)] << shift & 0xFFFF0000u);
    }
    for (u32 r = 0; r < 16; r++) {
        auto c = [&](u32 n) -> u32& { return lanes[r % 8 * 4 + n / 2][6 + n % 2 + 2 * (r >= 8)]; };
        Row sum;
        for (u32 n = 0; n < 8; n++) sum[n] = float_of(c(n));
        for (u32 k = 0; k < 16; k++) sum += a[r][k] * b[k];
        for (u32 n = 0; n < 8; n++) c(n) = bits_of(sum[n]);
    }
}
inline void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    u32 words[10] = {a[0], a[1], a[2], a[3], b0, b1, bits_of(c[0]), bits_of(c[1]), bits_of(c[2]), bits_of(c[3])};
    const u32* mine = host::meet(host::MMA_BF16, words, 10, mma_bf16_finish)[host::here.lane];
    for (u32 i = 0; i < 4; i++) c[i] = float_of(mine[6 + i]);
}

inline u32 min(u32 a, u32 b) { return a < b ? a : b; }
inline u32 max(u32 a, u32 b) { return a > b ? a : b; }

// One block runs at a time, so plain additions are atomic.
template <class T> inline T atomicAdd(T* p, T v) { T old = *p; *p = old + v; return old; }
inline u32 atomicMax(u32* p, u32 v) { u32 old = *p; if (v > old) *p = v; return old; }
inline u32 atomicMin(u32* p, u32 v) { u32 old = *p; if (v < old) *p = v; return old; }
inline u32 atomicOr(u32* p, u32 v) { u32 old = *p; *p = old | v; return old; }

inline void copy_x4(void* to, const void* from) { check_aligned(to, 16), check_aligned(from, 16), host::copy_own(to, from, 16); }
inline void wait_for_copies() { host::wait_for_own(); }
#define HAS_BULK_COPY 1
inline void mbarrier_init(u64* bar, u32 count) { host::barrier_init(bar, count); }
inline void mbarrier_fence() {}
inline void mbarrier_arrive(u64* bar) { host::barrier_arrive(bar, 0); }
inline void mbarrier_arrive_expect(u64* bar, u32 bytes) { host::barrier_arrive(bar, bytes); }
inline void mbarrier_wait(u64* bar, u32 parity) { host::barrier_wait(bar, parity); }
inline void bulk_copy(void* to, const void* from, u32 bytes, u64* bar) { host::copy_async(to, from, bytes, bar); }

inline void wait_for_previous() {}
inline void launch_next() {}
