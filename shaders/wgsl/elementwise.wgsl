// residual += delta.
struct Dims { width: u32 }
@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> live: array<u32>; // [2]
@group(0) @binding(2) var<storage, read> delta: array<f32>; // [rows, width]
@group(0) @binding(3) var<storage, read_write> residual: array<f32>; // [rows, width]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let column = wg.x * 64u + lane;
    if (wg.y >= live[0] || column >= dims.width) { return; }
    residual[wg.y * dims.width + column] += delta[wg.y * dims.width + column];
}
