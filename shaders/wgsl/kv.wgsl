// Cached keys and values, four at a time: packing and unpacking of $KV (F32, F16, BF16); FP8 (E2M5) is unpacked
// only, without its scale, and packed by `f8`.
//#if KV == 0
alias Quad = vec4<f32>;
fn kv_unpack(v: Quad) -> vec4<f32> { return v; }
fn kv_pack(v: vec4<f32>) -> Quad { return v; }
//#else
//#if KV == 3
alias Quad = u32;
// No f32 or f16 on the way is subnormal: a device may flush those.
fn kv_unpack(w: Quad) -> vec4<f32> {
    let code = vec4<u32>(w) >> vec4<u32>(0u, 8u, 16u, 24u);
    let low = code & vec4<u32>(0x7fu);
    let normal = (low << vec4<u32>(18u)) + vec4<u32>(0x3f000000u);
    let small = bitcast<vec4<u32>>(vec4<f32>(low) * 0.03125);
    let sign = (code & vec4<u32>(0x80u)) << vec4<u32>(24u);
    return bitcast<vec4<f32>>(select(normal, small, low < vec4<u32>(32u)) | sign);
}
//#else
alias Quad = vec2<u32>;
//#if KV == 1
fn kv_unpack(v: Quad) -> vec4<f32> { return vec4<f32>(unpack2x16float(v.x), unpack2x16float(v.y)); }
fn kv_pack(v: vec4<f32>) -> Quad { return vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw)); }
//#else
fn kv_unpack(v: Quad) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(v.x << 16u, v.x & 0xffff0000u, v.y << 16u, v.y & 0xffff0000u));
}
// To nearest, ties to even; a NaN stays one.
fn kv_round(v: f32) -> u32 {
    let bits = bitcast<u32>(v);
    let rounded = (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
    return select(rounded, (bits >> 16u) | 0x40u, (bits & 0x7fffffffu) > 0x7f800000u);
}
fn kv_pack(v: vec4<f32>) -> Quad {
    return vec2<u32>(kv_round(v.x) | (kv_round(v.y) << 16u), kv_round(v.z) | (kv_round(v.w) << 16u));
}
//#end
//#end
//#end
