// out[l] = x[index[l]].
struct Dims { width: u32 }
@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> live: array<u32>; // [2]
@group(0) @binding(2) var<storage, read> x: array<f32>; // [rows, width]
@group(0) @binding(3) var<storage, read> index: array<u32>; // [logit_rows]
@group(0) @binding(4) var<storage, read_write> out: array<f32>; // [logit_rows, width]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let column = wg.x * 64u + lane;
    if (wg.y >= live[1] || column >= dims.width) { return; }
    out[wg.y * dims.width + column] = x[index[wg.y] * dims.width + column];
}
