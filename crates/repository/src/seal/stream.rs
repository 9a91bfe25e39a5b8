//! Whole objects as streams of frames: manifests and partial manifests; WAL files have the same frames, see `archive`.

use bytes::Bytes;
use storage::ObjectName;

use super::{Header, Kind, MAX_FRAME, Opener, SealError, Sealer, TAG_LEN};
use crate::secrets::{Access, WriterCredential};

/// Seals a whole stream: a header, then frames of at most 1 MiB of plaintext, each behind its length.
pub fn seal_stream(
    writer: &WriterCredential,
    kind: Kind,
    name: &ObjectName,
    public: &[u8],
    content: &[u8],
) -> Bytes {
    let mut sealer = Sealer::new(writer, kind, name, public);
    let mut object = sealer.header().to_vec();
    let mut pieces = content.chunks(MAX_FRAME).peekable();
    loop {
        let piece = pieces.next().unwrap_or_default();
        let last = pieces.peek().is_none();
        object.extend_from_slice(&((piece.len() + TAG_LEN) as u32).to_le_bytes());
        let start = object.len();
        object.extend_from_slice(piece);
        sealer.seal_tail(&mut object, start, last);
        if last {
            return Bytes::from(object);
        }
    }
}

/// Opens what [`seal_stream`] made; returns the header and the content.
pub fn open_stream(
    access: &Access,
    kind: Kind,
    name: &ObjectName,
    object: &[u8],
) -> Result<(Header, Vec<u8>), SealError> {
    let header = Header::parse(access.writer(), kind, name, object)?;
    let opener = Opener::new(access, kind, name, &header)?;
    let mut content = Vec::with_capacity(object.len());
    for frame in frames(name, &object[header.len..]) {
        let (number, frame, last) = frame?;
        let start = content.len();
        content.extend_from_slice(frame);
        let plain_len = opener.open_in_place(number, &mut content[start..], last)?.len();
        content.truncate(start + plain_len);
    }
    Ok((header, content))
}

/// The frames of a stream in order: number, sealed bytes, whether it is the last.
fn frames<'a>(
    name: &'a ObjectName,
    mut rest: &'a [u8],
) -> impl Iterator<Item = Result<(u64, &'a [u8], bool), SealError>> + 'a {
    let mut number = 0;
    let mut done = false;
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        let frame = rest.split_first_chunk::<4>().and_then(|(len, behind)| {
            let len = u32::from_le_bytes(*len) as usize;
            (TAG_LEN..=MAX_FRAME + TAG_LEN).contains(&len).then(|| behind.split_at_checked(len)).flatten()
        });
        let Some((frame, behind)) = frame else {
            done = true;
            return Some(Err(SealError::Length { name: name.clone() }));
        };
        rest = behind;
        done = rest.is_empty();
        number += 1;
        Some(Ok((number - 1, frame, done)))
    })
}
