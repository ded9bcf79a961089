// Attention as in `attention`, for a workgroup that is eight lanes of one subgroup: no workgroup memory, no
// barriers. Scores: a lane is a token (four blocks of 8 in a tile), queries are broadcast. Values: a lane is
// a quad of the head, weights are broadcast. A lane keeps the sum of its own tokens until the split ends.
struct Dims { kv_heads: u32, block_size: u32, max_blocks: u32, window: u32, splits: u32, scale: f32 }
@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> live: array<u32>; // [2]
//#include kv
@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>; // [rows, heads, head_dim / 4]
@group(0) @binding(3) var<storage, read> k_cache: array<Quad>; // [blocks, block_size, kv_heads, head_dim / 4]
@group(0) @binding(4) var<storage, read> v_cache: array<Quad>; // as k_cache
@group(0) @binding(5) var<storage, read> positions: array<u32>; // [rows]
@group(0) @binding(6) var<storage, read> row_seq: array<u32>; // [rows]
@group(0) @binding(7) var<storage, read> block_tables: array<u32>; // [seqs, max_blocks]
// [rows, heads, head_dim / 4]; PARTIAL: [rows, heads, splits, head_dim / 4 + 1], the last (max, sum, 0, 0)
@group(0) @binding(8) var<storage, read_write> out: array<vec4<f32>>;
//#if KV == 3
@group(0) @binding(9) var<storage, read> k_scales: array<f32>; // [blocks, kv_heads, block_size]
@group(0) @binding(10) var<storage, read> v_scales: array<f32>; // as k_scales
//#end
//#include merge

const QUADS: u32 = $QUADSu; // head_dim / 4
const LOWEST: f32 = -3.0e38;

