//! Map leaves: the extents of 16 MiB of a file, and of a logical backup's file which of them are a piece together.

use prost::Message;

use super::{ContentError, Dictionary, Extent};
use crate::chunk::{Digester, PageDigest};

/// What a piece of a logical backup's file digests to: half of the pages' digests' digest, by which the next backup finds it again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PieceDigest(pub u64);

impl PieceDigest {
    /// Of a piece with these pages, the last of which was filled up with zeros.
    pub fn of(digester: &Digester, pages: &[PageDigest]) -> Self {
        let joined: Vec<u8> = pages.iter().flat_map(|page| page.0.to_le_bytes()).collect();
        Self(u64::from_le_bytes(*digester.content(&joined).first_chunk().expect("a digest has 32 bytes")))
    }
}

/// A piece whose pages tell nothing, because it does not stand on pages of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Composed {
    /// The first of its extents in the leaf.
    pub first: u32,
    /// How many they are.
    pub extents: u32,
    /// What all of its bytes digest to.
    pub digest: PieceDigest,
}

/// What a leaf says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leaf {
    /// The extents of a span, in file order.
    pub extents: Vec<Extent>,
    /// Pieces made of some of them, in the same order; every other extent is a piece of its own.
    pub composed: Vec<Composed>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredLeaf {
    #[prost(bytes = "vec", repeated, tag = "1")]
    packs: Vec<Vec<u8>>,
    #[prost(uint64, repeated, tag = "2")]
    extents: Vec<u64>,
    /// Two numbers a piece: extents between the one before and this one, and its own.
    #[prost(uint32, repeated, tag = "3")]
    composed: Vec<u32>,
    #[prost(fixed64, repeated, tag = "4")]
    digests: Vec<u64>,
}

impl Leaf {
    /// Of extents that are pieces of their own.
    pub fn of(extents: Vec<Extent>) -> Self {
        Self { extents, composed: Vec::new() }
    }

    /// Its stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut dictionary = Dictionary::default();
        let extents = dictionary.flatten(&self.extents);
        let (mut composed, mut after) = (Vec::with_capacity(2 * self.composed.len()), 0);
        for piece in &self.composed {
            composed.extend([piece.first - after, piece.extents]);
            after = piece.first + piece.extents;
        }
        let digests = self.composed.iter().map(|piece| piece.digest.0).collect();
        StoredLeaf { packs: dictionary.stored(), extents, composed, digests }.encode_to_vec()
    }

    /// Reads a leaf that covers `span` bytes of its file.
    pub fn decode(bytes: &[u8], span: u64) -> Result<Self, ContentError> {
        let bad = |what| ContentError { what };
        let leaf = StoredLeaf::decode(bytes).map_err(|_| bad("map leaf"))?;
        let (extents, total) = Dictionary::read(&leaf.packs)?.unflatten(&leaf.extents)?;
        if total != span {
            return Err(bad("a leaf of another length"));
        }
        let (pairs, []) = leaf.composed.as_chunks::<2>() else { return Err(bad("pieces of a leaf")) };
        if pairs.len() != leaf.digests.len() {
            return Err(bad("pieces of a leaf"));
        }
        let (mut composed, mut after) = (Vec::with_capacity(pairs.len()), 0u32);
        for (&[between, count], digest) in pairs.iter().zip(leaf.digests) {
            let first = after.checked_add(between).ok_or(bad("pieces of a leaf"))?;
            let end = first.checked_add(count).filter(|end| *end as usize <= extents.len() && count > 0);
            after = end.ok_or(bad("pieces of a leaf"))?;
            composed.push(Composed { first, extents: count, digest: PieceDigest(digest) });
        }
        Ok(Self { extents, composed })
    }

    /// Each piece: its extents, and its digest where the leaf says it.
    pub fn pieces(&self) -> impl Iterator<Item = (&[Extent], Option<PieceDigest>)> {
        let (mut at, mut composed) = (0, self.composed.iter().peekable());
        std::iter::from_fn(move || {
            if at >= self.extents.len() {
                return None;
            }
            let piece = composed.next_if(|piece| piece.first as usize == at);
            let count = piece.map_or(1, |piece| piece.extents as usize);
            let extents = &self.extents[at..at + count];
            at += count;
            Some((extents, piece.map(|piece| piece.digest)))
        })
    }
}
