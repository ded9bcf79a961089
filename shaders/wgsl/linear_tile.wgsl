// The linear of GPU profiles for many rows: 32 tokens x 64 outputs a workgroup, 4 x 4 a lane, one group
// of 32 along K staged in workgroup memory. It sums segment by segment, as `linear` in its split form.
struct Dims { groups: u32, k: u32, panels: u32, n: u32, first: u32, width: u32, quads: u32 }
@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> live: array<u32>; // [2]
//#include x
//#include format_$FORMAT W=w Q=3 S=4
//#if BIAS
@group(0) @binding(5) var<storage, read> bias: array<f32>; // [width]
//#end
@group(0) @binding(6) var<storage, read_write> out: array<f32>; // [rows, width]

var<workgroup> w_tile: array<vec4<f32>, 512>; // [8 quads, 64 outputs]
var<workgroup> x_tile: array<vec4<f32>, 256>; // [8 quads, 32 tokens]
//#if SCALED
var<workgroup> scale_tile: array<vec4<f32>, 64>; // per output: scale of each half, minimum
//#end

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first_row = wg.y * 32u;
    if (first_row >= live[$SPACE]) { return; }
    let last_row = live[$SPACE] - 1u;
    let column = lane % 16u; // outputs column, column + 16, ...
    let token = lane / 16u * 4u; // tokens token..token + 4
    //#for r in 0..4
    //#for t in 0..4
    var total_$r_$t = 0.0;
    //#end
    //#end
    for (var segment = 0u; segment < 8u; segment += 1u) {
        //#for r in 0..4
        //#for t in 0..4
        var part_$r_$t = 0.0;
        //#end
        //#end
        for (var group = segment; group < dims.groups; group += 8u) {
            workgroupBarrier();
            {
                let output = lane / 2u;
                let panel = min(wg.x * 8u + output / 8u, dims.panels - 1u);
                let w = w_load(panel, group, output % 8u);
                if (lane % 2u == 0u) {
                    //#for u in 0..4
                    w_tile[$[u*64]u + output] = w_quad_$u(w);
                    //#end
                    //#if SCALED
                    var s = vec4<f32>(w_scale_0(w), 0.0, 0.0, 0.0);
                    //#if HALVES == 2
                    s.y = w_scale_1(w);
                    //#end
                    //#if MIN
                    s.z = w_min(w);
                    //#end
                    scale_tile[output] = s;
                    //#end
                } else {
                    //#for u in 4..8
                    w_tile[$[u*64]u + output] = w_quad_$u(w);
                    //#end
                }
                // Padding rows repeat the last live one.
                let row = min(first_row + lane % 32u, last_row);
                let quad = lane / 32u * 2u;
                x_tile[quad * 32u + lane % 32u] = x_quad(row, group * 8u + quad);
                x_tile[(quad + 1u) * 32u + lane % 32u] = x_quad(row, group * 8u + quad + 1u);
            }
            workgroupBarrier();
            //#if MIN
            //#for t in 0..4
            var xsum_$t = 0.0;
            //#end
            //#end
            //#for h in 0..HALVES
            {
                //#for r in 0..4
                //#for t in 0..4
                //#if SCALED
                var sum_$r_$t = 0.0;
                //#else
                var sum_$r_$t = part_$r_$t;
                //#end
                //#end
                //#end
                // dims.quads is 8, and a member of dims so that the loop stays one: software drivers compile it faster.
                for (var u = $hu * (dims.quads / $HALVESu); u < $[h+1]u * (dims.quads / $HALVESu); u += 1u) {
                    //#for r in 0..4
                    let a_$r = w_tile[u * 64u + column + $[16*r]u];
                    //#end
                    //#for t in 0..4
                    {
                        let b = x_tile[u * 32u + token + $tu];
                        //#if MIN
                        xsum_$t += ((b.x + b.y) + b.z) + b.w;
                        //#end
                        //#for r in 0..4
                        sum_$r_$t = fma(a_$r.x, b.x, sum_$r_$t);
                        sum_$r_$t = fma(a_$r.y, b.y, sum_$r_$t);
                        sum_$r_$t = fma(a_$r.z, b.z, sum_$r_$t);
                        sum_$r_$t = fma(a_$r.w, b.w, sum_$r_$t);
                        //#end
                    }
                    //#end
                }
                //#for r in 0..4
                //#if SCALED
                let scale_$r = scale_tile[column + $[16*r]u][$h];
                //#end
                //#for t in 0..4
                //#if SCALED
                part_$r_$t = fma(scale_$r, sum_$r_$t, part_$r_$t);
                //#else
                part_$r_$t = sum_$r_$t;
                //#end
                //#end
                //#end
            }
            //#end
            //#if MIN
            //#for r in 0..4
            {
                let m = scale_tile[column + $[16*r]u].z;
                //#for t in 0..4
                part_$r_$t = fma(m, xsum_$t, part_$r_$t);
                //#end
            }
            //#end
            //#end
        }
        //#for r in 0..4
        //#for t in 0..4
        total_$r_$t += part_$r_$t;
        //#end
        //#end
    }
    //#for r in 0..4
    {
        let n = wg.x * 64u + column + $[16*r]u;
        if (n < dims.n) {
            let at = dims.first + n;
            //#for t in 0..4
            if (first_row + token + $tu <= last_row) {
                //#if BIAS
                out[(first_row + token + $tu) * dims.width + at] = total_$r_$t + bias[at];
                //#else
                out[(first_row + token + $tu) * dims.width + at] = total_$r_$t;
                //#end
            }
            //#end
        }
    }
    //#end
}
