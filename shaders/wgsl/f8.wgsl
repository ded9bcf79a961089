// FP8 in cached blocks: scales from a block's first token, and codes, four to a word: of 3 mantissa bits (E4M3, of
// values) and of 4 (E3M4, of keys). The formulas are those of the engine's `format::f8`.
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
// The inverse of a scale.
fn inverse(scale: f32) -> f32 { return bitcast<f32>(0x7f000000u - bitcast<u32>(scale)); }

// The largest number as f32 bits, the smallest that is not subnormal, the difference of biases; a number whose f32
// neighbours are as far away as subnormal codes are from each other, and its bits; by how many binary orders a scale
// exceeds the largest of a first token, and the scale where that is 0 or no number.
const LARGEST_3: u32 = 0x43e00000u; // 448
const NORMAL_3: u32 = 0x3c800000u; // 2^-6
const BIAS_3: u32 = 0x3c000000u;
const STEPS_3: f32 = 16384.0;
const FIRST_3: u32 = 0x46800000u;
const LEVEL_3: u32 = 2u;
const DEFAULT_3: f32 = 0.0625;
const LARGEST_4: u32 = 0x41f00000u; // 30
const NORMAL_4: u32 = 0x3e800000u; // 1/4
const BIAS_4: u32 = 0x3e000000u;
const STEPS_4: f32 = 131072.0;
const FIRST_4: u32 = 0x48000000u;
const LEVEL_4: u32 = 0u;
const DEFAULT_4: f32 = 1.0;
//#for m in 3..5
fn scale_of_$m(bits: u32) -> f32 {
    let exponent = clamp((bits >> 23u) + LEVEL_$m, 67u, 187u);
    return select(bitcast<f32>(exponent << 23u), DEFAULT_$m, bits == 0u || bits >= 0x7f800000u);
}
fn pack_$m(v: vec4<f32>) -> u32 {
    let bits = bitcast<vec4<u32>>(v);
    let shift = vec4<u32>($[23-m]u);
    let top = min(bits & vec4<u32>(0x7fffffffu), vec4<u32>(LARGEST_$m));
    let half = vec4<u32>($[1048576/(m-2)/2-1]u) + ((top >> shift) & vec4<u32>(1u));
    let normal = (top + half - vec4<u32>(BIAS_$m)) >> shift;
    let steps = bitcast<vec4<u32>>(bitcast<vec4<f32>>(top) + vec4<f32>(STEPS_$m)) - vec4<u32>(FIRST_$m);
    let sign = (bits >> vec4<u32>(24u)) & vec4<u32>(0x80u);
    let code = select(normal, steps, top < vec4<u32>(NORMAL_$m)) | sign;
    return code.x | (code.y << 8u) | (code.z << 16u) | (code.w << 24u);
}
//#end
