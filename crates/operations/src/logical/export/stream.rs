//! The archive, written from its beginning to its end.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Seek as _, SeekFrom, Write};

use repository::logical::{self, OtherRecord, TableRecord};
use tokio::runtime::Handle;

use super::archive::{Archive, Numbers, Place};
use super::blocks::{self, Block, RowsBlock};
use super::{ExportPlan, ExportReport};
use crate::failpoint;
use crate::logical::LogicalError;
use crate::logical::reader::FileReader;
use crate::logical::restore::find;
use crate::logical::rows::{RowSum, Tally, compare, row_key};
use crate::monitor::{Event, Monitor};

/// An archive whose every byte has its place.
pub(super) struct Stream<'p> {
    plan: &'p ExportPlan,
    archive: Archive,
    /// The stored archive, and where the data of its entries stands in it.
    definitions: File,
    stored: HashMap<i64, Block>,
    /// Tables by the entries that have their rows.
    rows: HashMap<i64, &'p TableRecord>,
}

impl<'p> Stream<'p> {
    /// Reads the stored archive and lays out the new one.
    pub(super) fn begin(
        plan: &'p ExportPlan,
        mut definitions: File,
        others: &[OtherRecord],
        report: &mut ExportReport,
    ) -> Result<Self, LogicalError> {
        definitions.seek(SeekFrom::Start(0)).map_err(staged_error)?;
        let mut numbers = Numbers::new(BufReader::new(&definitions), 0);
        let mut archive = Archive::read(&mut numbers)?;
        let stored = blocks::find(&archive, numbers)?;
        let (tables, schemas) = (&plan.tables, &plan.request.schemas);
        if !schemas.is_empty() {
            archive.keep_schemas(schemas);
        }
        if !plan.request.tables.is_empty() {
            report.warnings.extend(archive.keep_tables(tables));
        }
        let is_whole = schemas.is_empty() && plan.request.tables.is_empty();
        let ids = archive.add_content(tables, others, &plan.database.encoding, is_whole);
        let rows = ids.into_iter().zip(tables).collect();
        let mut stream = Self { plan, archive, definitions, stored, rows };
        stream.lay_out();
        Ok(stream)
    }

    /// Gives each block its place, in the order of the entries: a program that cannot seek finds them as it goes.
    fn lay_out(&mut self) {
        // A place has the same length whatever it says.
        let mut at = self.archive.to_bytes().len() as u64;
        for entry in self.archive.entries.iter_mut().filter(|entry| entry.has_data) {
            entry.place = Place::At(at);
            at += match self.rows.get(&entry.id) {
                Some(table) => blocks::length_of(table.bytes),
                None => self.stored[&entry.id].length,
            };
        }
    }

    /// Writes it all.
    pub(super) fn write(
        mut self,
        out: &mut dyn Write,
        monitor: &dyn Monitor,
        report: &mut ExportReport,
    ) -> Result<(), LogicalError> {
        out.write_all(&self.archive.to_bytes()).map_err(taken_error)?;
        let mut reader = FileReader::new(&self.plan.repository);
        let with_data: Vec<i64> =
            self.archive.entries.iter().filter(|entry| entry.has_data).map(|entry| entry.id).collect();
        for id in with_data {
            let Some(table) = self.rows.get(&id).copied() else {
                blocks::copy(&mut self.definitions, self.stored[&id], out).map_err(taken_error)?;
                continue;
            };
            let sum = self.table(id, table, &mut reader, out, monitor)?;
            compare(table, &sum)?;
            report.tables += 1;
            report.rows += sum.rows;
            failpoint::reach("export.table");
        }
        out.flush().map_err(taken_error)
    }

    fn table(
        &self,
        id: i64,
        table: &TableRecord,
        reader: &mut FileReader,
        out: &mut dyn Write,
        monitor: &dyn Monitor,
    ) -> Result<RowSum, LogicalError> {
        let (plan, handle) = (self.plan, Handle::current());
        let mut block = RowsBlock::begin(out, id).map_err(taken_error)?;
        let mut whole = RowSum::default();
        for file in 0..table.files {
            let path = logical::rows(&plan.database.name, &table.schema, &table.name, file);
            let entry = handle.block_on(find(&plan.repository, &plan.manifest, &path))?;
            let mut tally = Tally::new(row_key(&plan.manifest)?);
            handle.block_on(reader.read(&entry, |bytes| {
                tally.add(bytes);
                monitor.event(Event::Advanced { bytes: bytes.len() as u64 });
                block.add(bytes).map_err(taken_error)
            }))?;
            whole.join(&tally.finish(&path)?);
        }
        block.finish().map_err(taken_error)?;
        Ok(whole)
    }
}

fn staged_error(source: io::Error) -> LogicalError {
    LogicalError::Pipe { action: "read the definitions from a temporary file", source }
}

fn taken_error(source: io::Error) -> LogicalError {
    LogicalError::Pipe { action: "write the archive", source }
}
