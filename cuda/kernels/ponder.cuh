// The type layer: everything a kernel may name beyond plain C++.
//
// No CUDA header is included, so that NVRTC compiles the kernels on a machine that has nothing but
// NVRTC, and g++ compiles the same files for the CPU. Each wrapper has two bodies, chosen by
// __CUDACC__: inline PTX here, C++ in host/ponder_host.h. A kernel that names anything else does not
// compile in one of the two worlds.
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;

/// Four words, loaded and stored as one 16-byte access.
struct alignas(16) U32x4 {
    u32 x, y, z, w;
};
/// Two words, loaded and stored as one 8-byte access.
struct alignas(8) U32x2 {
    u32 x, y;
};
/// Four floats, loaded and stored as one 16-byte access.
struct alignas(16) F32x4 {
    float x, y, z, w;
};

#ifndef __CUDACC__
#include "ponder_host.h"
#else

#define DEVICE __device__ __forceinline__
/// A kernel's entry. `bounds` is its block size. One block per multiprocessor is asked for, no more: left to
/// itself the compiler trades registers for occupancy and spills a few bytes.
#define KERNEL(bounds) extern "C" __global__ void __launch_bounds__(bounds, 1)
/// Makes a kernel findable by name on the CPU; nothing on a GPU.
#define EXPORT(name)
/// A shared array. Every thread of the block must reach the declaration.
#define SHARED(type, name, count) __shared__ __align__(16) type name[count]

/// The same value, whose origin the compiler cannot see: what is made of it in a loop is made there each time, not once
/// before the loop and kept in registers.
DEVICE u32 opaque(u32 x) {
    asm volatile("mov.u32 %0, %0;" : "+r"(x));
    return x;
}

DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
DEVICE float float_of(u32 x) { return __uint_as_float(x); }

