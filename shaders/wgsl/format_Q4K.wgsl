// Q4_K: value = (d * scale) * q - dmin * minimum, scale and minimum of 6 bits for each group of 32.
// Nibbles as in Q4; scale words: (d, dmin) as halves, then scale | minimum << 8.
@group(0) @binding($Q) var<storage, read> $W_q: array<vec4<u32>>; // [panels, groups, 8 rows]
@group(0) @binding($S) var<storage, read> $W_s: array<u32>; // [panels, groups, 2, 8 rows]
struct $W_Group { q: vec4<u32>, s: u32, k: u32 }
fn $W_load(panel: u32, group: u32, row: u32) -> $W_Group {
    let at = panel * dims.groups + group;
    return $W_Group($W_q[at * 8u + row], $W_s[at * 16u + row], $W_s[at * 16u + 8u + row]);
}
//#for u in 0..8
fn $W_quad_$u(w: $W_Group) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(w.q[$[u/2]]) >> vec4<u32>($[u%2*16]u, $[u%2*16+4]u, $[u%2*16+8]u, $[u%2*16+12]u)) & vec4<u32>(15u));
}
//#end
fn $W_scale_0(w: $W_Group) -> f32 { return unpack2x16float(w.s).x * f32(w.k & 255u); }
fn $W_min(w: $W_Group) -> f32 { return -(unpack2x16float(w.s).y * f32(w.k >> 8u)); }
