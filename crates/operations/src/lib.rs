//! Operations: one module for each thing that a user wishes for, each a recipe over a server and a repository.
//!
//! [`probe`] says in which ways a server can be captured, [`backup`] captures a cluster, [`logical`] its databases' rows and definitions, [`archive`] carries WAL into the repository and back, [`restore`] brings a past moment
//! back, [`init`] makes a repository, [`catalogue`] answers what is there, [`reachable`] what can be restored; [`retention`]
//! decides what is kept, [`expire`] removes the rest, [`pin`] keeps a backup whatever the policy says, [`prune`] reclaims space;
//! [`check`] looks whether all of it is there, [`verify`] whether it is whole; [`copy`] brings backups into another repository,
//! [`rotation`] replaces a key; [`failure_note`] remembers what failed last.
//! Nothing here prints, reads the environment or knows the command line: progress goes to a [`monitor::Monitor`].

pub mod archive;
pub mod backup;
pub mod catalogue;
pub mod check;
pub mod copy;
pub mod expire;
pub mod failpoint;
pub mod failure_note;
pub mod findings;
pub mod init;
pub mod logical;
pub mod monitor;
pub mod owner;
pub mod pin;
pub mod probe;
pub mod prune;
pub mod reachable;
pub mod receive;
pub mod restore;
pub mod retention;
pub mod rotation;
pub mod verify;
