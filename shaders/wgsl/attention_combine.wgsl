// Folds the partial attention of a row's splits in index order, as the unsplit kernels do in registers.
struct Dims { heads: u32, quads: u32, window: u32, splits: u32 }
@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> live: array<u32>; // [2]
@group(0) @binding(2) var<storage, read> positions: array<u32>; // [rows]
@group(0) @binding(3) var<storage, read> parts: array<vec4<f32>>; // [rows, heads, splits, quads + 1]
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>; // [rows, heads, quads]
//#include merge

@compute @workgroup_size($LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wg.y;
    if (row >= live[0]) { return; }
    let position = positions[row];
    var first = 0u;
    if (dims.window != 0u && position >= dims.window) { first = position + 1u - dims.window; }
    let head = row * dims.heads + wg.x;
    for (var c = lane; c < dims.quads; c += $LANESu) {
        var top = -3.0e38;
        var sum = 0.0;
        var total = vec4<f32>();
        for (var split = first / 256u; split <= position / 256u; split += 1u) {
            let at = (head * dims.splits + split) * (dims.quads + 1u);
            let facts = parts[at + dims.quads];
            let m = merge(top, facts.x);
            top = m.x;
            sum = fma(facts.y, m.z, sum * m.y);
            total = fma(parts[at + c], vec4<f32>(m.z), total * m.y);
        }
        out[head * dims.quads + c] = total / sum;
    }
}
