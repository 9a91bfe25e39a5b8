//! Where a stream of rows is cut, and what the rows sum up to.

use repository::chunk::row_digest;
use repository::logical::TableRecord;
use repository::manifest::Manifest;

use super::error::LogicalError;

/// Bytes of a piece on average: what one changed row costs, against the room for naming every piece.
const AVERAGE: u64 = 16 << 10;
/// No piece ends before so many bytes: half a page, which it fills anyway.
const MIN_PIECE: usize = 4 << 10;
/// No piece is longer; a longer row is cut inside.
pub(crate) const MAX_PIECE: usize = 256 << 10;

/// The sum of rows, whatever their order, and the decision after which row a piece ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RowSum {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    sum: u128,
}

impl RowSum {
    /// Adds a row of `length` bytes with this digest.
    pub(crate) fn add(&mut self, digest: &[u8; 32], length: usize) {
        self.rows += 1;
        self.bytes += length as u64;
        self.sum = self.sum.wrapping_add(u128::from_le_bytes(*digest.first_chunk().expect("32 bytes")));
    }

    /// Adds other rows.
    pub(crate) fn join(&mut self, other: &Self) {
        self.rows += other.rows;
        self.bytes += other.bytes;
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// The sum as text.
    pub(crate) fn digest(&self) -> String {
        format!("{:032x}", self.sum)
    }
}

/// Whether a piece of `length` bytes ends after the row with this digest, whose length is `row`: a row's content decides alone,
/// so that what was inserted elsewhere moves no border, and long rows are likelier to end a piece than short ones.
pub(crate) fn ends_piece(digest: &[u8; 32], row: usize, length: usize) -> bool {
    let chance = ((row as u64) << 32) / AVERAGE;
    let drawn = u64::from(u32::from_le_bytes(*digest.last_chunk().expect("32 bytes")));
    length >= MIN_PIECE && drawn < chance
}

/// The condition of an extension's table, which the catalogue has with its `WHERE`, without it.
pub(crate) fn bare_condition(condition: &str) -> &str {
    let condition = condition.trim();
    match condition.get(..5) {
        Some(word) if word.eq_ignore_ascii_case("where") => condition[5..].trim_start(),
        _ => condition,
    }
}

/// The rows in what came, each with the newline that ends it; the last may have none.
pub(crate) fn rows(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let end = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
        let (row, rest) = bytes.split_at(end);
        bytes = rest;
        (!row.is_empty()).then_some(row)
    })
}

/// Visits each of these rows.
pub(crate) fn each_row<E>(bytes: &[u8], visit: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    rows(bytes).try_for_each(visit)
}

/// The sum of rows that come in pieces, which may end within a row.
pub(crate) struct Tally {
    key: [u8; 32],
    sum: RowSum,
    rest: Vec<u8>,
}

impl Tally {
    /// Of no rows yet, digested by the key with which they were stored.
    pub(crate) fn new(key: [u8; 32]) -> Self {
        Self { key, sum: RowSum::default(), rest: Vec::new() }
    }

    /// Adds what came.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for row in rows(bytes) {
            if row.ends_with(b"\n") && self.rest.is_empty() {
                self.sum.add(&row_digest(&self.key, row), row.len());
                continue;
            }
            self.rest.extend_from_slice(row);
            if self.rest.ends_with(b"\n") {
                self.sum.add(&row_digest(&self.key, &self.rest), self.rest.len());
                self.rest.clear();
            }
        }
    }

    /// The sum of all rows; nothing of one may be left.
    pub(crate) fn finish(self, path: &str) -> Result<RowSum, LogicalError> {
        if self.rest.is_empty() {
            return Ok(self.sum);
        }
        Err(LogicalError::NotWhole { what: format!("the last row of {path} is cut") })
    }
}

/// The key of the digests by which rows are compared: that of the repository in which the backup was made.
pub(crate) fn row_key(manifest: &Manifest) -> Result<[u8; 32], LogicalError> {
    let key = manifest.logical.as_ref().map(|record| &record.row_key[..]).unwrap_or_default();
    key.try_into()
        .map_err(|_| LogicalError::NotWhole { what: "it has no key of its rows' digests".to_owned() })
}

/// Compares what came with what was stored.
pub(crate) fn compare(table: &TableRecord, sum: &RowSum) -> Result<(), LogicalError> {
    if (sum.rows, sum.bytes, sum.digest()) == (table.rows, table.bytes, table.digest.clone()) {
        return Ok(());
    }
    let what = format!(
        "{}.{} has {} rows with the digest {}, and was stored with {} and {}",
        table.schema,
        table.name,
        sum.rows,
        sum.digest(),
        table.rows,
        table.digest
    );
    Err(LogicalError::NotWhole { what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_about_the_wanted_length_whatever_the_rows_length() {
        for row in [20usize, 200, 5_000, 100_000] {
            let (mut pieces, mut length, mut total) = (0u64, 0, 0u64);
            for number in 0..(40 << 20) / row as u64 {
                let digest = *blake3::hash(&number.to_le_bytes()).as_bytes();
                length += row;
                if ends_piece(&digest, row, length) {
                    (pieces, total, length) = (pieces + 1, total + length as u64, 0);
                }
            }
            let average = total / pieces;
            assert!((12 << 10..=40 << 10).contains(&average) || average as usize == row, "{row}: {average}");
        }
    }

    #[test]
    fn a_sum_does_not_depend_on_the_order_and_tells_a_row_apart() {
        let digest = |text: &str| *blake3::hash(text.as_bytes()).as_bytes();
        let sum = |rows: &[&str]| {
            let mut sum = RowSum::default();
            rows.iter().for_each(|row| sum.add(&digest(row), row.len()));
            sum
        };
        let mut joined = sum(&["a"]);
        joined.join(&sum(&["c", "b"]));
        assert_eq!(joined, sum(&["a", "b", "c"]));
        assert_ne!(sum(&["a", "a"]).digest(), sum(&["a", "b"]).digest());
    }
}
