// Rotary embedding on units of four values of a head: two neighbours at `x` and two at `y` of the unit's
// place, which hold two pairs whole, so that a lane writes whole words whatever the pairing.
fn unit_at(unit: u32) -> vec2<u32> {
    //#if HALVED
    if (unit < dims.rope_dim / 4u) { return vec2<u32>(2u * unit, 2u * unit + dims.rope_dim / 2u); }
    //#end
    return vec2<u32>(4u * unit, 4u * unit + 2u);
}
fn rotate(v: vec4<f32>, unit: u32, row: u32) -> vec4<f32> {
    if (unit >= dims.rope_dim / 4u) { return v; }
    let at = row * (dims.rope_dim / 2u) + 2u * unit;
    let a = rope[at];
    let b = rope[at + 1u];
    //#if HALVED
    // Pairs (v.x, v.z) and (v.y, v.w).
    return vec4<f32>(v.x * a.x - v.z * a.y, v.y * b.x - v.w * b.y, v.x * a.y + v.z * a.x, v.y * b.y + v.w * b.x);
    //#else
    // Pairs (v.x, v.y) and (v.z, v.w).
    return vec4<f32>(v.x * a.x - v.y * a.y, v.x * a.y + v.y * a.x, v.z * b.x - v.w * b.y, v.z * b.y + v.w * b.x);
    //#end
}
