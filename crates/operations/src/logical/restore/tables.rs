//! Single tables: into their own names, where they are not, or one into another name.

use repository::logical::TableRecord;
use server::connection::Connection;
use server::tables::{literal, qualified};

use super::definitions::Section;
use super::{How, RestoreReport, Restoring, rows};
use crate::logical::LogicalError;
use crate::monitor::Event;

/// A definition out of a script: its headline, and its SQL.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block<'s> {
    pub(super) name: &'s str,
    pub(super) kind: &'s str,
    schema: &'s str,
    pub(super) sql: &'s str,
}

impl Restoring<'_> {
    /// Restores the chosen tables in one transaction.
    pub(super) fn tables(&self) -> Result<RestoreReport, LogicalError> {
        let connection = Connection::connect(&self.plan.request.target)?;
        connection.remove_timeouts()?;
        let mut report = RestoreReport { database: connection.database(), ..RestoreReport::default() };
        connection.run_script("BEGIN")?;
        let outcome = self.tables_within(&connection, &mut report);
        match outcome {
            Ok(()) => connection.run_script("COMMIT")?,
            Err(error) => {
                // The transaction goes with the session anyway.
                let _ = connection.run_script("ROLLBACK");
                return Err(error);
            }
        }
        Ok(report)
    }

    fn tables_within(&self, connection: &Connection, report: &mut RestoreReport) -> Result<(), LogicalError> {
        let request = &self.plan.request;
        let before = self.definitions.text(Section::PreData)?;
        let after = self.definitions.text(Section::PostData)?;
        let (before, after) = (blocks(&before), blocks(&after));
        for table in &self.plan.tables {
            let own = qualified(&table.schema, &table.name);
            let into =
                request.rename.as_ref().map_or_else(|| own.clone(), |name| renamed(name, &table.schema));
            let is_there = exists(connection, &into)?;
            if request.rows_only {
                if !is_there {
                    return Err(LogicalError::Choice { what: format!("{into} is not in the target") });
                }
                if request.how == How::Clean {
                    self.run_script(connection, &format!("TRUNCATE TABLE ONLY {into}"), "empty the table")?;
                }
            } else if is_there {
                if request.how != How::Clean || request.rename.is_some() {
                    return Err(LogicalError::Choice { what: format!("{into} is in the target already") });
                }
                self.run_script(connection, &format!("DROP TABLE {into}"), "drop the table")?;
            }
            if !request.rows_only {
                self.make(connection, table, &own, &into, &before)?;
            }
            if !request.definitions_only {
                self.monitor.event(Event::Phase("copy rows"));
                rows::copy_table(self.plan, table, &into, connection, self.monitor, report)?;
            }
            if !request.rows_only && request.rename.is_none() {
                if !request.definitions_only {
                    self.set_sequences(connection, &|schema, name| {
                        schema == table.schema && self.is_owned(&before, &headed(name), table)
                    })?;
                }
                self.complete(connection, table, &after, report)?;
                self.attach(connection, table, &before, report)?;
            }
        }
        Ok(())
    }

    /// Makes the table and what its columns need.
    fn make(
        &self,
        connection: &Connection,
        table: &TableRecord,
        own: &str,
        into: &str,
        before: &[Block<'_>],
    ) -> Result<(), LogicalError> {
        let (schema, name) = (headed(&table.schema), headed(&table.name));
        let is_its = |block: &&Block<'_>| {
            block.schema == schema && block.name == name && has_name(block.sql, table, "TABLE ", "")
        };
        let made = before.iter().filter(is_its).find(|block| block.kind == "TABLE");
        let made =
            made.ok_or_else(|| LogicalError::NotWhole { what: format!("it has no definition of {own}") })?;
        let statement =
            if own == into { made.sql.to_owned() } else { first_statement(made.sql, table, into)? };
        self.run_script(connection, &statement, "make the table")?;
        if own != into {
            return Ok(());
        }
        let prefix = format!("{name} ");
        for block in before.iter().filter(|block| block.schema == schema) {
            let mine = match block.kind {
                "DEFAULT" => block.name.starts_with(&prefix) && has_name(block.sql, table, " ", " ALTER"),
                "COMMENT" | "ACL" => is_about(block.name, &name),
                "SEQUENCE" => self.is_owned(before, block.name, table),
                "SEQUENCE OWNED BY" => self.is_owned(before, block.name, table),
                _ => false,
            };
            let is_sequence = block.kind == "SEQUENCE";
            if mine && !(is_sequence && exists(connection, &qualified(block.schema, block.name))?) {
                self.run_script(connection, block.sql, "make what belongs to the table")?;
            }
        }
        Ok(())
    }

    /// Whether a sequence belongs to a column of the table: to a serial one, or as that of an identity.
    fn is_owned(&self, before: &[Block<'_>], sequence: &str, table: &TableRecord) -> bool {
        let mut its =
            before.iter().filter(|block| block.name == sequence && block.schema == headed(&table.schema));
        its.any(|block| match block.kind {
            "SEQUENCE OWNED BY" => has_name(block.sql, table, " OWNED BY ", "."),
            "SEQUENCE" => has_name(block.sql, table, "ALTER TABLE ", " ALTER COLUMN "),
            _ => false,
        })
    }

    /// Makes the table a partition again, if it was one and the whole table is there.
    fn attach(
        &self,
        connection: &Connection,
        table: &TableRecord,
        before: &[Block<'_>],
        report: &mut RestoreReport,
    ) -> Result<(), LogicalError> {
        let is_its = |block: &&Block<'_>| {
            block.kind == "TABLE ATTACH" && has_name(block.sql, table, " ATTACH PARTITION ", " ")
        };
        match before.iter().find(is_its) {
            Some(block) => self.try_block(connection, block, "partition", report),
            None => Ok(()),
        }
    }

    /// What depends on more than the table, and is told if it does not hold any more.
    fn try_block(
        &self,
        connection: &Connection,
        block: &Block<'_>,
        what: &str,
        report: &mut RestoreReport,
    ) -> Result<(), LogicalError> {
        connection.run_script("SAVEPOINT pgkeep")?;
        if let Err(error) = connection.run_script(block.sql) {
            connection.run_script("ROLLBACK TO SAVEPOINT pgkeep")?;
            report.warnings.push(format!("{what} {} was not made: {error}", block.name));
        }
        Ok(())
    }

    /// Makes the table's indexes, constraints and triggers. A foreign key that does not hold any more is told, not insisted on.
    fn complete(
        &self,
        connection: &Connection,
        table: &TableRecord,
        after: &[Block<'_>],
        report: &mut RestoreReport,
    ) -> Result<(), LogicalError> {
        self.monitor.event(Event::Phase("make indexes and constraints"));
        let name = headed(&table.name);
        let prefix = format!("{name} ");
        for block in after.iter().filter(|block| block.schema == headed(&table.schema)) {
            let is_named = block.name.starts_with(&prefix) || block.name == name;
            let mine = match block.kind {
                "INDEX" => {
                    has_name(block.sql, table, " ON ", " ") || has_name(block.sql, table, " ON ONLY ", " ")
                }
                "CONSTRAINT" | "FK CONSTRAINT" | "TRIGGER" | "RULE" | "POLICY" | "ROW SECURITY" => {
                    is_named && has_name(block.sql, table, " ", "")
                }
                _ => false,
            };
            if !mine {
                continue;
            }
            if block.kind != "FK CONSTRAINT" {
                self.run_script(connection, block.sql, "make what belongs to the table")?;
                continue;
            }
            self.try_block(connection, block, "foreign key", report)?;
        }
        Ok(())
    }
}

fn renamed(name: &str, schema: &str) -> String {
    match name.split_once('.') {
        Some((schema, table)) => qualified(schema, table),
        None => qualified(schema, name),
    }
}

fn exists(connection: &Connection, name: &str) -> Result<bool, LogicalError> {
    let sql = format!("SELECT pg_catalog.to_regclass({}) IS NOT NULL", literal(name));
    Ok(connection.query_one(&sql, &[])?.first()?.boolean(0)?)
}

/// A name as a headline has it: on one line. Source: `sanitize_line`, `dumputils.c`.
pub(super) fn headed(name: &str) -> String {
    name.replace(['\n', '\r'], " ")
}

/// `TABLE name` or `COLUMN name.column`, as comments and rights are headed.
fn is_about(headline: &str, table: &str) -> bool {
    let column = headline.strip_prefix("COLUMN ").and_then(|rest| rest.strip_prefix(table));
    headline.strip_prefix("TABLE ") == Some(table) || column.is_some_and(|rest| rest.starts_with('.'))
}

/// A name in every way in which pg_dump may write it: each part is quoted where it must be.
fn spellings(schema: &str, name: &str) -> [String; 4] {
    let quote = server::tables::quoted;
    [
        format!("{schema}.{name}"),
        format!("{schema}.{}", quote(name)),
        format!("{}.{name}", quote(schema)),
        qualified(schema, name),
    ]
}

/// Whether the SQL has the table's name with this before and that behind it.
fn has_name(sql: &str, table: &TableRecord, before: &str, behind: &str) -> bool {
    spellings(&table.schema, &table.name).iter().any(|name| sql.contains(&format!("{before}{name}{behind}")))
}

/// The statement that makes the table, with the new name in it.
fn first_statement(sql: &str, table: &TableRecord, into: &str) -> Result<String, LogicalError> {
    let own = spellings(&table.schema, &table.name);
    let begins = ["CREATE TABLE ", "CREATE UNLOGGED TABLE "];
    for (begin, own) in begins.iter().flat_map(|begin| own.iter().map(move |own| (begin, own))) {
        let headed = sql.find(&format!("{begin}{own} (")).map(|at| &sql[at + begin.len() + own.len()..]);
        if let Some(rest) = headed {
            let end = statement_end(rest);
            return Ok(format!("{begin}{into}{}", &rest[..end]));
        }
    }
    Err(LogicalError::Choice { what: format!("{} cannot be given another name", own[0]) })
}

/// Where the first semicolon stands that is in no quotes.
fn statement_end(sql: &str) -> usize {
    let mut quote = None;
    for (at, byte) in sql.bytes().enumerate() {
        match (quote, byte) {
            (None, b';') => return at,
            (None, b'\'' | b'"') => quote = Some(byte),
            (Some(open), byte) if byte == open => quote = None,
            _ => {}
        }
    }
    sql.len()
}

/// The definitions of a script.
pub(super) fn blocks(script: &str) -> Vec<Block<'_>> {
    script.split("\n--\n-- Name: ").skip(1).filter_map(block).collect()
}

