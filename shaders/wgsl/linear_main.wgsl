// The loop over K and the fold, for one weight (`w`) or two (`gate`, `up`); ends in `store`.
//#if SPLIT && !SUBGROUP
//#if DUAL
var<workgroup> part_gate: array<f32, $[64*T]>; // [tokens, segments, rows]
var<workgroup> part_up: array<f32, $[64*T]>;
//#else
var<workgroup> part_w: array<f32, $[64*T]>; // [tokens, segments, rows]
//#end
//#end

//#if SPLIT
@compute @workgroup_size(64)
//#else
@compute @workgroup_size(8)
//#end
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    //#if SUBGROUP && SPLIT
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) subgroup_lanes: u32,
    //#end
    //#if SUBGROUP
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
    //#else
    @builtin(local_invocation_index) lane: u32,
    //#end
) {
    let first_row = wg.y * $Tu;
    if (first_row >= live[$SPACE]) { return; }
    //#if SPLIT
    //#if SUBGROUP
    // The segments of a row are neighbours, inside one subgroup.
    let lane = subgroup * subgroup_lanes + subgroup_lane;
    let segment = lane % 8u;
    let lane_row = lane / 8u;
    //#else
    let lane_row = lane % 8u;
    let segment = lane / 8u;
    //#end
    let panel_0 = wg.x;
    //#else
    //#if SUBGROUP
    let lane_row = subgroup_lane;
    //#else
    let lane_row = lane;
    //#end
    //#for r in 0..R
    let panel_$r = min(wg.x * $Ru + $ru, dims.panels - 1u);
    //#end
    //#end
    //#for r in 0..R
    //#for t in 0..T
    //#if DUAL
    var gate_total_$r_$t = 0.0;
    var up_total_$r_$t = 0.0;
    //#else
    var w_total_$r_$t = 0.0;
    //#end
    //#end
    //#end
    //#if SPLIT
    for (var group = segment; group < dims.groups; group += 8u) {
    //#else
    for (var group = 0u; group < dims.groups; group += 1u) {
    //#end
        //#for t in 0..T
        //#if BROADCAST
        let mine_$t = x_quad(first_row + $tu, group * 8u + lane_row);
        //#end
        //#if MIN
        var xsum_$t = 0.0;
        //#if BROADCAST
        let own_$t = ((mine_$t.x + mine_$t.y) + mine_$t.z) + mine_$t.w;
        //#end
        //#for u in 0..8
        //#if BROADCAST
        xsum_$t += subgroupBroadcast(own_$t, $[u]u);
        //#else
        { let v = x_quad(first_row + $tu, group * 8u + $[u]u); xsum_$t += ((v.x + v.y) + v.z) + v.w; }
        //#end
        //#end
        //#end
        //#end
        //#if DUAL
        //#include linear_group W=gate
        //#include linear_group W=up
        //#else
        //#include linear_group W=w
        //#end
    }
    //#if !SPLIT
    //#for r in 0..R
    {
        let n = (wg.x * $Ru + $ru) * 8u + lane_row;
        //#for t in 0..T
        //#if DUAL
        store(first_row + $tu, n, gate_total_$r_$t, up_total_$r_$t);
        //#else
        store(first_row + $tu, n, w_total_$r_$t);
        //#end
        //#end
    }
    //#end
    //#else
    //#if SUBGROUP
    let n = wg.x * 8u + lane_row;
    let base = subgroup_lane - segment;
    //#for t in 0..T
    {
        //#if DUAL
        var gate = 0.0;
        var up = 0.0;
        //#for i in 0..8
        gate += subgroupShuffle(gate_total_0_$t, base + $iu);
        up += subgroupShuffle(up_total_0_$t, base + $iu);
        //#end
        if (segment == $tu) { store(first_row + $tu, n, gate, up); }
        //#else
        var total = 0.0;
        //#for i in 0..8
        total += subgroupShuffle(w_total_0_$t, base + $iu);
        //#end
        if (segment == $tu) { store(first_row + $tu, n, total); }
        //#end
    }
    //#end
    //#else
    //#for t in 0..T
    //#if DUAL
    part_gate[$[64*t]u + lane] = gate_total_0_$t;
    part_up[$[64*t]u + lane] = up_total_0_$t;
    //#else
    part_w[$[64*t]u + lane] = w_total_0_$t;
    //#end
    //#end
    workgroupBarrier();
    if (lane < $[8*T]u) {
        let at = lane / 8u * 64u + lane % 8u;
        //#if DUAL
        var gate = 0.0;
        var up = 0.0;
        //#for i in 0..8
        gate += part_gate[at + $[8*i]u];
        up += part_up[at + $[8*i]u];
        //#end
        store(first_row + lane / 8u, wg.x * 8u + lane % 8u, gate, up);
        //#else
        var total = 0.0;
        //#for i in 0..8
        total += part_w[at + $[8*i]u];
        //#end
        store(first_row + lane / 8u, wg.x * 8u + lane % 8u, total);
        //#end
    }
    //#end
    //#end
}
