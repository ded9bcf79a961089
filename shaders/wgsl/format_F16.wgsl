// F16: four vec4 a group, two values a word.
@group(0) @binding($Q) var<storage, read> $W_q: array<vec4<u32>>; // [panels, groups, 4, 8 rows]
struct $W_Group { at: u32 }
fn $W_load(panel: u32, group: u32, row: u32) -> $W_Group {
    return $W_Group((panel * dims.groups + group) * 32u + row);
}
//#for u in 0..4
fn $W_quad_$[2*u](w: $W_Group) -> vec4<f32> {
    let v = $W_q[w.at + $[u*8]u];
    return vec4<f32>(unpack2x16float(v.x), unpack2x16float(v.y));
}
fn $W_quad_$[2*u+1](w: $W_Group) -> vec4<f32> {
    let v = $W_q[w.at + $[u*8]u];
    return vec4<f32>(unpack2x16float(v.z), unpack2x16float(v.w));
}
//#end
