// out[r] = scale * table[tokens[r]]: a lane decodes one group of 32.
struct Dims { groups: u32, k: u32, n: u32, first: u32, scale: f32 }
@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> live: array<u32>; // [2]
@group(0) @binding(2) var<storage, read> tokens: array<u32>; // [rows]
//#include format_$FORMAT W=w Q=3 S=4
@group(0) @binding(5) var<storage, read_write> out: array<f32>; // [rows, k]

fn put(row: u32, k: u32, value: f32) {
    if (k < dims.k) { out[row * dims.k + k] = value * dims.scale; }
}

@compute @workgroup_size(32)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wg.y;
    let group = wg.x * 32u + lane;
    if (row >= live[0] || group >= dims.groups) { return; }
    // A table above the binding limit is cut by rows: each part serves its own tokens.
    let token = tokens[row] - dims.first;
    if (token >= dims.n) { return; }
    let w = w_load(token / 8u, group, token % 8u);
    //#for u in 0..8
    {
        //#if SCALED
        //#if MIN
        let v = fma(vec4<f32>(w_scale_0(w)), w_quad_$u(w), vec4<f32>(w_min(w)));
        //#else
        let v = w_scale_$[u*HALVES/8](w) * w_quad_$u(w);
        //#end
        //#else
        let v = w_quad_$u(w);
        //#end
        //#for i in 0..4
        put(row, group * 32u + $[u*4+i]u, v[$i]);
        //#end
    }
    //#end
}
