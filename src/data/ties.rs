//! Which files belong together, because something shows them together.

use std::collections::BTreeMap;
use std::ffi::OsStr;

/// By file, one that it is tied to and that comes before it by name, or itself.
pub struct Ties<'a>(BTreeMap<&'a OsStr, &'a OsStr>);

impl<'a> Ties<'a> {
    /// Ties the files of each of `groups` together, and so all groups that share a file.
    pub fn new(groups: impl Iterator<Item = Vec<&'a OsStr>>) -> Self {
        let mut ties = Self(BTreeMap::new());
        for group in groups {
            for &file in &group {
                ties.0.entry(file).or_insert(file);
                let a = ties.first(group[0]);
                let b = ties.first(file);
                ties.0.insert(a.max(b), a.min(b));
            }
        }
        ties
    }

    /// The first by name of all that are tied to `file`; the next look for it is short.
    ///
    /// # Panics
    /// Where `file` is in none of the groups.
    pub fn first(&mut self, file: &'a OsStr) -> &'a OsStr {
        let mut first = file;
        while self.0[first] != first {
            first = self.0[first];
        }
        let mut passed = file;
        while passed != first {
            passed = self.0.insert(passed, first).unwrap_or(first);
        }
        first
    }
}
