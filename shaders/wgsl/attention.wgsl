// Causal attention over the paged cache, online in tiles of 32 tokens and splits of 256, both counted from
// position 0, so that the order of every sum depends on the position alone. A workgroup serves one
// (row, key head): one split of it (PARTIAL; attention_combine folds them), or all splits in turn.
// The tile's 32 is also a member of dims: loops over it stay loops, which software drivers compile 10 times faster.
// Masked tokens read the nearest visible one and weigh 0: unwritten slots are never read.
struct Dims { kv_heads: u32, block_size: u32, max_blocks: u32, window: u32, splits: u32, scale: f32, tile: u32 }
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

const QUADS: u32 = $QUADSu; // head_dim / 4
const LOWEST: f32 = -3.0e38;
var<workgroup> place: array<u32, 32>; // first quad of a token's key or value
var<workgroup> weights: array<f32, $[32*GROUP]>; // [heads of the group, tokens]: scores, then exponentials
//#if KV == 3
var<workgroup> v_scale: array<f32, 32>; // of a token
//#end
// For scores an item is a token and $KSHARE heads, for values a quad and $SHARE heads.
//#include merge

@compute @workgroup_size($LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wg.y;
    if (row >= live[0]) { return; }
    let position = positions[row];
    var first = 0u;
    if (dims.window != 0u && position >= dims.window) { first = position + 1u - dims.window; }
    let head = wg.x * $GROUPu;
    let table = row_seq[row] * dims.max_blocks;
    //#if PARTIAL
    let split = wg.z;
    if (split * 256u > position || split < first / 256u) { return; }
    //#else
    //#for g in 0..GROUP
    var all_max_$g = LOWEST;
    var all_sum_$g = 0.0;
    //#end
    //#for i in 0..ITEMS
    //#for h in 0..SHARE
    var all_$i_$h = vec4<f32>();
    //#end
    //#end
    for (var split = first / 256u; split <= position / 256u; split += 1u) {
    //#end
    //#for g in 0..GROUP
    var max_$g = LOWEST;
    var sum_$g = 0.0;
    //#end
    //#for i in 0..ITEMS
    //#for h in 0..SHARE
    var o_$i_$h = vec4<f32>();
    //#end
    //#end
    let last_tile = min(position / 32u, split * 8u + 7u);
    for (var tile = max(first / 32u, split * 8u); tile <= last_tile; tile += 1u) {
        workgroupBarrier();
        for (var i = lane; i < $[32*GROUP/KSHARE]u; i += $LANESu) {
            let token = tile * 32u + i % 32u;
            let seen = clamp(token, first, position);
            let block_id = block_tables[table + seen / dims.block_size];
            let offset = seen % dims.block_size;
            let slot = block_id * dims.block_size + offset;
            let at = (slot * dims.kv_heads + wg.x) * QUADS;
            //#if KV == 3
            let own = (block_id * dims.kv_heads + wg.x) * dims.block_size + offset;
            let k_scale = k_scales[own];
            if (i < 32u) { v_scale[i] = v_scales[own]; }
            //#end
            if (i < 32u) { place[i] = at; }
            let source = (row * dims.kv_heads * $GROUPu + head + i / 32u) * QUADS;
            //#for h in 0..KSHARE
            var score_$h = 0.0;
            //#end
            for (var c = 0u; c < QUADS; c += 1u) {
                let key = kv_unpack(k_cache[at + c]);
                //#for h in 0..KSHARE
                {
                    let query = q[source + $hu * QUADS + c];
                    score_$h = fma(query.x, key.x, score_$h);
                    score_$h = fma(query.y, key.y, score_$h);
                    score_$h = fma(query.z, key.z, score_$h);
                    score_$h = fma(query.w, key.w, score_$h);
                }
                //#end
            }
            //#for h in 0..KSHARE
            //#if KV == 3
            score_$h *= k_scale; // a power of two: exact here as anywhere
            //#end
            weights[$[32*h]u + i] = select(LOWEST, score_$h * dims.scale, token == seen);
            //#end
        }
        workgroupBarrier();
        //#for g in 0..GROUP
        let old_$g = max_$g;
        for (var t = 0u; t < dims.tile; t += 1u) { max_$g = max(max_$g, weights[$[32*g]u + t]); }
        let keep_$g = exp(old_$g - max_$g);
        //#end
        workgroupBarrier();
        for (var t = lane; t < 32u; t += $LANESu) {
            //#for g in 0..GROUP
            {
                let s = weights[$[32*g]u + t];
                weights[$[32*g]u + t] = select(0.0, exp(s - max_$g), s > LOWEST);
            }
            //#end
        }
        workgroupBarrier();
        //#for g in 0..GROUP
        {
            var sum = 0.0;
            for (var t = 0u; t < dims.tile; t += 1u) { sum += weights[$[32*g]u + t]; }
            sum_$g = fma(sum_$g, keep_$g, sum);
        }
        //#end
        //#for i in 0..ITEMS
        {
            let item = lane + $[i*LANES]u;
            if (item < $[QUADS*GROUP/SHARE]u) {
                let c = item % QUADS;
                //#if SHARE == 1
                let own = item / QUADS;
                var keep = keep_0;
                //#for g in 1..GROUP
                if (own == $gu) { keep = keep_$g; }
                //#end
                //#end
                //#for h in 0..SHARE
                var tile_$h = vec4<f32>();
                //#end
                for (var t = 0u; t < dims.tile; t += 1u) {
                    let value = kv_unpack(v_cache[place[t] + c]);
                    //#for h in 0..SHARE
                    //#if SHARE == 1
                    var w_$h = weights[32u * own + t];
                    //#else
                    var w_$h = weights[$[32*h]u + t];
                    //#end
                    //#if KV == 3
                    w_$h *= v_scale[t];
                    //#end
                    tile_$h = fma(vec4<f32>(w_$h), value, tile_$h);
                    //#end
                }
                //#for h in 0..SHARE
                //#if SHARE == 1
                o_$i_$h = fma(o_$i_$h, vec4<f32>(keep), tile_$h);
                //#else
                o_$i_$h = fma(o_$i_$h, vec4<f32>(keep_$h), tile_$h);
                //#end
                //#end
            }
        }
        //#end
    }
    //#if PARTIAL
    let stride = QUADS + 1u;
    //#for g in 0..GROUP
    if (lane == 0u) {
        let at = ((row * dims.kv_heads * $GROUPu + head + $gu) * dims.splits + split) * stride + QUADS;
        out[at] = vec4<f32>(max_$g, sum_$g, 0.0, 0.0);
    }
    //#end
    //#for i in 0..ITEMS
    {
        let item = lane + $[i*LANES]u;
        if (item < $[QUADS*GROUP/SHARE]u) {
            //#for h in 0..SHARE
            let at_$h = ((row * dims.kv_heads * $GROUPu + head + item / QUADS + $hu) * dims.splits + split) * stride;
            out[at_$h + item % QUADS] = o_$i_$h;
            //#end
        }
    }
    //#end
    //#else
    //#for g in 0..GROUP
    let merge_$g = merge(all_max_$g, max_$g);
    all_max_$g = merge_$g.x;
    all_sum_$g = fma(sum_$g, merge_$g.z, all_sum_$g * merge_$g.y);
    //#end
    //#for i in 0..ITEMS
    {
        //#if SHARE == 1
        let own = (lane + $[i*LANES]u) / QUADS;
        var m = merge_0;
        //#for g in 1..GROUP
        if (own == $gu) { m = merge_$g; }
        //#end
        all_$i_0 = fma(o_$i_0, vec4<f32>(m.z), all_$i_0 * m.y);
        //#else
        //#for h in 0..SHARE
        all_$i_$h = fma(o_$i_$h, vec4<f32>(merge_$h.z), all_$i_$h * merge_$h.y);
        //#end
        //#end
    }
    //#end
    }
    //#for i in 0..ITEMS
    {
        let item = lane + $[i*LANES]u;
        if (item < $[QUADS*GROUP/SHARE]u) {
            //#if SHARE == 1
            let own = item / QUADS;
            var total = all_sum_0;
            //#for g in 1..GROUP
            if (own == $gu) { total = all_sum_$g; }
            //#end
            out[(row * dims.kv_heads * $GROUPu + head + own) * QUADS + item % QUADS] = all_$i_0 / total;
            //#else
            //#for h in 0..SHARE
            out[(row * dims.kv_heads * $GROUPu + head + $hu) * QUADS + item] = all_$i_$h / all_sum_$h;
            //#end
            //#end
        }
    }
    //#end
    //#end
}
