// out[r, j] = act(sum_k x[r, k] * gate[j, k]) * sum_k x[r, k] * up[j, k]: the first half of a gated MLP
// (DUAL), or the same on values that stand in memory already.
//#if DUAL
struct Dims { groups: u32, k: u32, panels: u32, n: u32, first: u32, width: u32 }
@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> live: array<u32>; // [2]
//#include x
//#include format_$FORMAT W=gate Q=3 S=4
//#include format_$FORMAT W=up Q=5 S=6
@group(0) @binding(7) var<storage, read_write> out: array<f32>; // [rows, width]
//#else
struct Dims { width: u32 }
@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> live: array<u32>; // [2]
@group(0) @binding(2) var<storage, read> up: array<f32>; // [rows, width]
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [rows, width]; holds the gate
//#end

fn activate(g: f32) -> f32 {
    //#if GELU
    let inner = 0.7978845608 * fma(0.044715 * g * g, g, g);
    // tanh by exp, clamped where it is 1 in f32.
    let e = exp(clamp(2.0 * inner, -40.0, 40.0));
    return 0.5 * g * (1.0 + (e - 1.0) / (e + 1.0));
    //#else
    return g / (1.0 + exp(-max(g, -87.0)));
    //#end
}

//#if DUAL
fn store(row: u32, n: u32, gate: f32, up: f32) {
    if (row < live[0] && n < dims.n) {
        out[row * dims.width + dims.first + n] = activate(gate) * up;
    }
}
//#include linear_main
//#else
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let column = wg.x * 64u + lane;
    if (wg.y >= live[0] || column >= dims.width) { return; }
    let at = wg.y * dims.width + column;
    out[at] = activate(out[at]) * up[at];
}
//#end
