//! The repository: pgkeep's stored format and everything that reads and writes it.
//!
//! Types in reading order: [`secrets`] (who may do what), [`seal`] (how an object is encrypted), [`chunk`] and [`pack`]
//! (how content is stored), [`content`] and [`file_list`] (what a backup says of each file), [`pages`] (where a page of a file is), [`manifest`] and
//! [`backups`] (what a backup is), [`logical`] (what is in one of rows and definitions), [`archive`] (the WAL archive), [`proof`]
//! (what was verified), [`repository`] (all of it, opened). Object names are
//! spelled in [`layout`] only; `docs/format.md` describes every byte.
//!
//! This room knows no running server and decides nothing about when a backup is taken, kept or deleted; that is the
//! work of `operations`.

pub mod archive;
pub mod backups;
pub mod chunk;
pub mod claim;
pub mod content;
pub mod description;
pub mod expired;
pub mod file_list;
pub mod keys;
pub mod layout;
pub mod lease;
pub mod local;
mod lock;
pub mod logical;
pub mod manifest;
pub mod mark;
pub mod moved;
pub mod named;
mod note;
pub mod pack;
pub mod pages;
pub mod pins;
pub mod proof;
pub mod repository;
pub mod run;
pub mod seal;
pub mod secrets;

pub use layout::{ClusterName, PackId};
pub use repository::{Repository, RepositoryError, Secret};
