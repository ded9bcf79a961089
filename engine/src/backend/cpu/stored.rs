//! Elements of the cache as they are stored. Loops over them are compiled for each format: a choice for every sixteen
//! elements would take longer than what is chosen.

use super::simd::Isa;
use crate::format::KvFormat;
use crate::format::f8::E2M5;

/// A [`KvFormat`] as a type.
pub trait Stored {
    /// What an element is kept in.
    type Element: Copy + Default;
    /// Reads sixteen elements; codes times `scale`.
    ///
    /// # Safety
    /// So many elements behind `from`.
    unsafe fn load<S: Isa>(s: S, from: *const Self::Element, scale: f32) -> S::F;
    /// Writes sixteen; codes of `inverse` times the lanes.
    ///
    /// # Safety
    /// Room for so many behind `to`.
    unsafe fn store<S: Isa>(s: S, to: *mut Self::Element, x: S::F, inverse: f32);
    /// The value of an element, before its scale.
    fn decode(x: Self::Element) -> f32;
    /// The element of a value, after its scale.
    fn encode(x: f32) -> Self::Element;
}

macro_rules! stored {
    (
        $(#[$meta:meta])* $name:ident($element:ty),
        load($s:ident, $from:ident, $scale:ident) $load:expr,
        store($to:ident, $x:ident, $inverse:ident) $store:expr,
        $decode:expr, $encode:expr
    ) => {
        $(#[$meta])*
        pub struct $name;
        impl Stored for $name {
            type Element = $element;
            #[inline(always)]
            unsafe fn load<S: Isa>($s: S, $from: *const $element, $scale: f32) -> S::F {
                // SAFETY: the caller's promise.
                unsafe { $load }
            }
            #[inline(always)]
            unsafe fn store<S: Isa>($s: S, $to: *mut $element, $x: S::F, $inverse: f32) {
                // SAFETY: the caller's promise.
                unsafe { $store }
            }
            #[inline(always)]
            fn decode(x: $element) -> f32 {
                $decode(x)
            }
            #[inline(always)]
            fn encode(x: f32) -> $element {
                $encode(x)
            }
        }
    };
}
stored!(
    /// [`KvFormat::F32`].
    F32(f32), load(s, from, _scale) s.load(from), store(to, x, _inverse) s.store(to, x), |x| x, |x| x
);
stored!(
    /// [`KvFormat::F16`].
    F16(u16), load(s, from, _scale) s.load_f16(from), store(to, x, _inverse) s.store_f16(to, x),
    |x| half::f16::from_bits(x).to_f32(), |x| half::f16::from_f32(x).to_bits()
);
stored!(
    /// [`KvFormat::BF16`].
    BF16(u16), load(s, from, _scale) s.load_bf16(from), store(to, x, _inverse) s.store_bf16(to, x),
    |x| half::bf16::from_bits(x).to_f32(), |x| half::bf16::from_f32(x).to_bits()
);
stored!(
    /// [`KvFormat::E2M5`].
    Codes(u8), load(s, from, scale) s.load_f8::<{ E2M5::MANTISSA }>(from, scale),
    store(to, x, inverse) s.store_e2m5(to, s.mul(x, s.splat(inverse))), E2M5::decode, E2M5::encode
);

/// An expression over the type `$E` that a [`KvFormat`] is.
macro_rules! in_format {
    ($format:expr, $E:ident => $work:expr) => {
        match $format {
            KvFormat::F32 => {
                type $E = $crate::backend::cpu::stored::F32;
                $work
            }
            KvFormat::F16 => {
                type $E = $crate::backend::cpu::stored::F16;
                $work
            }
            KvFormat::BF16 => {
                type $E = $crate::backend::cpu::stored::BF16;
                $work
            }
            KvFormat::E2M5 => {
                type $E = $crate::backend::cpu::stored::Codes;
                $work
            }
        }
    };
}
pub(super) use in_format;

/// Widens `to.len()` neighbouring elements and multiplies codes with their scale.
///
/// # Safety
/// So many elements behind `from`.
#[inline(always)]
pub unsafe fn get<S: Isa>(s: S, format: KvFormat, scale: f32, from: *const u8, to: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe { in_format!(format, E => widen::<S, E>(s, scale, from.cast(), to)) }
}

/// [`get`] of one format.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn widen<S: Isa, E: Stored>(s: S, scale: f32, from: *const E::Element, to: &mut [f32]) {
    let whole = to.len() / 16 * 16;
    // SAFETY: the caller's promise.
    unsafe {
        for i in (0..whole).step_by(16) {
            s.store(to.as_mut_ptr().add(i), E::load(s, from.add(i), scale));
        }
        for (i, to) in to.iter_mut().enumerate().skip(whole) {
            *to = E::decode(*from.add(i)) * scale;
        }
    }
}
