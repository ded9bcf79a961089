// Q5_K: as Q4_K, with the fifth bits in a third scale word, bit j for element j.
@group(0) @binding($Q) var<storage, read> $W_q: array<vec4<u32>>; // [panels, groups, 8 rows]
@group(0) @binding($S) var<storage, read> $W_s: array<u32>; // [panels, groups, 3, 8 rows]
struct $W_Group { q: vec4<u32>, s: u32, k: u32, h: u32 }
fn $W_load(panel: u32, group: u32, row: u32) -> $W_Group {
    let at = panel * dims.groups + group;
    let s = at * 24u + row;
    return $W_Group($W_q[at * 8u + row], $W_s[s], $W_s[s + 8u], $W_s[s + 16u]);
}
//#for u in 0..8
fn $W_quad_$u(w: $W_Group) -> vec4<f32> {
    let low = (vec4<u32>(w.q[$[u/2]]) >> vec4<u32>($[u%2*16]u, $[u%2*16+4]u, $[u%2*16+8]u, $[u%2*16+12]u)) & vec4<u32>(15u);
    let high = (vec4<u32>(w.h) >> vec4<u32>($[u*4]u, $[u*4+1]u, $[u*4+2]u, $[u*4+3]u)) & vec4<u32>(1u);
    return vec4<f32>(low | (high << vec4<u32>(4u)));
}
//#end
fn $W_scale_0(w: $W_Group) -> f32 { return unpack2x16float(w.s).x * f32(w.k & 255u); }
fn $W_min(w: $W_Group) -> f32 { return -(unpack2x16float(w.s).y * f32(w.k >> 8u)); }
