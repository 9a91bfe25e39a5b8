//! What of a server is wanted in a logical backup.

use server::tables::{Contents, Named};

/// Which databases, and what is left out of them. Patterns are `schema.table` or `table`, in which `*` stands for any
/// characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Databases by name; none for the one that the connection leads to.
    pub databases: Vec<String>,
    /// All databases of the server that can be connected to.
    pub all_databases: bool,
    /// Only these schemas, with all that is in them; all if empty. What is in no schema does not come, as with `pg_dump`.
    pub schemas: Vec<String>,
    /// Schemas that are left out, with all that is in them.
    pub exclude_schemas: Vec<String>,
    /// Tables that are left out.
    pub exclude_tables: Vec<String>,
    /// Tables whose definition is kept and whose rows are not.
    pub exclude_rows: Vec<String>,
}

impl Selection {
    /// Takes out of `contents` what is not wanted; returns what was left out of the rows, for people.
    pub fn apply(&self, contents: &mut Contents) -> Vec<String> {
        let is_chosen = |schema: &str| {
            self.schemas.is_empty() || self.schemas.iter().any(|pattern| matches(pattern, schema))
        };
        let is_excluded = |schema: &str, name: &str| {
            !is_chosen(schema)
                || self.exclude_schemas.iter().any(|pattern| matches(pattern, schema))
                || self.exclude_tables.iter().any(|pattern| matches_table(pattern, schema, name))
        };
        contents.sequences.retain(|sequence| !is_excluded(&sequence.schema, &sequence.name));
        contents.views.retain(|view| !is_excluded(&view.schema, &view.name));
        contents.uncovered.retain(|one| {
            !is_excluded(&one.relation.schema, &one.relation.name) && !self.rows_excluded(&one.relation)
        });
        let mut left_out = Vec::new();
        contents.tables.retain(|table| {
            let named = Named { schema: table.schema.clone(), name: table.name.clone() };
            let rows_excluded = self.rows_excluded(&named);
            // Extensions are in no schema, and their tables are made by them.
            let no_extension = table.of_extension && !self.schemas.is_empty();
            let excluded = is_excluded(&table.schema, &table.name) || no_extension;
            if is_chosen(&table.schema) && (excluded || rows_excluded) {
                left_out.push(format!("{}.{}: left out as configured", table.schema, table.name));
            }
            !excluded && !rows_excluded
        });
        if !self.schemas.is_empty() {
            contents.large_objects = 0;
            left_out.push("all but the chosen schemas: left out as configured".to_owned());
        }
        left_out
    }

    fn rows_excluded(&self, relation: &Named) -> bool {
        self.exclude_rows.iter().any(|pattern| matches_table(pattern, &relation.schema, &relation.name))
    }

    /// Arguments by which `pg_dump` leaves out the same.
    pub fn dump_arguments(&self) -> Vec<String> {
        let chosen = self.schemas.iter().map(|pattern| format!("--schema={}", dump_pattern(pattern)));
        let schemas =
            self.exclude_schemas.iter().map(|pattern| format!("--exclude-schema={}", dump_pattern(pattern)));
        let tables = self.exclude_tables.iter().map(|pattern| match pattern.split_once('.') {
            Some((schema, table)) => {
                format!("--exclude-table={}.{}", dump_pattern(schema), dump_pattern(table))
            }
            None => format!("--exclude-table=*.{}", dump_pattern(pattern)),
        });
        chosen.chain(schemas).chain(tables).collect()
    }
}

pub(crate) fn matches_table(pattern: &str, schema: &str, name: &str) -> bool {
    // Names may have dots in them, too.
    let in_schema = |at: usize| matches(&pattern[..at], schema) && matches(&pattern[at + 1..], name);
    matches(pattern, name) || pattern.match_indices('.').any(|(at, _)| in_schema(at))
}

/// Whether `*` for any characters makes the pattern into the name.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(tail) = name.strip_prefix(head) else { return false };
    let ends = tail.char_indices().map(|(at, _)| at).chain([tail.len()]);
    ends.into_iter().any(|at| matches(rest, &tail[at..]))
}

/// As pg_dump reads patterns: quoted, so that nothing but our `*` is special.
fn dump_pattern(pattern: &str) -> String {
    let part = |text: &str| {
        if text.is_empty() { String::new() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
    };
    pattern.split('*').map(part).collect::<Vec<_>>().join("*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters_and_everything_else_for_itself() {
        for (pattern, name, expected) in [
            ("logs", "logs", true),
            ("logs", "logs2", false),
            ("log*", "logs", true),
            ("*_old", "a_old", true),
            ("*_old", "a_older", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b", "ab", true),
            ("größe*", "größen", true),
            ("a?", "ab", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
        assert!(matches_table("audit.*", "audit", "x") && !matches_table("audit.*", "public", "audit"));
        assert!(matches_table("x", "anywhere", "x"));
    }

    #[test]
    fn pg_dump_is_told_the_same() {
        let selection = Selection {
            schemas: vec!["app_*".into()],
            exclude_schemas: vec!["log*".into()],
            exclude_tables: vec!["tmp".into(), "a.b\"*".into()],
            ..Selection::default()
        };
        let expected = [
            "--schema=\"app_\"*",
            "--exclude-schema=\"log\"*",
            "--exclude-table=*.\"tmp\"",
            "--exclude-table=\"a\".\"b\"\"\"*",
        ];
        assert_eq!(selection.dump_arguments(), expected);
    }
}
