//! exp and ln on 16 lanes, the same bits on every level.

use super::simd::Isa;

/// `e^x` for x up to 88 (relative error below 2^-22); `e^-87` below -87; 1 exactly at 0; NaN at NaN.
#[inline(always)]
pub fn exp<S: Isa>(s: S, x: S::F) -> S::F {
    // The order of the operands lets NaN through.
    let x = s.min(s.splat(88.0), s.max(s.splat(-87.0), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let whole = s.to_f(n);
    // ln 2 in two parts: the first has few bits, so that its product is exact.
    let r = s.fma(whole, s.splat(-0.693_359_4), x);
    let r = s.fma(whole, s.splat(2.121_944_4e-4), r);
    // Taylor's series: |r| <= ln(2) / 2, so the term left out is below 2^-27.
    let mut p = s.splat(1.0 / 5040.0);
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = s.fma(p, r, s.splat(factor));
    }
    let power = s.as_float(s.shl::<23>(s.add_i(n, s.splat_i(127))));
    s.mul(p, power)
}

/// `e^x` of one number.
#[inline(always)]
pub fn exp1<S: Isa>(s: S, x: f32) -> f32 {
    let mut lanes = [0f32; 16];
    // SAFETY: 16 lanes to write.
    unsafe { s.store(lanes.as_mut_ptr(), exp(s, s.splat(x))) };
    lanes[0]
}

/// `ln x` of positive normal numbers (relative error below 2^-21, also near 1).
#[inline(always)]
pub fn ln<S: Isa>(s: S, x: S::F) -> S::F {
    // x = 2^e * m with m from sqrt(1/2) to sqrt(2).
    let bits = s.bits(x);
    let e = s.sra::<23>(s.add_i(bits, s.splat_i(-0x3f35_04f3)));
    let minus = s.xor(s.shl::<23>(e), s.splat_i(-1));
    let m = s.as_float(s.add_i(bits, s.add_i(minus, s.splat_i(1))));
    // ln m = 2 atanh(f / (2 + f)) with f = m - 1: odd series in z, |z| < 0.172.
    let f = s.sub(m, s.splat(1.0));
    let z = s.div(f, s.add(f, s.splat(2.0)));
    let zz = s.mul(z, z);
    let mut p = s.splat(1.0 / 9.0);
    for factor in [1.0 / 7.0, 0.2, 1.0 / 3.0] {
        p = s.fma(p, zz, s.splat(factor));
    }
    let tail = s.mul(s.mul(s.add(z, z), zz), p);
    let e = s.to_f(e);
    let low = s.fma(e, s.splat(-2.121_944_4e-4), tail);
    s.fma(e, s.splat(0.693_359_4), s.add(s.add(z, z), low))
}

/// `x / (1 + e^-y)`.
#[inline(always)]
fn gate<S: Isa>(s: S, x: S::F, y: S::F) -> S::F {
    s.div(x, s.add(exp(s, s.sub(s.splat(0.0), y)), s.splat(1.0)))
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub fn silu<S: Isa>(s: S, x: S::F) -> S::F {
    gate(s, x, x)
}

/// The tanh form of GELU, as `x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3))`.
#[inline(always)]
pub fn gelu_tanh<S: Isa>(s: S, x: S::F) -> S::F {
    let cube = s.mul(s.mul(x, x), x);
    let inner = s.fma(cube, s.splat(0.044_715), x);
    gate(s, x, s.mul(inner, s.splat(1.595_769)))
}

#[cfg(test)]
mod tests {
    use super::super::simd::{Kernel, Level};
    use super::*;

    struct Apply([f32; 16], usize);
    impl Kernel for Apply {
        type Out = [f32; 16];
        #[inline(always)]
        fn run<S: Isa>(self, s: S) -> [f32; 16] {
            let mut out = [0f32; 16];
            // SAFETY: 16 lanes in and out.
            unsafe {
                let x = s.load(self.0.as_ptr());
                let y = match self.1 {
                    0 => exp(s, x),
                    1 => ln(s, x),
                    2 => silu(s, x),
                    _ => gelu_tanh(s, x),
                };
                s.store(out.as_mut_ptr(), y);
            }
            out
        }
    }

    #[test]
    fn close_to_f64_and_equal_on_all_levels() {
        use crate::model::Activation;
        let exact: [fn(f64) -> f64; 4] =
            [f64::exp, f64::ln, |x| Activation::Silu.apply(x), |x| Activation::GeluTanh.apply(x)];
        for (which, exact) in exact.into_iter().enumerate() {
            let mut worst = 0f64;
            for step in 0..4000 {
                let x: [f32; 16] = std::array::from_fn(|i| {
                    let u = (step * 16 + i) as f32 / 64000.0;
                    match which {
                        0 => -80.0 + 160.0 * u,
                        1 => {
                            if step % 2 == 0 {
                                1.0 - u / 1e4
                            } else {
                                (u + 1e-6) * 40.0
                            }
                        }
                        _ => -12.0 + 24.0 * u,
                    }
                });
                let all: Vec<[f32; 16]> = Level::available().iter().map(|l| l.run(Apply(x, which))).collect();
                for (i, x) in x.into_iter().enumerate() {
                    let want = exact(x as f64);
                    if want.abs() > 1e-30 {
                        worst = worst.max(
                            (all[0][i] as f64 - want).abs() / if which < 2 { want.abs() } else { want.abs().max(1e-3) },
                        );
                    }
                    assert!(all.iter().all(|a| a[i].to_bits() == all[0][i].to_bits()), "function {which} at {x}");
                }
            }
            assert!(worst < if which < 2 { 5e-7 } else { 2e-6 }, "function {which}: relative error {worst:e}");
        }
        for level in Level::available() {
            assert_eq!(level.run(Apply([0.0; 16], 0)), [1.0; 16]);
            assert!((0..4).all(|f| f == 1 || level.run(Apply([f32::NAN; 16], f))[3].is_nan()));
        }
    }
}
