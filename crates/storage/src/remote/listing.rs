//! Listings, page by page.

use super::{Remote, fault};
use crate::error::{Action, Call};
use crate::name::below;
use crate::retry::Trying;
use crate::{Children, Entry, ObjectName, StorageError};
use jiff::Timestamp;
use object_store::ObjectMeta;
use object_store::list::{PaginatedListOptions, PaginatedListResult};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Pages that bring nothing, one after the other, before a listing counts as endless: stores that keep deleted versions
/// may send some.
const IDLE_PAGES_MAX: usize = 1000;

/// About the size of a page, by which its try gets time.
const PAGE_BYTES: u64 = 1024 * 1024;

impl Remote {
    /// All pages, as one level or to any depth.
    ///
    /// Pages are tried again one by one, as a long listing would otherwise never end. Entries that come twice
    /// count once, and a listing that leads back to a page it came from, or on and on to nothing new, is an error, not an
    /// endless loop.
    pub(super) async fn list_pages(
        &self,
        call: Call,
        prefix: &str,
        one_level: bool,
    ) -> Result<Children, StorageError> {
        let mut found =
            Found { root: &self.prefix, below: prefix, entries: BTreeMap::new(), prefixes: BTreeSet::new() };
        let mut seen = HashSet::new();
        let (mut token, mut idle) = (None, 0);
        loop {
            let action = Action::new(call, prefix);
            let mut trying = Trying::new(&self.settings.retry, action.clone(), PAGE_BYTES);
            let page = trying.run(|| self.page(&action, prefix, one_level, token.clone())).await?;
            let before = found.len();
            page.result.objects.iter().for_each(|object| found.add(object));
            page.result.common_prefixes.iter().for_each(|prefix| found.add_prefix(prefix.as_ref()));
            idle = if found.len() > before { 0 } else { idle + 1 };
            token = page.page_token;
            match &token {
                None => return Ok(found.finish()),
                Some(next) if !seen.insert(next.clone()) => {
                    let source = "the listing leads back to a page it came from".into();
                    return Err(StorageError::Other { action, source });
                }
                Some(_) if idle >= IDLE_PAGES_MAX => {
                    let source = "the listing goes on and on, and brings nothing new".into();
                    return Err(StorageError::Other { action, source });
                }
                Some(_) => {}
            }
        }
    }

    async fn page(
        &self,
        action: &Action,
        prefix: &str,
        one_level: bool,
        page_token: Option<String>,
    ) -> Result<PaginatedListResult, StorageError> {
        let parts: Vec<&str> =
            [self.prefix.as_str(), prefix].into_iter().filter(|part| !part.is_empty()).collect();
        let whole = parts.iter().map(|part| format!("{part}/")).collect::<String>();
        let options = PaginatedListOptions {
            delimiter: one_level.then_some(Cow::Borrowed("/")),
            max_keys: self.settings.list_page_size.map(usize::from),
            page_token,
            ..PaginatedListOptions::default()
        };
        let whole = Some(whole.as_str()).filter(|whole| !whole.is_empty());
        let listed = self.client(action).await?.pages.list_paginated(whole, options).await;
        listed.map_err(|error| fault::meaning(error, action.clone(), None))
    }
}

/// What the pages held so far.
struct Found<'a> {
    root: &'a str,
    below: &'a str,
    entries: BTreeMap<String, Entry>,
    prefixes: BTreeSet<String>,
}

impl Found<'_> {
    fn len(&self) -> usize {
        self.entries.len() + self.prefixes.len()
    }

    /// Takes an object, unless its name cannot be one of ours.
    fn add(&mut self, object: &ObjectMeta) {
        let Some(name) = below(object.location.as_ref(), self.root) else { return };
        let Ok(name) = ObjectName::new(name) else { return };
        if below(name.as_str(), self.below).is_none() {
            return;
        }
        let modified =
            Timestamp::from_nanosecond(i128::from(object.last_modified.timestamp_micros()) * 1000).ok();
        self.entries.insert(name.to_string(), Entry { name, size: object.size, modified });
    }

    fn add_prefix(&mut self, prefix: &str) {
        let Some(prefix) = below(prefix, self.root) else { return };
        if ObjectName::new(prefix).is_ok() && below(prefix, self.below).is_some() {
            self.prefixes.insert(prefix.to_owned());
        }
    }

    fn finish(mut self) -> Children {
        // Consoles make "directories": empty objects whose key ends in a slash, which the library drops.
        let is_directory = |entry: &Entry| {
            let inside = format!("{}/", entry.name);
            let first = self.entries.range(inside.clone()..).next();
            self.prefixes.contains(entry.name.as_str())
                || first.is_some_and(|(name, _)| name.starts_with(&inside))
        };
        let empty = self.entries.values().filter(|entry| entry.size == 0);
        let directories: Vec<String> =
            empty.filter(|entry| is_directory(entry)).map(|entry| entry.name.to_string()).collect();
        for directory in directories {
            self.entries.remove(&directory);
        }
        Children {
            prefixes: self.prefixes.into_iter().collect(),
            entries: self.entries.into_values().collect(),
        }
    }
}
