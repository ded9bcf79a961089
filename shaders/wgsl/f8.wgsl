// FP8 in cached blocks: the scale of a token's head, and E2M5 codes, four to a word. The formulas are those of the
// engine's `format::f8`.
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
// The scale where the largest magnitude has these bits; NaN where that is no number.
fn scale_of(bits: u32) -> f32 {
    let exponent = clamp((bits + 0x60000u) >> 23u, 69u, 189u) - 2u;
    let number = select(exponent << 23u, 0x3f800000u, bits == 0u);
    return bitcast<f32>(select(number, 0x7fc00000u, bits >= 0x7f800000u));
}
// The inverse of a scale; any number where that is none.
fn inverse(scale: f32) -> f32 { return bitcast<f32>(0x7f000000u - bitcast<u32>(scale)); }

// The largest number as f32 bits, the smallest that is not subnormal, the difference of biases; a number whose f32
// neighbours are as far away as subnormal codes are from each other, and its bits.
const LARGEST: u32 = 0x40f80000u; // 7.75
const NORMAL: u32 = 0x3f800000u; // 1
const BIAS: u32 = 0x3f000000u;
const STEPS: f32 = 262144.0;
const FIRST: u32 = 0x48800000u;
fn pack(v: vec4<f32>) -> u32 {
    let bits = bitcast<vec4<u32>>(v);
    let shift = vec4<u32>(18u);
    let top = min(bits & vec4<u32>(0x7fffffffu), vec4<u32>(LARGEST));
    let half = vec4<u32>(0x1ffffu) + ((top >> shift) & vec4<u32>(1u));
    let normal = (top + half - vec4<u32>(BIAS)) >> shift;
    let steps = bitcast<vec4<u32>>(bitcast<vec4<f32>>(top) + vec4<f32>(STEPS)) - vec4<u32>(FIRST);
    let sign = (bits >> vec4<u32>(24u)) & vec4<u32>(0x80u);
    let code = select(normal, steps, top < vec4<u32>(NORMAL)) | sign;
    return code.x | (code.y << 8u) | (code.z << 16u) | (code.w << 24u);
}
