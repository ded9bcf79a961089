// F32: eight vec4 a group, read as they are used.
@group(0) @binding($Q) var<storage, read> $W_q: array<vec4<u32>>; // [panels, groups, 8, 8 rows]
struct $W_Group { at: u32 }
fn $W_load(panel: u32, group: u32, row: u32) -> $W_Group {
    return $W_Group((panel * dims.groups + group) * 64u + row);
}
//#for u in 0..8
fn $W_quad_$u(w: $W_Group) -> vec4<f32> { return bitcast<vec4<f32>>($W_q[w.at + $[u*8]u]); }
//#end
