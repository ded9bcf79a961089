// INT4 of GPTQ and AWQ: value = d * (q - zero). Nibbles as in Q4; the scale word is the f32 d with the zero in its
// lowest four bits (the engine's `format::int4`).
@group(0) @binding($Q) var<storage, read> $W_q: array<vec4<u32>>; // [panels, groups, 8 rows]
@group(0) @binding($S) var<storage, read> $W_s: array<u32>; // [panels, groups, 8 rows]
struct $W_Group { q: vec4<u32>, s: u32 }
fn $W_load(panel: u32, group: u32, row: u32) -> $W_Group {
    let at = (panel * dims.groups + group) * 8u + row;
    return $W_Group($W_q[at], $W_s[at]);
}
//#for u in 0..8
fn $W_quad_$u(w: $W_Group) -> vec4<f32> {
    let q = vec4<f32>((vec4<u32>(w.q[$[u/2]]) >> vec4<u32>($[u%2*16]u, $[u%2*16+4]u, $[u%2*16+8]u, $[u%2*16+12]u)) & vec4<u32>(15u));
    return q - vec4<f32>(f32(w.s & 15u));
}
//#end
fn $W_scale_0(w: $W_Group) -> f32 { return bitcast<f32>(w.s & 0xfffffff0u); }
