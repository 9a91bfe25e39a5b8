//! Protection without anyone's help: what is due when, each of it run once, and what ran written down.
//!
//! In reading order: [`schedule`] (when a job is due), [`job`] (what a job is, and one run of it as a process of its own), [`round`]
//! (jobs after each other, each alone in the whole repository, each recorded), [`serve`] (the loop). A job is the same command that a
//! person gives: what it needs of memory is given back when it ends, and a crash of it is an exit code.

pub mod job;
pub mod round;
pub mod schedule;
pub mod serve;
