// out[r, n] = sum_k x[r, k] * w[n, k] (+ bias[n]), for a few rows at a time.
// CPU profile: a lane owns $R whole weight rows and $T tokens. GPU profiles: 64 lanes are 8 rows by
// 8 segments of K (segment s takes groups s, s + 8, ...), folded in the order of the segments.
struct Dims { groups: u32, k: u32, panels: u32, n: u32, first: u32, width: u32 }
@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> live: array<u32>; // [2]
//#include x
//#include format_$FORMAT W=w Q=3 S=4
//#if BIAS
@group(0) @binding(5) var<storage, read> bias: array<f32>; // [width]
//#end
@group(0) @binding(6) var<storage, read_write> out: array<f32>; // [rows, width]

fn store(row: u32, n: u32, total: f32) {
    if (row < live[$SPACE] && n < dims.n) {
        let column = dims.first + n;
        //#if BIAS
        out[row * dims.width + column] = total + bias[column];
        //#else
        out[row * dims.width + column] = total;
        //#end
    }
}

//#include linear_main DUAL=0
