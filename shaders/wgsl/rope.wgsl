// Rotates the heads of x in place, after an optional norm of each head, and transforms them where dims.run says so.
// A workgroup serves one head.
struct Dims { heads: u32, head_dim: u32, rope_dim: u32, eps: f32, run: u32, factor: f32 }
@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> live: array<u32>; // [2]
@group(0) @binding(2) var<storage, read> rope: array<vec2<f32>>; // [rows, rope_dim / 2] of (cos, sin)
//#if NORM
@group(0) @binding(3) var<storage, read> norm: array<f32>; // [head_dim]
//#end
@group(0) @binding(4) var<storage, read_write> x: array<f32>; // [rows, heads, head_dim]
//#if NORM
//#include fold
//#end
//#include rotate
//#include hadamard X=x

@compute @workgroup_size($LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wg.y;
    if (row >= live[0]) { return; }
    let base = (row * dims.heads + wg.x) * dims.head_dim;
    //#if NORM
    var sum = 0.0;
    for (var i = lane; i < dims.head_dim; i += $LANESu) { sum = fma(x[base + i], x[base + i], sum); }
    let scale = 1.0 / sqrt(fold(lane, sum) / f32(dims.head_dim) + dims.eps);
    //#end
    for (var unit = lane; unit < dims.head_dim / 4u; unit += $LANESu) {
        let at = unit_at(unit);
        var v = vec4<f32>(x[base + at.x], x[base + at.x + 1u], x[base + at.y], x[base + at.y + 1u]);
        //#if NORM
        v = v * scale * vec4<f32>(norm[at.x], norm[at.x + 1u], norm[at.y], norm[at.y + 1u]);
        //#end
        v = rotate(v, unit, row);
        x[base + at.x] = v.x;
        x[base + at.x + 1u] = v.y;
        x[base + at.y] = v.z;
        x[base + at.y + 1u] = v.w;
    }
    hadamard_x(base, lane);
}
