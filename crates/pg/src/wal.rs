//! The write-ahead log as files: how segments are named and sized, what their headers say, what they hold.
//!
//! [`SegmentSize`] and [`SegmentName`] do the arithmetic, [`FileName`] reads whatever `archive_command` is given.

mod name;
mod size;

pub use name::{FileName, FileNameError, SegmentName};
pub use size::{SegmentSize, SegmentSizeError};
