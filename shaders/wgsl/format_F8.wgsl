// FP8 E4M3: value = d * code; 32 codes in two vec4, in order; d is the scale word, an f32. The formula is that of
// the engine's `format::f8`; no code is NaN.
@group(0) @binding($Q) var<storage, read> $W_q: array<vec4<u32>>; // [panels, groups, 2, 8 rows]
@group(0) @binding($S) var<storage, read> $W_s: array<u32>; // [panels, groups, 8 rows]
struct $W_Group { q0: vec4<u32>, q1: vec4<u32>, s: u32 }
fn $W_load(panel: u32, group: u32, row: u32) -> $W_Group {
    let at = panel * dims.groups + group;
    return $W_Group($W_q[at * 16u + row], $W_q[at * 16u + 8u + row], $W_s[at * 8u + row]);
}
//#for u in 0..8
fn $W_quad_$u(w: $W_Group) -> vec4<f32> {
    let codes = (vec4<u32>(w.q$[u/4][$[u%4]]) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
    let low = codes & vec4<u32>(127u);
    let normal = (low << vec4<u32>(20u)) + vec4<u32>(0x3c000000u);
    // Codes below 8 are subnormal: they count steps of 2^-9.
    let bits = select(normal, bitcast<vec4<u32>>(vec4<f32>(low) * 0.001953125), low < vec4<u32>(8u));
    return bitcast<vec4<f32>>(bits | ((codes & vec4<u32>(128u)) << vec4<u32>(24u)));
}
//#end
fn $W_scale_0(w: $W_Group) -> f32 { return bitcast<f32>(w.s); }
