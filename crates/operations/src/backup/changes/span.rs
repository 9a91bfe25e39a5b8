//! What of one span is read, and what is the parent's unread.

use std::ops::Range;

use repository::chunk::PAGE;
use repository::content::LEAF_SPAN;

use super::sampler::Sampler;

/// A gap of so few pages between two that are read costs more than it saves.
const GAP: usize = 4;

/// Pages of a whole span.
const SPAN_PAGES: u64 = LEAF_SPAN / PAGE as u64;

/// What becomes of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageWay {
    /// It is read and compared.
    Read,
    /// It is the parent's, unread.
    Take,
    /// It is read, and must be the parent's.
    Sample,
}

/// The ways of a span's pages, of which at least one is the parent's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SpanPlan {
    pages: Vec<PageWay>,
}

impl SpanPlan {
    /// A plan for pages that must be read or need not; `None` if all must.
    pub(super) fn new(read: impl Iterator<Item = bool>, sampler: &mut Sampler) -> Option<Self> {
        let mut pages: Vec<PageWay> =
            read.map(|read| if read { PageWay::Read } else { PageWay::Take }).collect();
        fill_gaps(&mut pages);
        let takes = pages.contains(&PageWay::Take);
        for page in pages.iter_mut().filter(|page| **page == PageWay::Take) {
            if sampler.pick() {
                *page = PageWay::Sample;
            }
        }
        takes.then_some(Self { pages })
    }

    /// Each page's way.
    pub(crate) fn pages(&self) -> &[PageWay] {
        &self.pages
    }

    /// Whether a block of the file is in this span, of that index, and not read.
    pub(crate) fn takes(&self, index: u32, block_in_file: u32) -> bool {
        let first = u64::from(index) * SPAN_PAGES;
        let page = u64::from(block_in_file).checked_sub(first).and_then(|page| usize::try_from(page).ok());
        page.and_then(|page| self.pages.get(page)) == Some(&PageWay::Take)
    }

    /// Runs of pages that are read, in order.
    pub(crate) fn reads(&self) -> impl Iterator<Item = Range<usize>> {
        self.runs().filter(|run| self.pages[run.start] != PageWay::Take)
    }

    /// Runs of pages that are read, or not, in order.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Range<usize>> {
        let mut start = 0;
        self.pages.chunk_by(|a, b| (*a == PageWay::Take) == (*b == PageWay::Take)).map(move |run| {
            let range = start..start + run.len();
            start = range.end;
            range
        })
    }
}

/// Has a few pages between two that are read be read with them.
fn fill_gaps(pages: &mut [PageWay]) {
    let mut after_read = None;
    for at in 0..pages.len() {
        if pages[at] == PageWay::Read {
            if let Some(start) = after_read.filter(|start| at - start <= GAP) {
                pages[start..at].fill(PageWay::Read);
            }
            after_read = Some(at + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(read: &str) -> Option<SpanPlan> {
        let mut sampler = Sampler::new(1);
        // Past its beginning, where it picks every one.
        assert!((0..1_000_000).filter(|_| sampler.pick()).count() < 2000);
        SpanPlan::new(read.bytes().map(|byte| byte == b'r'), &mut sampler)
    }

    #[test]
    fn runs_are_read_and_short_gaps_with_them() {
        assert_eq!(plan("rrrr"), None);
        assert_eq!(plan("rr....rr"), None);
        let runs = |text| plan(text).unwrap().reads().collect::<Vec<_>>();
        assert_eq!(runs("......"), []);
        assert_eq!(runs("r......rr.r..."), [0..1, 7..11]);
        assert_eq!(runs("..r.....r"), [2..3, 8..9]);
        let plan = plan("r......rr").unwrap();
        assert_eq!(plan.runs().collect::<Vec<_>>(), [0..1, 1..7, 7..9]);
        let taken = |index, block| plan.takes(index, block);
        assert!(
            !taken(0, 0) && taken(0, 1) && !taken(0, 7) && !taken(0, 9) && !taken(1, 1) && taken(1, 2049)
        );
    }

    #[test]
    fn a_sampled_page_is_read_though_the_span_takes_others() {
        let plan = SpanPlan::new([false; 40].into_iter(), &mut Sampler::new(3)).unwrap();
        assert!(plan.pages()[..32].iter().all(|page| *page == PageWay::Sample));
        assert!(plan.reads().next().is_some_and(|run| run.start == 0 && run.end >= 32));
    }
}
