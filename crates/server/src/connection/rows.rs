//! The answer to a statement.

use std::fmt;
use std::str::FromStr;

use super::error::ServerError;
use super::raw::Answer;

/// The rows of one answer, every value in PostgreSQL's text form.
#[derive(Debug)]
pub struct Rows {
    answer: Answer,
}

impl Rows {
    pub(super) fn new(answer: Answer) -> Self {
        Self { answer }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.answer.rows()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The names of the columns, in order.
    pub fn columns(&self) -> Vec<String> {
        (0..self.answer.columns()).map(|column| self.answer.column_name(column)).collect()
    }

    /// Rows that an `INSERT`, `UPDATE`, `SELECT`… touched; 0 for statements that touch none.
    pub fn affected(&self) -> u64 {
        self.answer.affected()
    }

    /// The row at `index`, from 0; `None` past the end.
    pub fn row(&self, index: usize) -> Option<Row<'_>> {
        (index < self.len()).then_some(Row { answer: &self.answer, index })
    }

    /// The first row; an error when the answer is empty.
    pub fn first(&self) -> Result<Row<'_>, ServerError> {
        self.row(0).ok_or_else(|| ServerError::UnexpectedAnswer { what: "no row".into() })
    }

    /// The rows in order.
    pub fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        (0..self.len()).map(|index| Row { answer: &self.answer, index })
    }
}

/// One row of an answer. Columns are counted from 0.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    answer: &'a Answer,
    index: usize,
}

impl<'a> Row<'a> {
    /// The bytes of a column; `None` for SQL `NULL` and for a column that does not exist.
    pub fn bytes(&self, column: usize) -> Option<&'a [u8]> {
        self.answer.value(self.index, column)
    }

    /// The text of a column; `None` for `NULL`. An error when the bytes are not UTF-8.
    pub fn text(&self, column: usize) -> Result<Option<&'a str>, ServerError> {
        self.bytes(column)
            .map(|bytes| std::str::from_utf8(bytes).map_err(|_| self.odd(column, "is not UTF-8")))
            .transpose()
    }

    /// The text of a column that must not be `NULL`.
    pub fn required(&self, column: usize) -> Result<&'a str, ServerError> {
        self.text(column)?.ok_or_else(|| self.odd(column, "is null"))
    }

    /// A column that must not be `NULL`, parsed.
    pub fn parse<T: FromStr>(&self, column: usize) -> Result<T, ServerError>
    where
        T::Err: fmt::Display,
    {
        let text = self.required(column)?;
        text.parse().map_err(|error| self.odd(column, &format!("is {text:?}: {error}")))
    }

    /// A boolean column that must not be `NULL`; PostgreSQL writes `t` and `f`.
    pub fn boolean(&self, column: usize) -> Result<bool, ServerError> {
        match self.required(column)? {
            "t" => Ok(true),
            "f" => Ok(false),
            other => Err(self.odd(column, &format!("is {other:?}, not a boolean"))),
        }
    }

    fn odd(&self, column: usize, what: &str) -> ServerError {
        let name = self.answer.column_name(column);
        ServerError::UnexpectedAnswer { what: format!("column {column} ({name}) {what}") }
    }
}
