//! The queries.

use super::{Contents, DatabaseFacts, Named, Sequence, Table, Uncovered, Why, qualified};
use crate::connection::{Connection, Row, ServerError};

/// Sequences asked for by one statement.
const SEQUENCES_AT_ONCE: usize = 500;
/// PostgreSQL 14: a condition on `ctid` reads only its pages.
const TID_RANGES: u32 = 140_000;

/// All relations that could have content. Of one that was dropped since the snapshot, the functions say null: the lock will tell. An extension's table counts with what its `extconfig` says of it.
const RELATIONS: &str = "
SELECT c.oid, n.nspname, c.relname, c.relkind,
  coalesce(CASE WHEN c.relkind IN ('r', 'S')
       THEN pg_catalog.has_table_privilege(c.oid, 'SELECT') OR (c.relkind = 'r' AND NOT EXISTS (
         SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         AND NOT pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT')))
       ELSE true END
    AND pg_catalog.has_schema_privilege(n.oid, 'USAGE'), true),
  pg_catalog.row_security_active(c.oid),
  c.relpersistence = 'u',
  coalesce(am.amname = 'heap', false),
  coalesce(CASE WHEN c.relkind = 'r' THEN pg_catalog.pg_relation_size(c.oid) END, 0),
  coalesce(CASE WHEN c.relkind = 'r' THEN pg_catalog.pg_table_size(c.oid) END, 0),
  coalesce(config.condition, ''),
  c.relispopulated,
  d.objid IS NOT NULL
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_am am ON am.oid = c.relam
LEFT JOIN pg_catalog.pg_depend d
  ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0 AND d.deptype = 'e'
LEFT JOIN LATERAL (
  SELECT e.extcondition[at] AS condition
  FROM pg_catalog.pg_extension e, pg_catalog.generate_subscripts(e.extconfig, 1) at
  WHERE e.oid = d.refobjid AND e.extconfig[at] = c.oid) config ON true
WHERE c.relkind IN ('r', 'S', 'm', 'f') AND c.relpersistence <> 't'
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND (d.objid IS NULL OR config.condition IS NOT NULL)
ORDER BY n.nspname COLLATE \"C\", c.relname COLLATE \"C\"";

/// The columns of every table, one row for each, in order.
const COLUMNS: &str = "
SELECT a.attrelid, a.attname
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
WHERE c.relkind = 'r' AND c.oid >= 16384 AND c.relpersistence <> 't'
  AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
ORDER BY a.attrelid, a.attnum";

pub(super) fn contents(connection: &Connection) -> Result<Contents, ServerError> {
    let mut contents = Contents::default();
    let is_standby =
        connection.query_one("SELECT pg_catalog.pg_is_in_recovery()", &[])?.first()?.boolean(0)?;
    let has_ranges = connection.server_version_num() >= TID_RANGES;
    let mut sequences = Vec::new();
    for row in connection.query(RELATIONS, &[])?.iter() {
        let relation = Named { schema: row.required(1)?.to_owned(), name: row.required(2)?.to_owned() };
        let (kind, unlogged) = (row.required(3)?, row.boolean(6)?);
        let why = if kind == "f" {
            Some(Why::Foreign)
        } else if !row.boolean(4)? {
            Some(Why::NoRight)
        } else if kind == "r" && row.boolean(5)? {
            Some(Why::RowSecurity)
        } else if kind == "r" && unlogged && is_standby {
            Some(Why::UnloggedOnStandby)
        } else {
            None
        };
        match (why, kind) {
            (Some(why), _) => contents.uncovered.push(Uncovered { relation, why }),
            (None, "S") => sequences.push(relation),
            (None, "m") if row.boolean(11)? => contents.views.push(relation),
            (None, "r") => contents.tables.push(table(relation, &row, has_ranges)?),
            _ => {}
        }
    }
    add_columns(connection, &mut contents.tables)?;
    contents.sequences = read_sequences(connection, sequences)?;
    let objects = connection.query_one("SELECT count(*) FROM pg_catalog.pg_largeobject_metadata", &[])?;
    contents.large_objects = objects.first()?.parse(0)?;
    Ok(contents)
}

fn table(relation: Named, row: &Row<'_>, has_ranges: bool) -> Result<Table, ServerError> {
    Ok(Table {
        oid: row.parse(0)?,
        schema: relation.schema,
        name: relation.name,
        columns: Vec::new(),
        condition: row.required(10)?.to_owned(),
        // Blocks of another size than 8 KiB are counted as if they were: ranges are then of another length.
        pages: row.parse::<u64>(8)?.div_ceil(8192),
        bytes: row.parse(9)?,
        has_ranges: has_ranges && row.boolean(7)?,
        unlogged: row.boolean(6)?,
        of_extension: row.boolean(12)?,
    })
}

fn add_columns(connection: &Connection, tables: &mut [Table]) -> Result<(), ServerError> {
    let mut by_oid: Vec<usize> = (0..tables.len()).collect();
    by_oid.sort_by_key(|at| tables[*at].oid);
    let rows = connection.query(COLUMNS, &[])?;
    let mut next = by_oid.into_iter().peekable();
    for row in rows.iter() {
        let oid: u32 = row.parse(0)?;
        while next.next_if(|at| tables[*at].oid < oid).is_some() {}
        if let Some(at) = next.peek().filter(|at| tables[**at].oid == oid) {
            tables[*at].columns.push(row.required(1)?.to_owned());
        }
    }
    Ok(())
}

fn read_sequences(connection: &Connection, names: Vec<Named>) -> Result<Vec<Sequence>, ServerError> {
    let mut sequences = Vec::with_capacity(names.len());
    for batch in names.chunks(SEQUENCES_AT_ONCE) {
        let one = |(at, named): (usize, &Named)| {
            format!("SELECT {at} AS at, last_value, is_called FROM {}", qualified(&named.schema, &named.name))
        };
        let all: Vec<String> = batch.iter().enumerate().map(one).collect();
        let rows = connection.query(&format!("{} ORDER BY at", all.join(" UNION ALL ")), &[])?;
        for (row, named) in rows.iter().zip(batch) {
            sequences.push(Sequence {
                schema: named.schema.clone(),
                name: named.name.clone(),
                last_value: row.parse(1)?,
                is_called: row.boolean(2)?,
            });
        }
    }
    Ok(sequences)
}

pub(super) fn database(connection: &Connection) -> Result<DatabaseFacts, ServerError> {
    // Where the default collation comes from, by major: before 15 from libc alone.
    let (provider, locale) = match connection.server_version_num() {
        ..150_000 => ("'c'", "''"),
        150_000..170_000 => ("datlocprovider::text", "coalesce(daticulocale, '')"),
        _ => ("datlocprovider::text", "coalesce(datlocale, '')"),
    };
    let rows = connection.query_one(
        &format!(
            "SELECT datname, pg_catalog.pg_get_userbyid(datdba), pg_catalog.pg_encoding_to_char(encoding), \
             datcollate, datctype, {provider}, {locale} \
             FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()"
        ),
        &[],
    )?;
    let row = rows.first()?;
    let text = |column| row.required(column).map(str::to_owned);
    Ok(DatabaseFacts {
        name: text(0)?,
        owner: text(1)?,
        encoding: text(2)?,
        collate: text(3)?,
        ctype: text(4)?,
        provider: text(5)?,
        locale: text(6)?,
    })
}