fn block(text: &str) -> Option<Block<'_>> {
    let (headline, sql) = text.split_once('\n')?;
    let (name, rest) = headline.rsplit_once("; Type: ")?;
    let (kind, rest) = rest.split_once("; Schema: ")?;
    let (schema, _) = rest.split_once("; Owner: ")?;
    Some(Block { name, kind, schema, sql: sql.strip_prefix("--\n").unwrap_or(sql) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_taken_apart_by_its_headlines() {
        let script = "SET x;\n\n--\n-- Name: t; Type: TABLE; Schema: public; Owner: me\n--\n\nCREATE TABLE public.t (\n    a text DEFAULT 'x;y'\n);\n\n\nALTER TABLE public.t OWNER TO me;\n\n--\n-- Name: t t_pkey; Type: CONSTRAINT; Schema: public; Owner: me\n--\n\nALTER TABLE ONLY public.t ADD;\n";
        let found = blocks(script);
        let heads: Vec<_> = found.iter().map(|block| (block.name, block.kind, block.schema)).collect();
        assert_eq!(heads, [("t", "TABLE", "public"), ("t t_pkey", "CONSTRAINT", "public")]);
        let table = TableRecord {
            oid: 1,
            schema: "public".into(),
            name: "t".into(),
            columns: Vec::new(),
            condition: String::new(),
            of_extension: false,
            rows: 0,
            bytes: 0,
            files: 0,
            digest: String::new(),
        };
        let made = first_statement(found[0].sql, &table, "\"s\".\"u\"").unwrap();
        assert_eq!(made, "CREATE TABLE \"s\".\"u\" (\n    a text DEFAULT 'x;y'\n)");
    }
}