// --- 16-bit floats -----------------------------------------------------------------------------
DEVICE float f32_of_f16(u16 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
DEVICE u16 f16_of_f32(float f) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
DEVICE u16 bf16_of_f32(float f) {
    u16 h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
/// Two bf16 in a word, `low` in the low half.
DEVICE u32 bf16x2_of_f32(float low, float high) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
/// a * b + c on two bf16 at once, each rounded once.
DEVICE u32 fma_bf16x2(u32 a, u32 b, u32 c) {
    u32 r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

// --- memory ------------------------------------------------------------------------------------
/// Read-only data that is used once: not kept in L1.
DEVICE U32x4 load_stream_x4(const void* p) {
    U32x4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
DEVICE u32 load_stream(const void* p) {
    u32 v;
    asm("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}
/// Data that an earlier kernel of the same step wrote: an ordinary load.
DEVICE F32x4 load_f32x4(const float* p) {
    F32x4 v;
    asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p) : "memory");
    return v;
}
DEVICE U32x2 load_u32x2(const void* p) {
    U32x2 v;
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
    return v;
}
DEVICE U32x4 load_u32x4(const void* p) {
    U32x4 v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}

// --- warps -------------------------------------------------------------------------------------
DEVICE float shuffle_xor(float x, u32 mask) { return __shfl_xor_sync(0xFFFFFFFFu, x, mask); }
DEVICE u32 shuffle_xor(u32 x, u32 mask) { return __shfl_xor_sync(0xFFFFFFFFu, x, mask); }
DEVICE float shuffle(float x, u32 lane) { return __shfl_sync(0xFFFFFFFFu, x, lane); }
DEVICE u32 shuffle(u32 x, u32 lane) { return __shfl_sync(0xFFFFFFFFu, x, lane); }

// --- tensor cores ------------------------------------------------------------------------------
/// c[16x8] += a[16x16] * b[16x8] in bf16 with f32 sums; PTX's fragment layout of mma.m16n8k16.
DEVICE void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// --- asynchronous copies -----------------------------------------------------------------------
DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
/// Starts a copy of 16 bytes to shared memory.
DEVICE void copy_x4(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
/// Waits until this thread's own copies have landed; a barrier then shows them to the block.
DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// The copy engine, of sm_90 and later.
#if __CUDA_ARCH__ >= 900
#define HAS_BULK_COPY 1
/// A barrier in shared memory that `count` arrivals and the bytes announced to it complete.
DEVICE void mbarrier_init(u64* bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
}
/// Makes fresh barriers visible to the copy engine; before the block's next barrier.
DEVICE void mbarrier_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void mbarrier_arrive(u64* bar) {
    asm volatile("{ .reg .b64 t; mbarrier.arrive.shared::cta.b64 t, [%0]; }" ::"r"(shared_address(bar)) : "memory");
}
/// Arrives and announces `bytes` that copies will bring.
DEVICE void mbarrier_arrive_expect(u64* bar, u32 bytes) {
    asm volatile("{ .reg .b64 t; mbarrier.arrive.expect_tx.shared::cta.b64 t, [%0], %1; }" ::"r"(shared_address(bar)), "r"(bytes) : "memory");
}
/// Waits until the phase of that parity (0 for the first) is complete.
DEVICE void mbarrier_wait(u64* bar, u32 parity) {
    asm volatile("{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @!done bra again; }" ::"r"(shared_address(bar)), "r"(parity) : "memory");
}
/// Starts a copy of `bytes` (a multiple of 16) to shared memory; its landing counts on `bar`.
DEVICE void bulk_copy(void* to, const void* from, u32 bytes, u64* bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(bar)) : "memory");
}
#else
#define HAS_BULK_COPY 0
#endif

// --- programmatic dependent launch -------------------------------------------------------------
/// Blocks until the kernels before this one have written their results. First statement that
/// touches anything but weights.
DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// Lets the next kernel begin its own prefetch.
DEVICE void launch_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#endif // __CUDACC__

// --- the same in both worlds -------------------------------------------------------------------
DEVICE u32 lane_of() { return threadIdx.x % 32; }
DEVICE u32 warp_of() { return threadIdx.x / 32; }
DEVICE u32 div_up(u32 a, u32 b) { return (a + b - 1) / b; }
DEVICE float f32_of_bf16(u16 h) { return float_of((u32)h << 16); }
DEVICE float bf16_low(u32 pair) { return float_of(pair << 16); }
DEVICE float bf16_high(u32 pair) { return float_of(pair & 0xFFFF0000u); }
DEVICE float minus_infinity() { return float_of(0xFF800000u); }

/// Three bf16 terms of four floats, largest first, as the two registers of a B fragment each. Two terms
/// (16 bits) were not enough: attention scores of some tens turned their error into 1e-4 of an output.
struct Operand {
    u32 term[3][2];
    DEVICE Operand(F32x4 v) {
#pragma unroll
        for (u32 i = 0; i < 3; i++) {
            term[i][0] = bf16x2_of_f32(v.x, v.y);
            term[i][1] = bf16x2_of_f32(v.z, v.w);
            v = {v.x - bf16_low(term[i][0]), v.y - bf16_high(term[i][0]), v.z - bf16_low(term[i][1]), v.w - bf16_high(term[i][1])};
        }
    }
};

/// Two FP8 codes of M mantissa bits, of the low and the second byte, as bf16, exactly; the NaN code is not for it. A
/// code's exponent and mantissa where a bf16 has its own are 2^-120 of the number (M 3), or 2^-126 (M 5).
template <u32 M>
DEVICE u32 bf16x2_of_f8(u32 codes) {
    u32 spread = (codes & 0xFFu) | (codes & 0xFF00u) << 8;
    return fma_bf16x2((spread & 0x007F007Fu) << (7 - M), M == 3 ? 0x7B807B80u : 0x7E807E80u, 0x80008000u) | (spread & 0x00800080u) << 8;
}

/// Sum over a warp, the same bits in every lane.
DEVICE float warp_sum(float x) {
    for (u32 mask = 16; mask; mask >>= 1) x = x + shuffle_xor(x, mask);
    return x;
}
DEVICE float warp_max(float x) {
    for (u32 mask = 16; mask; mask >>= 1) x = fmaxf(x, shuffle_xor(x, mask));
    return x;
}
DEVICE u32 warp_max(u32 x) {
    for (u32 mask = 16; mask; mask >>= 1) x = max(x, shuffle_xor(x, mask));
    return x;
}
/// Sum over a block of THREADS, the same bits in every thread: warps are added in their order.
template <u32 THREADS>
DEVICE float block_sum(float x) {
    SHARED(float, parts, THREADS / 32);
    x = warp_sum(x);
    __syncthreads();
    if (lane_of() == 0) parts[warp_of()] = x;
    __syncthreads();
    float sum = parts[0];
    for (u32 w = 1; w < THREADS / 32; w++) sum = sum + parts[w];
    return sum;
}

/// The gate's activation: 0 SiLU, 1 GELU by the tanh approximation.
DEVICE float activate(float x, u32 kind) {
    if (kind == 0) return x / (1.0f + expf(-x));
    float inner = 0.7978845608028654f * fmaf(0.044715f * x * x, x, x);
    return 0.5f * x * (1.0f + tanhf(inner));
}

// --- formats of cached keys and values ---------------------------------------------------------
// SCALED formats hold codes to be multiplied with the scale of their token and head, a power of two, or NaN where some
// element is not finite.
struct KvF32 {
    typedef float Stored;
    static const bool SCALED = false;
    static DEVICE float encode(float x) { return x; }
};
struct KvF16 {
    typedef u16 Stored;
    static const bool SCALED = false;
    static DEVICE u16 encode(float x) { return f16_of_f32(x); }
};
struct KvBF16 {
    typedef u16 Stored;
    static const bool SCALED = false;
    static DEVICE u16 encode(float x) { return bf16_of_f32(x); }
};

/// FP8. The formulas are those of the engine's `format::f8`; integers only, so no value is flushed.
struct KvE2M5 {
    typedef u8 Stored;
    static const bool SCALED = true;
    static const u32 SHIFT = 18, REBIAS = 126;
    /// The nearest code, ties to even; beyond the largest it saturates. NaN is not for it.
    static DEVICE u8 encode(float x) {
        u32 bits = bits_of(x), top = min(bits & 0x7FFFFFFFu, (REBIAS << 23) + (0x7Eu << SHIFT));
        u32 normal = (top - (REBIAS << 23) + (1u << (SHIFT - 1)) - 1 + (top >> SHIFT & 1)) >> SHIFT;
        // A subnormal code counts the steps that an f32 of this magnitude has.
        const u32 first = (REBIAS + 1 + SHIFT) << 23;
        u32 steps = bits_of(float_of(top) + float_of(first)) - first;
        return (u8)((top < (REBIAS + 1) << 23 ? steps : normal) | (bits >> 24 & 0x80u));
    }
    /// The scale of a token's head whose largest magnitude has these bits.
    static DEVICE float scale(u32 largest) {
        if (largest == 0) return 1.0f;
        if (largest >= 0x7F800000u) return float_of(0x7FC00000u);
        return float_of(min(max((largest + (3u << (SHIFT - 1))) >> 23, 69u) - 2, 187u) << 23);
    }
    /// Stores a head of `dim` elements and its scale; all lanes of a warp.
    static DEVICE void store(const float* from, u32 dim, u8* to, float* to_scale) {
        u32 largest = 0;
        for (u32 i = lane_of(); i < dim; i += 32) largest = max(largest, bits_of(from[i]) & 0x7FFFFFFFu);
        float own = scale(warp_max(largest));
        if (lane_of() == 0) *to_scale = own;
        float inverse = float_of(0x7F000000u - bits_of(own)); // of a power of two; of what is no number, any
        for (u32 i = lane_of(); i < dim; i += 32) to[i] = encode(from[i] * inverse);
    }
};

// As in weight.cuh: a module may hold the kernels of one cache format only.
#if defined(VARIANT)
#define EACH_CACHE_(M, variant) M(variant)
#define EACH_CACHE(M) EACH_CACHE_(M, VARIANT)
#define EACH_PLAIN_CACHE(M) EACH_CACHE_(M, VARIANT)
#else
#define EACH_CACHE(M) M(F32) M(F16) M(BF16) M(E2M5)
#define EACH_PLAIN_CACHE(M) M(F32) M(F16) M(BF16)
#endif
