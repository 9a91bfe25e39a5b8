//! A live PostgreSQL server, seen from a backup's side.
//!
//! In reading order: [`connection`] is one SQL session over libpq; [`facts`] is what a server is and what our role may
//! do there, [`grants`] how a role comes to it, [`pooler`] whether something stands in between; [`settings_check`] says what to change before it can be backed up; [`backup`] holds a base backup open;
//! [`files`] reads the files of its cluster, [`summaries`] what it notes of changed blocks; [`snapshot`] holds one moment of a database open,
//! [`tables`] says what is in it, [`programs`] finds PostgreSQL's own; [`throwaway`] makes servers for demonstrations, trial restores and tests.
//!
//! Calls block: async code runs them on a blocking thread. This room stores nothing, knows no repository, and decides
//! no policy. `unsafe` code exists in `connection` only, where libpq's pointers are.

pub mod backup;
pub mod connection;
pub mod facts;
pub mod files;
pub mod grants;
pub mod pooler;
pub mod programs;
pub mod settings_check;
pub mod snapshot;
pub mod summaries;
pub mod tables;
pub mod throwaway;
