//! Operations: one module for each thing that a user wishes for, each a recipe over a server and a repository.
//!
//! [`probe`] says in which ways a server can be captured, [`backup`] captures a cluster, [`archive`] carries WAL into the repository and back, [`restore`] brings a past moment
//! back, [`prune`] reclaims space, [`copy`] brings backups into another repository, [`init`] makes a repository, [`rotation`] replaces a key, [`catalogue`] answers what is there, [`reachable`] what can be restored.
//! Nothing here prints, reads the environment or knows the command line: progress goes to a [`monitor::Monitor`].

pub mod archive;
pub mod backup;
pub mod catalogue;
pub mod copy;
pub mod failpoint;
pub mod init;
pub mod monitor;
pub mod owner;
pub mod probe;
pub mod prune;
pub mod reachable;
pub mod receive;
pub mod restore;
pub mod rotation;
