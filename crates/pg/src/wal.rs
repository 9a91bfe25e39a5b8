//! The write-ahead log as files: how segments are named and sized, what their headers say, what they hold.
//!
//! [`SegmentSize`] and [`SegmentName`] do the arithmetic, [`FileName`] reads whatever `archive_command` is
//! given, [`check_segment`] says whether a segment is what its name says, and [`records::commit_span`] when
//! the transactions in it ended. [`summary`] reads the server's own notes of which blocks the WAL changed.

mod header;
mod name;
pub mod records;
mod size;
pub mod summary;

pub use header::{HeaderError, LONG_HEADER_SIZE, LongHeader, SegmentMismatch, StreamIdentity, check_segment};
pub use name::{FileName, FileNameError, SegmentName};
pub use size::{SegmentSize, SegmentSizeError};
