//! What is in the archive that is made: the entries of the stored one that are wanted, and those for rows, sequences and views.

use std::collections::{HashMap, HashSet};

use repository::logical::{OtherRecord, TableRecord};
use server::tables::{literal, qualified, quoted};

use super::archive::{Archive, Entry, Place, SECTION_DATA, SECTION_POST_DATA, Text};

/// What tells how the others are to be read.
const ALWAYS: [&str; 3] = ["ENCODING", "STDSTRINGS", "SEARCHPATH"];
/// What goes with the thing that it is about, whatever its schema.
const ABOUT: [&str; 4] = ["ACL", "COMMENT", "SECURITY LABEL", "STATISTICS DATA"];
/// What belongs to a table that it needs.
const BELONGS: [&str; 18] = [
    "ACL",
    "CHECK CONSTRAINT",
    "COMMENT",
    "CONSTRAINT",
    "DEFAULT",
    "FK CONSTRAINT",
    "INDEX",
    "INDEX ATTACH",
    "POLICY",
    "ROW SECURITY",
    "RULE",
    "SECURITY LABEL",
    "SEQUENCE",
    "SEQUENCE OWNED BY",
    "STATISTICS",
    "STATISTICS DATA",
    "TABLE ATTACH",
    "TRIGGER",
];
/// What has to be there for what needs it, and is there only if it is exported too.
const RELATIONS: [&str; 7] =
    ["TABLE", "FOREIGN TABLE", "VIEW", "MATERIALIZED VIEW", "SEQUENCE", "CONSTRAINT", "INDEX"];

impl Archive {
    /// Leaves only what is in these schemas, as `pg_restore --schema` does.
    pub(super) fn keep_schemas(&mut self, schemas: &[String]) {
        let in_schemas = |entry: &Entry| {
            let is_wanted = |schema: &[u8]| schemas.iter().any(|wanted| wanted.as_bytes() == schema);
            entry.schema.as_deref().is_some_and(is_wanted)
        };
        let mut kept: HashSet<i64> = HashSet::new();
        self.entries.retain(|entry| {
            let wanted = if any(entry, &ABOUT) {
                entry.needs.iter().any(|need| kept.contains(need))
            } else {
                in_schemas(entry)
            };
            // An ACL of a column needs that of its table, which is not what it is about.
            if wanted && !entry.is("ACL") {
                kept.insert(entry.id);
            }
            wanted || any(entry, &ALWAYS)
        });
    }

    /// Leaves only these tables and what belongs to them. Returns what of that had to go, for people: it needs what is not
    /// exported.
    pub(super) fn keep_tables(&mut self, tables: &[TableRecord]) -> Vec<String> {
        let is_chosen = |entry: &&Entry| tables.iter().any(|table| is_table(entry, table));
        let mut kept: HashSet<i64> = self.entries.iter().filter(is_chosen).map(|entry| entry.id).collect();
        let blocked = loop {
            let before = kept.len();
            let blocked = self.keep_what_belongs(&mut kept);
            if kept.len() == before {
                break blocked;
            }
        };
        let shown = |text: &Text| String::from_utf8_lossy(text.as_deref().unwrap_or_default()).into_owned();
        let gone = self.entries.iter().filter(|entry| blocked.contains(&entry.id)).map(|entry| {
            format!("{} {} is left out: it needs what is not exported", shown(&entry.kind), shown(&entry.tag))
        });
        let gone = gone.collect();
        self.entries.retain(|entry| kept.contains(&entry.id) || any(entry, &ALWAYS));
        gone
    }

    /// Keeps what belongs to what is kept, one step further. Returns what would belong to it, and needs something else.
    fn keep_what_belongs(&self, kept: &mut HashSet<i64>) -> HashSet<i64> {
        let by_id = self.by_id();
        let mut blocked = HashSet::new();
        for entry in &self.entries {
            if kept.contains(&entry.id) {
                // A sequence that no column owns, and that a default calls, comes with it.
                let is_sequence = |need: &&i64| by_id.get(need).is_some_and(|needed| needed.is("SEQUENCE"));
                kept.extend(entry.needs.iter().filter(is_sequence));
                continue;
            }
            if !any(entry, &BELONGS) || !entry.needs.iter().any(|need| kept.contains(need)) {
                continue;
            }
            let is_missing = |need: &i64| {
                !kept.contains(need) && by_id.get(need).is_some_and(|needed| any(needed, &RELATIONS))
            };
            if entry.needs.iter().any(is_missing) && !entry.is("DEFAULT") {
                blocked.insert(entry.id);
            } else {
                kept.insert(entry.id);
            }
        }
        blocked
    }

    fn by_id(&self) -> HashMap<i64, &Entry> {
        self.entries.iter().map(|entry| (entry.id, entry)).collect()
    }

