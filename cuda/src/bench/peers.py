"""The same shapes by PyTorch (cuBLAS, scaled_mm, scaled_dot_product_attention) and Triton, timed beside Ponder.

Reads a JSON list of shapes on standard input, prints one JSON object:
{"why": null or why nothing ran, "versions": {...}, "times": [[{"by", "us" or "why"}, ...] for each shape]}.
Times are medians over replays of a CUDA graph, on random data, with weights and caches that add up to more than any
cache holds. A kernel is timed only after its numbers agreed with a float32 product of some rows.
"""
import json
import sys

CACHE_BYTES = 256 << 20


def main():
    shapes = json.load(sys.stdin)
    try:
        import torch
    except Exception as error:  # an installation may be broken in any way
        return {"why": f"no PyTorch: {error}", "versions": {}, "times": []}
    if not torch.cuda.is_available():
        return {"why": f"PyTorch {torch.__version__} sees no CUDA device", "versions": {}, "times": []}
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "device": torch.cuda.get_device_name()}
    try:
        import triton
        versions["triton"] = triton.__version__
    except Exception as error:
        versions["triton"] = f"none: {error}"
    kinds = {"linear": LINEAR, "attention": ATTENTION}
    times = []
    for shape in shapes:
        row = []
        for by, run in kinds[shape["kind"]]:
            try:
                us = run(torch, shape)
                if us is not None:
                    row.append({"by": by, "us": us})
            except Exception as error:
                row.append({"by": by, "why": f"{type(error).__name__}: {error}"[:200]})
            torch.cuda.empty_cache()
        times.append(row)
    return {"why": None, "versions": versions, "times": times}


