//! What is kept in order, over repositories laid out by hand: pages stored in two places, packs moved twice, records that say
//! what no program of ours would.
#![allow(clippy::unwrap_used, missing_docs)] // clippy.toml excuses test functions only, and all of this is tests
#![allow(dead_code)] // each file of scenarios uses a part of the desk

mod copies;
mod desk;
#[path = "../days/hiding.rs"]
mod hiding;
mod looks;
mod moves;
mod publishing;
