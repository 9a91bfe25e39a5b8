//! The packs that a manifest needs.

use jiff::Timestamp;
use prost::Message;

use crate::content::ContentError;
use crate::layout::PackId;

/// A pack that a manifest needs.
#[derive(Clone, PartialEq, Message)]
pub struct PackRef {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    /// The object's size.
    #[prost(uint64, tag = "2")]
    pub size: u64,
    /// Bytes of its table and footer.
    #[prost(uint32, tag = "3")]
    pub tail_len: u32,
    /// Plaintext bytes of it that this backup names.
    #[prost(uint64, tag = "4")]
    pub live: u64,
    /// Seconds since 1970; 0 if nobody locked it.
    #[prost(uint64, tag = "5")]
    locked_until_s: u64,
}

impl PackRef {
    /// A reference; `live` is counted up later.
    pub fn new(id: PackId, size: u64, tail_len: u32) -> Self {
        Self { id: id.0.to_vec(), size, tail_len, live: 0, locked_until_s: 0 }
    }

    /// The pack's id.
    pub fn id(&self) -> Result<PackId, ContentError> {
        self.id[..].try_into().map(PackId).map_err(|_| ContentError { what: "pack id" })
    }

    /// Until when it is locked at least, with all that its named pages were moved to; `None` if that is not known.
    pub fn locked_until(&self) -> Option<Timestamp> {
        let seconds = i64::try_from(self.locked_until_s).ok().filter(|seconds| *seconds > 0)?;
        Timestamp::from_second(seconds).ok()
    }

    /// Notes that it is locked until then, a time in whole seconds.
    pub fn set_locked_until(&mut self, until: Timestamp) {
        self.locked_until_s = u64::try_from(until.as_second()).unwrap_or(0);
    }
}
