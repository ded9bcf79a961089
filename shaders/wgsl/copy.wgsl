// Copies whole KV blocks (from, to) within one buffer; the live rows are the pairs.
struct Dims { words: u32 } // of a block
@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> live: array<u32>; // [2]
@group(0) @binding(2) var<storage, read> pairs: array<u32>; // [rows, 2]
@group(0) @binding(3) var<storage, read_write> cache: array<u32>; // [blocks, words]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let word = wg.x * 64u + lane;
    if (wg.y >= live[0] || word >= dims.words) { return; }
    cache[pairs[2u * wg.y + 1u] * dims.words + word] = cache[pairs[2u * wg.y] * dims.words + word];
}
