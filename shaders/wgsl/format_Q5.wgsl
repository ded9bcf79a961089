// Q5_0: value = d * (q - 16). Q5_1: value = d * q + m. Nibbles as in Q4; the second scale word holds
// the fifth bits, bit j for element j.
@group(0) @binding($Q) var<storage, read> $W_q: array<vec4<u32>>; // [panels, groups, 8 rows]
@group(0) @binding($S) var<storage, read> $W_s: array<u32>; // [panels, groups, 2, 8 rows]
struct $W_Group { q: vec4<u32>, s: u32, h: u32 }
fn $W_load(panel: u32, group: u32, row: u32) -> $W_Group {
    let at = panel * dims.groups + group;
    return $W_Group($W_q[at * 8u + row], $W_s[at * 16u + row], $W_s[at * 16u + 8u + row]);
}
//#for u in 0..8
fn $W_quad_$u(w: $W_Group) -> vec4<f32> {
    let low = (vec4<u32>(w.q[$[u/2]]) >> vec4<u32>($[u%2*16]u, $[u%2*16+4]u, $[u%2*16+8]u, $[u%2*16+12]u)) & vec4<u32>(15u);
    let high = (vec4<u32>(w.h) >> vec4<u32>($[u*4]u, $[u*4+1]u, $[u*4+2]u, $[u*4+3]u)) & vec4<u32>(1u);
    let q = vec4<f32>(low | (high << vec4<u32>(4u)));
    //#if MIN
    return q;
    //#else
    return q - vec4<f32>(16.0);
    //#end
}
//#end
fn $W_scale_0(w: $W_Group) -> f32 { return unpack2x16float(w.s).x; }
fn $W_min(w: $W_Group) -> f32 { return unpack2x16float(w.s).y; }
