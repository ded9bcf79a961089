// Joins the running maximum of earlier splits with the next one's: (new maximum, factor of the earlier
// sums, factor of the next).
fn merge(earlier: f32, next: f32) -> vec3<f32> {
    let top = max(earlier, next);
    return vec3<f32>(top, exp(earlier - top), exp(next - top));
}
