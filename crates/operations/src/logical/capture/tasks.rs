//! The work of one database, in the order in which it is given out.

use std::collections::VecDeque;
use std::sync::Mutex;

use server::tables::Table;

/// Pages of a range: 64 MiB. Always the same, so that a range is compared with the same one of the backup before.
const RANGE_PAGES: u64 = 8192;
/// Tables from this size on go first, the largest foremost, so that no thread is left with one at the end.
const LARGE: u64 = 8 << 20;

/// A range of one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Task {
    /// Which table.
    pub(super) table: usize,
    /// Which of its ranges, which is the number of its file.
    pub(super) range: u32,
    /// The first page, if not the table's.
    pub(super) from_page: Option<u64>,
    /// The page after the last, if not the table's.
    pub(super) to_page: Option<u64>,
}

/// What is left to do.
pub(super) struct Tasks(Mutex<VecDeque<Task>>);

impl Tasks {
    /// All ranges of all tables.
    pub(super) fn of(tables: &[Table]) -> Self {
        let mut order: Vec<usize> = (0..tables.len()).collect();
        // The small ones stay in the order of their names, in which earlier backups list them.
        order.sort_by_key(|at| std::cmp::Reverse(tables[*at].bytes.max(LARGE)));
        Self(Mutex::new(order.into_iter().flat_map(|table| ranges(table, &tables[table])).collect()))
    }

    /// The next one.
    pub(super) fn next(&self) -> Option<Task> {
        self.0.lock().expect("no holder panics").pop_front()
    }
}

/// The ranges of a table. The last has no end: rows on pages that came later are of no earlier moment.
fn ranges(table: usize, facts: &Table) -> impl Iterator<Item = Task> + use<> {
    let count = if facts.has_ranges { facts.pages.div_ceil(RANGE_PAGES).max(1) } else { 1 };
    (0..count).map(move |range| Task {
        table,
        range: range as u32,
        from_page: (range > 0).then_some(range * RANGE_PAGES),
        to_page: (range + 1 < count).then_some((range + 1) * RANGE_PAGES),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(pages: u64, has_ranges: bool) -> Table {
        Table {
            oid: 1,
            schema: "s".into(),
            name: "t".into(),
            columns: Vec::new(),
            condition: String::new(),
            pages,
            bytes: pages * 8192,
            has_ranges,
            unlogged: false,
            of_extension: false,
        }
    }

    #[test]
    fn ranges_cover_every_page_once_and_the_last_has_no_end() {
        let of = |pages, has_ranges| {
            ranges(0, &table(pages, has_ranges))
                .map(|task| (task.from_page, task.to_page))
                .collect::<Vec<_>>()
        };
        assert_eq!(of(0, true), [(None, None)]);
        assert_eq!(of(8192, true), [(None, None)]);
        assert_eq!(of(8193, true), [(None, Some(8192)), (Some(8192), None)]);
        assert_eq!(of(1 << 20, false), [(None, None)]);
    }

    #[test]
    fn large_tables_go_first_and_small_ones_in_their_order() {
        let tables = [table(1, true), table(3, true), table(9000, true), table(2, true), table(20_000, true)];
        let tasks = Tasks::of(&tables);
        let order: Vec<usize> = std::iter::from_fn(|| tasks.next()).map(|task| task.table).collect();
        assert_eq!(order, [4, 4, 4, 2, 2, 0, 1, 3]);
    }
}
