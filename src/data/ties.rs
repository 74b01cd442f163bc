//! Which names belong together, as those of files that something shows together.

use std::collections::BTreeMap;
use std::ffi::OsStr;

/// By name, one that it is tied to and that comes before it, or itself.
pub struct Ties<'a>(BTreeMap<&'a OsStr, &'a OsStr>);

impl<'a> Ties<'a> {
    /// Ties the names of each of `groups` together, and so all groups that share a name.
    pub fn new(groups: impl Iterator<Item = Vec<&'a OsStr>>) -> Self {
        let mut ties = Self(BTreeMap::new());
        for group in groups {
            for &name in &group {
                ties.0.entry(name).or_insert(name);
                let a = ties.first(group[0]);
                let b = ties.first(name);
                ties.0.insert(a.max(b), a.min(b));
            }
        }
        ties
    }

    /// The first of all names that are tied to `name`; the next look for it is short.
    ///
    /// # Panics
    /// Where `name` is in none of the groups.
    pub fn first(&mut self, name: &'a OsStr) -> &'a OsStr {
        let mut first = name;
        while self.0[first] != first {
            first = self.0[first];
        }
        let mut passed = name;
        while passed != first {
            passed = self.0.insert(passed, first).unwrap_or(first);
        }
        first
    }
}
