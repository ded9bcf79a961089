// RMS norm of consecutive groups of n values; with ADD, of residual + delta, which is stored too.
// Lane j sums the squares of values (QUAD: of vec4) j, j + $LANES, ...; then one fold in a fixed order.
//#if QUAD
alias Value = vec4<f32>;
fn square(v: Value, sum: f32) -> f32 { return fma(v.w, v.w, fma(v.z, v.z, fma(v.y, v.y, fma(v.x, v.x, sum)))); }
const STEP: u32 = 4u;
//#else
alias Value = f32;
fn square(v: Value, sum: f32) -> f32 { return fma(v, v, sum); }
const STEP: u32 = 1u;
//#end
struct Dims { n: u32, width: u32, eps: f32 }
@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> live: array<u32>; // [2]
//#if ADD
@group(0) @binding(2) var<storage, read> delta: array<Value>; // [rows, width]
@group(0) @binding(3) var<storage, read_write> x: array<Value>; // [rows, width]
//#else
//#if !INPLACE
@group(0) @binding(3) var<storage, read> x: array<Value>; // [rows, width]
//#end
//#end
@group(0) @binding(4) var<storage, read> weight: array<Value>; // [n]
@group(0) @binding(5) var<storage, read_write> out: array<Value>; // [rows, width]

//#include fold

@compute @workgroup_size($LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if (wg.y >= live[0]) { return; }
    let base = (wg.y * dims.width + wg.x * dims.n) / STEP;
    let values = dims.n / STEP;
    var sum = 0.0;
    for (var i = lane; i < values; i += $LANESu) {
        //#if ADD
        let v = x[base + i] + delta[base + i];
        x[base + i] = v;
        //#else
        //#if INPLACE
        let v = out[base + i];
        //#else
        let v = x[base + i];
        //#end
        //#end
        sum = square(v, sum);
    }
    let scale = 1.0 / sqrt(fold(lane, sum) / f32(dims.n) + dims.eps);
    for (var i = lane; i < values; i += $LANESu) {
        //#if INPLACE
        out[base + i] = out[base + i] * scale * weight[i];
        //#else
        out[base + i] = x[base + i] * scale * weight[i];
        //#end
    }
}
