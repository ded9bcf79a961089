// FP8 E4M3 in cached blocks: scales from a block's first token, and codes, four to a word. The formulas are
// those of the engine's `format::e4m3`.
var<workgroup> largest: array<u32, $LANES>;

// Bits of the largest magnitude of four values.
fn magnitude(v: vec4<f32>) -> u32 {
    let bits = bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu);
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}
// The largest of one value a lane over a workgroup of $LANES.
fn largest_of(lane: u32, bits: u32) -> u32 {
    largest[lane] = bits;
    workgroupBarrier();
    var top = 0u;
    for (var i = 0u; i < $LANESu; i += 1u) { top = max(top, largest[i]); }
    return top;
}
// A power of two that leaves the largest at 1/4 to 1/2; a fixed one where it is 0 or no number.
fn scale_of(bits: u32) -> f32 {
    let exponent = clamp((bits >> 23u) + 2u, 67u, 187u);
    return select(bitcast<f32>(exponent << 23u), 0.0625, bits == 0u || bits >= 0x7f800000u);
}
// The inverse of a scale.
fn inverse(scale: f32) -> f32 { return bitcast<f32>(0x7f000000u - bitcast<u32>(scale)); }

fn e4m3_pack(v: vec4<f32>) -> u32 {
    let bits = bitcast<vec4<u32>>(v);
    let top = min(bits & vec4<u32>(0x7fffffffu), vec4<u32>(0x43e00000u)); // 448
    let normal = (top + vec4<u32>(0x7ffffu) + ((top >> vec4<u32>(20u)) & vec4<u32>(1u)) - vec4<u32>(0x3c000000u)) >> vec4<u32>(20u);
    // A subnormal code counts steps of 2^-9, which is what an f32 of 2^14 has.
    let steps = bitcast<vec4<u32>>(bitcast<vec4<f32>>(top) + vec4<f32>(16384.0)) - vec4<u32>(0x46800000u);
    let sign = (bits >> vec4<u32>(24u)) & vec4<u32>(0x80u);
    let code = select(normal, steps, top < vec4<u32>(0x3c800000u)) | sign;
    return code.x | (code.y << 8u) | (code.z << 16u) | (code.w << 24u);
}
