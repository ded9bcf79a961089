// Stores new keys and values: keys after an optional norm and RoPE (ROPE), values as they are; rotates
// queries where the bindings suffice (QUERY, without NORM). Without ROPE it is the plain store of one tensor.
// A workgroup serves one head of one row: keys first, then values, then queries.
struct Dims { heads: u32, head_dim: u32, rope_dim: u32, eps: f32, query_heads: u32 }
@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> live: array<u32>; // [2]
@group(0) @binding(2) var<storage, read> slot_mapping: array<i32>; // [rows]
@group(0) @binding(3) var<storage, read> v: array<f32>; // [rows, heads, head_dim]
@group(0) @binding(4) var<storage, read_write> v_cache: array<u32>; // [blocks, block_size, heads, head_dim]
//#if ROPE
@group(0) @binding(5) var<storage, read> k: array<f32>; // as v
@group(0) @binding(6) var<storage, read_write> k_cache: array<u32>; // as v_cache
@group(0) @binding(7) var<storage, read> rope: array<vec2<f32>>; // [rows, rope_dim / 2] of (cos, sin)
//#if NORM
@group(0) @binding(8) var<storage, read> norm: array<f32>; // [head_dim]
//#include fold
//#end
//#if QUERY
@group(0) @binding(8) var<storage, read_write> q: array<f32>; // [rows, query_heads, head_dim]
//#end
//#include rotate
//#end
//#include kv

@compute @workgroup_size($LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wg.y;
    if (row >= live[0]) { return; }
    let slot = slot_mapping[row];
    if (slot < 0) { return; }
    let head = wg.x % dims.heads;
    let source = (row * dims.heads + head) * dims.head_dim;
    let to = (u32(slot) * dims.heads + head) * dims.head_dim;
    //#if QUERY
    if (wg.x >= 2u * dims.heads) {
        let base = (row * dims.query_heads + wg.x - 2u * dims.heads) * dims.head_dim;
        for (var unit = lane; unit < dims.rope_dim / 4u; unit += $LANESu) {
            let a = base + unit_at(unit).x;
            let b = base + unit_at(unit).y;
            let x = rotate(vec4<f32>(q[a], q[a + 1u], q[b], q[b + 1u]), unit, row);
            q[a] = x.x;
            q[a + 1u] = x.y;
            q[b] = x.z;
            q[b + 1u] = x.w;
        }
        return;
    }
    //#end
    //#if ROPE
    if (wg.x < dims.heads) {
        //#if NORM
        var sum = 0.0;
        for (var i = lane; i < dims.head_dim; i += $LANESu) { sum = fma(k[source + i], k[source + i], sum); }
        let scale = 1.0 / sqrt(fold(lane, sum) / f32(dims.head_dim) + dims.eps);
        //#end
        for (var unit = lane; unit < dims.head_dim / 4u; unit += $LANESu) {
            let at = unit_at(unit);
            var x = vec4<f32>(k[source + at.x], k[source + at.x + 1u], k[source + at.y], k[source + at.y + 1u]);
            //#if NORM
            x = x * scale * vec4<f32>(norm[at.x], norm[at.x + 1u], norm[at.y], norm[at.y + 1u]);
            //#end
            let packed = kv_pack(rotate(x, unit, row));
            //#if KV == 0
            k_cache[to + at.x] = bitcast<u32>(packed.x);
            k_cache[to + at.x + 1u] = bitcast<u32>(packed.y);
            k_cache[to + at.y] = bitcast<u32>(packed.z);
            k_cache[to + at.y + 1u] = bitcast<u32>(packed.w);
            //#else
            k_cache[(to + at.x) / 2u] = packed.x;
            k_cache[(to + at.y) / 2u] = packed.y;
            //#end
        }
        return;
    }
    //#end
    for (var i = 4u * lane; i < dims.head_dim; i += $[4*LANES]u) {
        let packed = kv_pack(vec4<f32>(v[source + i], v[source + i + 1u], v[source + i + 2u], v[source + i + 3u]));
        //#if KV == 0
        v_cache[to + i] = bitcast<u32>(packed.x);
        v_cache[to + i + 1u] = bitcast<u32>(packed.y);
        v_cache[to + i + 2u] = bitcast<u32>(packed.z);
        v_cache[to + i + 3u] = bitcast<u32>(packed.w);
        //#else
        v_cache[(to + i) / 2u] = packed.x;
        v_cache[(to + i) / 2u + 1u] = packed.y;
        //#end
    }
}
