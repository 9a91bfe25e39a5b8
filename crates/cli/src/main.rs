//! pgkeep
fn main() {}
