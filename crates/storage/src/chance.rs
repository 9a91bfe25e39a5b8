//! Chance that is no secret: names that must be new, pauses that must differ.
//!
//! It comes from the system. A simulation, which must be able to repeat what it found, fixes it for its own thread; builds
//! without debug assertions do not know how. Keys never come from here.

use rand::TryRngCore as _;

#[cfg(debug_assertions)]
thread_local! {
    static FIXED: std::cell::RefCell<Option<rand::rngs::StdRng>> = const { std::cell::RefCell::new(None) };
}

/// `N` bytes that nobody had before.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[cfg(debug_assertions)]
    if FIXED
        .with_borrow_mut(|fixed| fixed.as_mut().map(|fixed| rand::RngCore::fill_bytes(fixed, &mut bytes)))
        .is_some()
    {
        return bytes;
    }
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).expect("the system's random source works");
    bytes
}

/// A number between `least` and `most`.
pub(crate) fn between(least: f64, most: f64) -> f64 {
    let part = u64::from_le_bytes(bytes()) >> 11;
    least + (most - least) * (part as f64 / (1_u64 << 53) as f64)
}

/// Makes the chance of this thread repeat itself.
#[doc(hidden)]
#[cfg(debug_assertions)]
pub fn fix(seed: u64) {
    FIXED.set(Some(rand::SeedableRng::seed_from_u64(seed)));
}