// Component i of v, i being the same in all lanes.
fn pick(v: vec4<f32>, i: u32) -> f32 {
    return select(select(v.x, v.y, i == 1u), select(v.z, v.w, i == 3u), i >= 2u);
}
fn put(v: vec4<f32>, i: u32, x: f32) -> vec4<f32> {
    return select(v, vec4<f32>(x), vec4<bool>(i == 0u, i == 1u, i == 2u, i == 3u));
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let row = wg.y;
    if (row >= live[0]) { return; }
    let position = positions[row];
    var first = 0u;
    if (dims.window != 0u && position >= dims.window) { first = position + 1u - dims.window; }
    //#if PARTIAL
    let split = wg.z;
    if (split * 256u > position || split < first / 256u) { return; }
    //#end
    let head = row * dims.kv_heads * $GROUPu + wg.x * $GROUPu;
    let table = row_seq[row] * dims.max_blocks;
    // Lane l holds quads l, l + 8, ... of each query.
    //#for g in 0..GROUP
    //#for i in 0..ITEMS
    let q_$g_$i = q[(head + $gu) * QUADS + min(lane + $[8*i]u, QUADS - 1u)];
    //#end
    //#end
    //#if !PARTIAL
    //#for g in 0..GROUP
    var all_max_$g = LOWEST;
    var all_sum_$g = 0.0;
    //#for i in 0..ITEMS
    var all_$g_$i = vec4<f32>();
    //#end
    //#end
    for (var split = first / 256u; split <= position / 256u; split += 1u) {
    //#end
    //#for g in 0..GROUP
    var max_$g = LOWEST;
    var sum_$g = 0.0;
    //#for i in 0..ITEMS
    var o_$g_$i = vec4<f32>();
    //#end
    //#end
    let last_tile = min(position / 32u, split * 8u + 7u);
    for (var tile = max(first / 32u, split * 8u); tile <= last_tile; tile += 1u) {
        let blocks = min((position - tile * 32u) / 8u + 1u, 4u);
        var places = vec4<u32>();
        //#if KV == 3
        var v_scale = vec4<f32>();
        //#end
        //#for g in 0..GROUP
        var s_$g = vec4<f32>(LOWEST);
        //#end
        for (var block = 0u; block < blocks; block += 1u) {
            let token = tile * 32u + block * 8u + lane;
            let seen = clamp(token, first, position);
            let block_id = block_tables[table + seen / dims.block_size];
            let offset = seen % dims.block_size;
            let slot = block_id * dims.block_size + offset;
            let at = (slot * dims.kv_heads + wg.x) * QUADS;
            places = select(places, vec4<u32>(at), vec4<bool>(block == 0u, block == 1u, block == 2u, block == 3u));
            //#if KV == 3
            let own = (block_id * dims.kv_heads + wg.x) * dims.block_size + offset;
            let k_scale = k_scales[own];
            v_scale = put(v_scale, block, v_scales[own]);
            //#end
            //#for g in 0..GROUP
            var score_$g = 0.0;
            //#end
            //#for c in 0..QUADS
            {
                let key = kv_unpack(k_cache[at + $[c]u]);
                //#for g in 0..GROUP
                {
                    let query = subgroupBroadcast(q_$g_$[c/8], $[c%8]u);
                    score_$g = fma(query.x, key.x, score_$g);
                    score_$g = fma(query.y, key.y, score_$g);
                    score_$g = fma(query.z, key.z, score_$g);
                    score_$g = fma(query.w, key.w, score_$g);
                }
                //#end
            }
            //#end
            //#for g in 0..GROUP
            //#if KV == 3
            score_$g *= k_scale; // a power of two: exact here as anywhere
            //#end
            s_$g = put(s_$g, block, select(LOWEST, score_$g * dims.scale, token == seen));
            //#end
        }
        //#for g in 0..GROUP
        let top_$g = max(max_$g, subgroupMax(max(max(s_$g.x, s_$g.y), max(s_$g.z, s_$g.w))));
        let keep_$g = exp(max_$g - top_$g);
        max_$g = top_$g;
        let p_$g = select(vec4<f32>(), exp(s_$g - vec4<f32>(top_$g)), s_$g > vec4<f32>(LOWEST));
        sum_$g = fma(sum_$g, keep_$g, ((p_$g.x + p_$g.y) + p_$g.z) + p_$g.w);
        //#for i in 0..ITEMS
        var tile_$g_$i = vec4<f32>();
        //#end
        //#end
        for (var block = 0u; block < blocks; block += 1u) {
            let place = select(select(places.x, places.y, block == 1u), select(places.z, places.w, block == 3u), block >= 2u);
            //#for g in 0..GROUP
            //#if KV == 3
            let w_$g = pick(p_$g, block) * pick(v_scale, block);
            //#else
            let w_$g = pick(p_$g, block);
            //#end
            //#end
            //#for t in 0..8
            {
                let at = subgroupBroadcast(place, $[t]u);
                //#for g in 0..GROUP
                let weight_$g = vec4<f32>(subgroupBroadcast(w_$g, $[t]u));
                //#end
                //#for i in 0..ITEMS
                {
                    let value = kv_unpack(v_cache[at + min(lane + $[8*i]u, QUADS - 1u)]);
                    //#for g in 0..GROUP
                    tile_$g_$i = fma(weight_$g, value, tile_$g_$i);
                    //#end
                }
                //#end
            }
            //#end
        }
        //#for g in 0..GROUP
        //#for i in 0..ITEMS
        o_$g_$i = fma(o_$g_$i, vec4<f32>(keep_$g), tile_$g_$i);
        //#end
        //#end
    }
    //#for g in 0..GROUP
    var split_sum_$g = 0.0;
    //#for t in 0..8
    split_sum_$g += subgroupBroadcast(sum_$g, $[t]u);
    //#end
    //#end
    //#if PARTIAL
    //#for g in 0..GROUP
    {
        let at = ((head + $gu) * dims.splits + split) * (QUADS + 1u);
        //#for i in 0..ITEMS
        if (lane + $[8*i]u < QUADS) { out[at + lane + $[8*i]u] = o_$g_$i; }
        //#end
        if (lane == 0u) { out[at + QUADS] = vec4<f32>(max_$g, split_sum_$g, 0.0, 0.0); }
    }
    //#end
    //#else
    //#for g in 0..GROUP
    {
        let m = merge(all_max_$g, max_$g);
        all_max_$g = m.x;
        all_sum_$g = fma(split_sum_$g, m.z, all_sum_$g * m.y);
        //#for i in 0..ITEMS
        all_$g_$i = fma(o_$g_$i, vec4<f32>(m.z), all_$g_$i * m.y);
        //#end
    }
    //#end
    }
    //#for g in 0..GROUP
    //#for i in 0..ITEMS
    if (lane + $[8*i]u < QUADS) { out[(head + $gu) * QUADS + lane + $[8*i]u] = all_$g_$i / all_sum_$g; }
    //#end
    //#end
    //#end
}