def median_us(torch, calls):
    """Median time of one of `calls`, which run one after the other in a captured graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls[:3]:
            call()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
        samples = []
        for i in range(9):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(stream)
            graph.replay()
            end.record(stream)
            stream.synchronize()
            if i > 1:
                samples.append(start.elapsed_time(end) * 1e3 / len(calls))
    return sorted(samples)[len(samples) // 2]


def copies(bytes_each):
    return max(2, CACHE_BYTES // max(bytes_each, 1) + 1)


def operands(torch, shape, dtype):
    n, k, rows = shape["n"], shape["k"], shape["rows"]
    x = torch.randn(rows, k, device="cuda").to(dtype)
    one = torch.randn(n, k, device="cuda") / k**0.5
    return x, [one.to(dtype) for _ in range(copies(n * k * 2))]


def agree(torch, got, x, w):
    want = x[:4].float() @ w.float().t()
    error = (got[:4].float() - want).abs().max() / want.abs().max()
    if not error < 0.05:
        raise ValueError(f"its numbers are off by {error:.3f} of the largest")


def float_type(torch, shape):
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(shape["format"])


def cublas(torch, shape):
    dtype = float_type(torch, shape)
    if dtype is None:
        return None
    x, ws = operands(torch, shape, dtype)
    out = torch.empty(shape["rows"], shape["n"], device="cuda", dtype=dtype)
    torch.mm(x, ws[0].t(), out=out)
    agree(torch, out, x, ws[0])
    return median_us(torch, [lambda w=w: torch.mm(x, w.t(), out=out) for w in ws])


def scaled_mm(torch, shape):
    if shape["format"] != "F8_E4M3":
        return None
    n, k = shape["n"], shape["k"]
    rows = -(-shape["rows"] // 16) * 16  # its rows come in sixteens
    x = torch.randn(rows, k, device="cuda").to(torch.float8_e4m3fn)
    one = torch.randn(n, k, device="cuda").to(torch.float8_e4m3fn)
    ws = [one.clone() for _ in range(copies(n * k))]
    scale = torch.ones((), device="cuda")
    call = lambda w: torch._scaled_mm(x, w.t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)
    agree(torch, call(ws[0]), x, ws[0])
    return median_us(torch, [lambda w=w: call(w) for w in ws])


def int4_mm(torch, shape):
    if shape["format"] != "I4_G128":
        return None
    n, k, group = shape["n"], shape["k"], 128
    x = torch.randn(shape["rows"], k, device="cuda").to(torch.bfloat16)
    levels = torch.randint(0, 256, (n, k // 2), device="cuda", dtype=torch.uint8)
    packed = [torch._convert_weight_to_int4pack(levels, 8) for _ in range(copies(n * k // 2))]
    scales = torch.rand(k // group, n, 2, device="cuda").to(torch.bfloat16)
    return median_us(torch, [lambda w=w: torch._weight_int4pack_mm(x, w, group, scales) for w in packed])


def triton_mm(torch, shape):
    dtype = float_type(torch, shape)
    if dtype is None:
        return None
    import triton

    kernel = triton_kernel()
    x, ws = operands(torch, shape, dtype)
    rows, n, k = shape["rows"], shape["n"], shape["k"]
    out = torch.empty(rows, n, device="cuda", dtype=dtype)
    best = None
    for bm, bn, bk, warps in [(16, 32, 128, 4), (16, 64, 128, 4), (64, 64, 64, 4), (128, 128, 64, 8)]:
        if bm > 16 and bm >= 2 * rows:
            continue
        grid = (triton.cdiv(rows, bm) * triton.cdiv(n, bn),)
        call = lambda w: kernel[grid](x, w, out, rows, n, k, BM=bm, BN=bn, BK=bk, num_warps=warps, num_stages=4)
        call(ws[0])
        agree(torch, out, x, ws[0])
        us = median_us(torch, [lambda w=w: call(w) for w in ws])
        best = us if best is None else min(best, us)
    return best


def triton_kernel():
    import triton
    import triton.language as tl

    globals()["tl"] = tl

    @triton.jit
    def matmul(x, w, out, rows, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
        tiles = tl.cdiv(rows, BM)
        m = (tl.program_id(0) % tiles) * BM + tl.arange(0, BM)
        c = (tl.program_id(0) // tiles) * BN + tl.arange(0, BN)
        i = tl.arange(0, BK)
        total = tl.zeros((BM, BN), dtype=tl.float32)
        for at in range(0, k, BK):
            a = tl.load(x + m[:, None] * k + at + i[None, :], mask=(m[:, None] < rows) & (at + i[None, :] < k), other=0.0)
            b = tl.load(w + c[None, :].to(tl.int64) * k + at + i[:, None], mask=(c[None, :] < n) & (at + i[:, None] < k), other=0.0)
            total = tl.dot(a, b, total)
        to = out + m[:, None] * n + c[None, :]
        tl.store(to, total.to(out.dtype.element_ty), mask=(m[:, None] < rows) & (c[None, :] < n))

    return matmul


def sdpa(torch, shape):
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16}.get(shape["format"])
    if dtype is None:
        raise ValueError("it has no FP8 cache")
    rows, context, dim = shape["rows"], shape["context"], shape["head_dim"]
    q = torch.randn(rows, shape["heads"], 1, dim, device="cuda", dtype=dtype)
    size = (rows, shape["kv_heads"], context, dim)
    each = rows * shape["kv_heads"] * context * dim * 4
    caches = [tuple(torch.randn(size, device="cuda", dtype=dtype) for _ in range(2)) for _ in range(min(8, copies(each)))]
    attend = torch.nn.functional.scaled_dot_product_attention
    return median_us(torch, [lambda k=k, v=v: attend(q, k, v, enable_gqa=True) for k, v in caches])


LINEAR = [("cuBLAS", cublas), ("scaled_mm, one scale", scaled_mm), ("int4 of PyTorch", int4_mm), ("Triton", triton_mm)]
ATTENTION = [("scaled_dot_product_attention, cache in one piece", sdpa)]

if __name__ == "__main__":
    print(json.dumps(main()))
