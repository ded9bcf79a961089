// BF16: four vec4 a group; a value is the upper half of an f32.
@group(0) @binding($Q) var<storage, read> $W_q: array<vec4<u32>>; // [panels, groups, 4, 8 rows]
struct $W_Group { at: u32 }
fn $W_load(panel: u32, group: u32, row: u32) -> $W_Group {
    return $W_Group((panel * dims.groups + group) * 32u + row);
}
fn $W_widen(a: u32, b: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(a << 16u, a & 0xffff0000u, b << 16u, b & 0xffff0000u));
}
//#for u in 0..4
fn $W_quad_$[2*u](w: $W_Group) -> vec4<f32> { let v = $W_q[w.at + $[u*8]u]; return $W_widen(v.x, v.y); }
fn $W_quad_$[2*u+1](w: $W_Group) -> vec4<f32> { let v = $W_q[w.at + $[u*8]u]; return $W_widen(v.z, v.w); }
//#end
