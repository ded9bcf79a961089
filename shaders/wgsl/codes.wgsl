// Stores new values as codes with the scales of their heads: of one tensor, or (BOTH) of keys and values. A workgroup
// serves one head of one row, keys first.
struct Dims { heads: u32, head_dim: u32, block_size: u32 }
@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> live: array<u32>; // [2]
@group(0) @binding(2) var<storage, read> slot_mapping: array<i32>; // [rows]
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>; // [rows, heads, head_dim / 4]
@group(0) @binding(4) var<storage, read_write> v_scales: array<f32>; // [blocks, heads, block_size]
@group(0) @binding(5) var<storage, read_write> v_cache: array<u32>; // [blocks, block_size, heads, head_dim / 4]
//#if BOTH
@group(0) @binding(6) var<storage, read> k: array<vec4<f32>>; // as v
@group(0) @binding(7) var<storage, read_write> k_scales: array<f32>; // as v_scales
@group(0) @binding(8) var<storage, read_write> k_cache: array<u32>; // as v_cache
//#end
//#include f8

@compute @workgroup_size($LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wg.y;
    if (row >= live[0]) { return; }
    let slot = slot_mapping[row];
    if (slot < 0) { return; }
    let head = wg.x % dims.heads;
    let quads = dims.head_dim / 4u;
    let source = (row * dims.heads + head) * quads;
    let to = (u32(slot) * dims.heads + head) * quads;
    let place = (u32(slot) / dims.block_size * dims.heads + head) * dims.block_size + u32(slot) % dims.block_size;
    var top = 0u;
    //#if BOTH
    if (wg.x < dims.heads) {
        for (var i = lane; i < quads; i += $LANESu) { top = max(top, magnitude(k[source + i])); }
        let scale = scale_of(largest_of(lane, top));
        if (lane == 0u) { k_scales[place] = scale; }
        for (var i = lane; i < quads; i += $LANESu) { k_cache[to + i] = pack(k[source + i] * inverse(scale)); }
        return;
    }
    //#end
    for (var i = lane; i < quads; i += $LANESu) { top = max(top, magnitude(v[source + i])); }
    let scale = scale_of(largest_of(lane, top));
    if (lane == 0u) { v_scales[place] = scale; }
    for (var i = lane; i < quads; i += $LANESu) { v_cache[to + i] = pack(v[source + i] * inverse(scale)); }
}