    /// Adds what the stored archive was written without: rows of these tables, the state of sequences, views to be made anew.
    /// Returns the numbers of the entries that have the tables' rows.
    pub(super) fn add_content(
        &mut self,
        tables: &[TableRecord],
        others: &[OtherRecord],
        encoding: &str,
        is_whole: bool,
    ) -> Vec<i64> {
        let mut next = self.entries.iter().map(|entry| entry.id).max().unwrap_or(0);
        let mut id = || {
            next += 1;
            next
        };
        let rows: Vec<Entry> = tables.iter().map(|table| self.rows_entry(id(), table, encoding)).collect();
        let ids = rows.iter().map(|entry| entry.id).collect();
        let sequences: Vec<Entry> =
            others.iter().filter_map(|other| self.sequence_entry(&mut id, other, is_whole)).collect();
        let views = self.view_entries(&mut id, others);
        let is_late = |entry: &Entry| entry.section == SECTION_DATA || entry.section == SECTION_POST_DATA;
        let at = self.entries.iter().position(is_late).unwrap_or(self.entries.len());
        self.entries.splice(at..at, rows.into_iter().chain(sequences));
        self.entries.extend(views);
        ids
    }

    fn rows_entry(&self, id: i64, table: &TableRecord, encoding: &str) -> Entry {
        let made = self.entries.iter().find(|entry| is_table(entry, table));
        let columns: Vec<String> = table.columns.iter().map(|column| quoted(column)).collect();
        let list = if columns.is_empty() { String::new() } else { format!("({})", columns.join(", ")) };
        let name = qualified(&table.schema, &table.name);
        // Definitions are in UTF-8, and rows in the encoding in which they were written.
        let options = if encoding == "UTF8" {
            String::new()
        } else {
            format!(" WITH (ENCODING {})", literal(encoding))
        };
        // The table of an extension is made by it.
        let extensions = || self.entries.iter().filter(|entry| entry.is("EXTENSION")).map(|entry| entry.id);
        Entry {
            has_data: true,
            oid: text(&table.oid.to_string()),
            copy: text(&format!("COPY {name} {list} FROM stdin{options};\n")),
            needs: made.map_or_else(|| extensions().collect(), |made| vec![made.id]),
            place: Place::Unknown,
            ..entry(id, "TABLE DATA", SECTION_DATA, (&table.schema, &table.name), made)
        }
    }

    fn sequence_entry(
        &self,
        id: &mut impl FnMut() -> i64,
        other: &OtherRecord,
        is_whole: bool,
    ) -> Option<Entry> {
        let OtherRecord::Sequence { schema, name, last_value, is_called } = other else { return None };
        let made = self.entries.iter().find(|entry| entry.is("SEQUENCE") && entry.is_named(schema, name));
        if made.is_none() && !is_whole {
            return None;
        }
        let named = literal(&qualified(schema, name));
        let sql = format!("SELECT pg_catalog.setval({named}, {last_value}, {is_called});\n");
        Some(Entry {
            definition: text(&sql),
            ..entry(id(), "SEQUENCE SET", SECTION_DATA, (schema, name), made)
        })
    }

    /// In the order in which the views are made: one that reads another comes after it.
    fn view_entries(&self, id: &mut impl FnMut() -> i64, others: &[OtherRecord]) -> Vec<Entry> {
        let by_id = self.by_id();
        let mut data_of: HashMap<i64, i64> = HashMap::new();
        let mut entries = Vec::new();
        for made in self.entries.iter().filter(|entry| entry.is("MATERIALIZED VIEW")) {
            let record = others.iter().find_map(|other| match other {
                OtherRecord::MaterializedView { schema, name } if made.is_named(schema, name) => {
                    Some((schema, name))
                }
                _ => None,
            });
            let Some((schema, name)) = record else { continue };
            let number = id();
            let read = reached(made, &by_id).into_iter().filter_map(|one| data_of.get(&one).copied());
            let needs = [made.id].into_iter().chain(read).collect();
            entries.push(Entry {
                oid: made.oid.clone(),
                definition: text(&format!("REFRESH MATERIALIZED VIEW {};\n", qualified(schema, name))),
                needs,
                ..entry(number, "MATERIALIZED VIEW DATA", SECTION_POST_DATA, (schema, name), Some(made))
            });
            data_of.insert(made.id, number);
        }
        entries
    }
}

/// Whatever an entry needs, and what that needs.
fn reached(from: &Entry, by_id: &HashMap<i64, &Entry>) -> Vec<i64> {
    let (mut open, mut seen) = (from.needs.clone(), HashSet::from([from.id]));
    let mut found = Vec::new();
    while let Some(id) = open.pop() {
        if seen.insert(id) {
            found.push(id);
            open.extend(by_id.get(&id).iter().flat_map(|entry| &entry.needs));
        }
    }
    found.sort_unstable();
    found
}

/// An entry of something that is made by another one.
fn entry(id: i64, kind: &str, section: i64, (schema, name): (&str, &str), made: Option<&Entry>) -> Entry {
    Entry {
        id,
        has_data: false,
        table_oid: text("0"),
        oid: text("0"),
        tag: text(name),
        kind: text(kind),
        section,
        definition: None,
        drop: None,
        copy: None,
        schema: text(schema),
        tablespace: None,
        access_method: None,
        relkind: 0,
        owner: made.map_or_else(|| text(""), |made| made.owner.clone()),
        with_oids: text("false"),
        needs: made.map(|made| made.id).into_iter().collect(),
        place: Place::None,
    }
}

fn text(text: &str) -> Text {
    Some(text.as_bytes().to_vec())
}

fn any(entry: &Entry, kinds: &[&str]) -> bool {
    kinds.iter().any(|kind| entry.is(kind))
}

fn is_table(entry: &Entry, table: &TableRecord) -> bool {
    entry.is("TABLE") && entry.oid.as_deref() == Some(table.oid.to_string().as_bytes())
}
