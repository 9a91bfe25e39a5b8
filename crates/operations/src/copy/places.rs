//! Where pages of the source stand in the target: runs of pages, twelve bytes each, so that what one backup needed is not
//! copied again for the next.

use std::collections::HashMap;

use repository::PackId;
use repository::chunk::{MAX_CHUNK, PAGE};

/// Pages of the largest chunk.
const CHUNK_PAGES: u32 = (MAX_CHUNK / PAGE) as u32;

/// A page of a pack, by chunk and by number in that.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Place {
    pub(crate) pack: PackId,
    pub(crate) chunk: u32,
    pub(crate) page: u32,
}

/// What is known of a page and of those behind it in its chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Known {
    /// It stands there, and so many pages from it on follow each other in both.
    At(Place, u32),
    /// Neither it nor, in all, so many pages from it on are in the target.
    Nowhere(u32),
}

/// Pages that follow each other in one chunk of the source and in one of the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    chunk: u16,
    to_chunk: u16,
    /// Of the target's packs.
    to_pack: u32,
    page: u8,
    pages: u8,
    to_page: u8,
}

/// The table of all of them.
#[derive(Default)]
pub(crate) struct Places {
    runs: HashMap<PackId, Vec<Run>>,
    targets: Vec<PackId>,
    numbers: HashMap<PackId, u32>,
}

impl Places {
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Where a page of the source is in the target.
    pub(crate) fn look(&self, from: Place) -> Known {
        let runs = self.runs.get(&from.pack).map_or(&[][..], Vec::as_slice);
        let after = runs.partition_point(|run| run.key() <= (from.chunk, from.page));
        if let Some(run) = after.checked_sub(1).map(|at| &runs[at])
            && u32::from(run.chunk) == from.chunk
            && from.page < run.end()
        {
            let page = u32::from(run.to_page) + from.page - u32::from(run.page);
            let pack = self.targets[run.to_pack as usize];
            return Known::At(Place { pack, chunk: run.to_chunk.into(), page }, run.end() - from.page);
        }
        let next = runs.get(after).filter(|run| u32::from(run.chunk) == from.chunk);
        Known::Nowhere(next.map_or(CHUNK_PAGES, |run| run.page.into()).saturating_sub(from.page).max(1))
    }

    /// Notes that `pages` pages from `from` on, which [`Places::look`] knows nowhere, are from `to` on in the target.
    pub(crate) fn note(&mut self, from: Place, to: Place, pages: u32) {
        let number = *self.numbers.entry(to.pack).or_insert_with(|| {
            self.targets.push(to.pack);
            self.targets.len() as u32 - 1
        });
        let run = Run {
            chunk: from.chunk as u16,
            to_chunk: to.chunk as u16,
            to_pack: number,
            page: from.page as u8,
            pages: pages as u8,
            to_page: to.page as u8,
        };
        let runs = self.runs.entry(from.pack).or_default();
        let at = runs.partition_point(|other| other.key() <= run.key());
        // Small files stand behind each other in a chunk, and come one by one.
        match at.checked_sub(1).map(|at| &mut runs[at]) {
            Some(before) if before.goes_on_with(&run) => before.pages += run.pages,
            _ => runs.insert(at, run),
        }
    }
}

impl Run {
    fn key(&self) -> (u32, u32) {
        (self.chunk.into(), self.page.into())
    }

    fn end(&self) -> u32 {
        u32::from(self.page) + u32::from(self.pages)
    }

    fn goes_on_with(&self, next: &Self) -> bool {
        (self.chunk, self.to_pack, self.to_chunk) == (next.chunk, next.to_pack, next.to_chunk)
            && self.end() == u32::from(next.page)
            && u32::from(self.to_page) + u32::from(self.pages) == u32::from(next.to_page)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    proptest::proptest! {
        #[test]
        fn the_table_is_the_map_it_stands_for(
            notes in proptest::collection::vec((0u32..3, 0u32..128, 1u32..40, 0u8..3, 0u32..3, 0u32..128), 0..60),
        ) {
            let (mut places, mut model) = (Places::default(), BTreeMap::new());
            let pack = PackId([9; 16]);
            for (chunk, page, pages, to, to_chunk, to_page) in notes {
                let from = Place { pack, chunk, page };
                let Known::Nowhere(free) = places.look(from) else { continue };
                let pages = pages.min(free).min(128 - to_page).min(128 - page);
                let to = Place { pack: PackId([to; 16]), chunk: to_chunk, page: to_page };
                places.note(from, to, pages);
                for more in 0..pages {
                    let taken = model.insert((chunk, page + more), Place { page: to_page + more, ..to });
                    assert_eq!(taken, None);
                }
            }
            for chunk in 0..3 {
                for page in 0..128 {
                    let found = match places.look(Place { pack, chunk, page }) {
                        Known::At(place, _) => Some(place),
                        Known::Nowhere(_) => None,
                    };
                    assert_eq!(found, model.get(&(chunk, page)).copied());
                }
            }
        }
    }
}
