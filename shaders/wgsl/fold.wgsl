// The sum of one value a lane over a workgroup of $LANES, the same bits in every lane.
var<workgroup> part: array<f32, $LANES>;
fn fold(lane: u32, value: f32) -> f32 {
    part[lane] = value;
    workgroupBarrier();
    //#if LANES > 8
    // A tree: pairs 1, 2, 4, ... apart.
    for (var apart = 1u; apart < $LANESu; apart *= 2u) {
        if (lane % (2u * apart) == 0u) { part[lane] += part[lane + apart]; }
        workgroupBarrier();
    }
    return part[0];
    //#else
    var sum = 0.0;
    //#for i in 0..LANES
    sum += part[$i];
    //#end
    return sum;
    //#end
}
