// The activations of a linear, four at a time.
//#if RAGGED
// K is no multiple of 32: values beyond it are zeros, as the weights' padding is.
@group(0) @binding(2) var<storage, read> x: array<f32>; // [rows, k]
fn x_quad(row: u32, quad: u32) -> vec4<f32> {
    var v = vec4<f32>();
    let k = quad * 4u;
    let at = row * dims.k + k;
    //#for i in 0..4
    if (k + $iu < dims.k) { v[$i] = x[at + $iu]; }
    //#end
    return v;
}
//#else
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>; // [rows, k / 4]
fn x_quad(row: u32, quad: u32) -> vec4<f32> { return x[row * (dims.groups * 8u) + quad]; }
//#end
