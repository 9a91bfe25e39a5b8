//! What of a piece was there before: runs of rows that stand in earlier bytes, and the rows between them.

use std::collections::HashMap;
use std::ops::Range;

use super::rows::rows;

/// A run that is shorter is stored anew beside rows that are: naming it would take about as much.
const SHORT: usize = 256;

/// Rows of a piece that follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Where in the piece.
    pub(crate) bytes: Range<usize>,
    /// Where in the bytes before, if they are there.
    pub(crate) before: Option<usize>,
}

impl Run {
    /// Where it ends in the bytes before.
    pub(crate) fn before_end(&self) -> Option<usize> {
        self.before.map(|from| from + self.bytes.len())
    }
}

/// The runs of a piece, in order; together they are all of it. Rows are found wherever they stand in `before`.
pub(crate) fn runs(piece: &[u8], before: &[u8]) -> Vec<Run> {
    let (mut places, mut at) = (HashMap::new(), 0);
    for row in rows(before) {
        places.entry(row).or_insert(at);
        at += row.len();
    }
    let (mut runs, mut at, mut next) = (Vec::new(), 0, None);
    for row in rows(piece) {
        // Of rows that are the same, the one that follows.
        let follows = next.filter(|next| before[*next..].starts_with(row));
        let found = follows.or_else(|| places.get(row).copied());
        push(&mut runs, Run { bytes: at..at + row.len(), before: found });
        at += row.len();
        next = found.map(|found| found + row.len());
    }
    without_short(runs)
}

/// Appends a run, or lets the last one go on with it.
fn push(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.before_end() == run.before => {
            last.bytes.end = run.bytes.end;
        }
        _ => runs.push(run),
    }
}

/// Takes short runs that were there before for new beside new ones. Between two that were there they are named: it saves the bytes.
fn without_short(runs: Vec<Run>) -> Vec<Run> {
    let is_new = |at: Option<usize>| at.and_then(|at| runs.get(at)).is_some_and(|run| run.before.is_none());
    let mut kept = Vec::with_capacity(runs.len());
    for (at, run) in runs.iter().enumerate() {
        let is_short = run.bytes.len() < SHORT && (is_new(at.checked_sub(1)) || is_new(Some(at + 1)));
        let before = run.before.filter(|_| !is_short);
        push(&mut kept, Run { bytes: run.bytes.clone(), before });
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(rows: &[usize]) -> Vec<u8> {
        rows.iter().flat_map(|row| format!("{row}\n").repeat(40 + row % 3).into_bytes()).collect()
    }

    #[test]
    fn rows_between_changed_ones_are_found() {
        let row = |number: usize| format!("{number} {}\n", "x".repeat(300)).into_bytes();
        let before: Vec<u8> = (0..40).flat_map(row).collect();
        let piece: Vec<u8> = (0..40).map(|at| if at == 20 { 1000 } else { at }).flat_map(row).collect();
        let found = runs(&piece, &before);
        let lengths: Vec<_> = found.iter().map(|run| (run.bytes.len(), run.before.is_some())).collect();
        let one = row(20).len();
        assert_eq!(lengths[1], (one + 2, false));
        assert_eq!((found.len(), found[2].before), (3, Some(found[0].bytes.len() + one)));
    }

    proptest! {
        #[test]
        fn runs_are_all_of_the_piece_and_stand_where_they_say(
            piece in prop::collection::vec(0usize..9, 0..40), before in prop::collection::vec(0usize..9, 0..40),
            cut in 0usize..50,
        ) {
            let (mut piece, before) = (text(&piece), text(&before));
            piece.truncate(piece.len().saturating_sub(cut));
            let mut at = 0;
            for run in runs(&piece, &before) {
                prop_assert_eq!(run.bytes.start, at);
                at = run.bytes.end;
                if let Some(from) = run.before {
                    prop_assert_eq!(&piece[run.bytes.clone()], &before[from..from + run.bytes.len()]);
                }
            }
            prop_assert_eq!(at, piece.len());
        }
    }
}
