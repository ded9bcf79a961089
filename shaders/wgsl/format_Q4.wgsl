// Q4_0: value = d * (q - 8). Q4_1: value = d * q + m. 32 nibbles in one vec4, in order (nibble j of
// word i is element 8i + j); (d, m) are the halves of the scale word.
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
    //#if MIN
    return q;
    //#else
    return q - vec4<f32>(8.0);
    //#end
}
//#end
fn $W_scale_0(w: $W_Group) -> f32 { return unpack2x16float(w.s).x; }
fn $W_min(w: $W_Group) -> f32 { return unpack2x16float(w.s).y; }
