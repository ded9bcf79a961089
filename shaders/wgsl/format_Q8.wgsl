// Q8_0: value = d * q; 32 int8 in two vec4, in order; d is the low half of the scale word.
@group(0) @binding($Q) var<storage, read> $W_q: array<vec4<u32>>; // [panels, groups, 2, 8 rows]
@group(0) @binding($S) var<storage, read> $W_s: array<u32>; // [panels, groups, 8 rows]
struct $W_Group { q0: vec4<u32>, q1: vec4<u32>, s: u32 }
fn $W_load(panel: u32, group: u32, row: u32) -> $W_Group {
    let at = panel * dims.groups + group;
    return $W_Group($W_q[at * 16u + row], $W_q[at * 16u + 8u + row], $W_s[at * 8u + row]);
}
//#for u in 0..8
fn $W_quad_$u(w: $W_Group) -> vec4<f32> {
    let q = vec4<i32>(bitcast<i32>(w.q$[u/4][$[u%4]]));
    return vec4<f32>((q << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}
//#end
fn $W_scale_0(w: $W_Group) -> f32 { return unpack2x16float(w.s).x; }
