//! A data set → how many questions of what kind it asks, on how many files, with which answers.

use std::collections::{BTreeMap, BTreeSet};

use super::entry::Entry;
use super::medium::{self, Medium};

/// What a data set holds, subset by subset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// In the order in which they are read.
    pub subsets: Vec<Subset>,
    /// What it is that they show: `video` or `image`, or `file` where there are both.
    pub medium: &'static str,
}

/// What a subset holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subset {
    /// `real`.
    pub name: String,
    /// Its questions by source and group.
    pub kinds: BTreeMap<(String, String), Count>,
    /// All of them.
    pub all: Count,
    /// How many files have so many questions.
    pub per_file: BTreeMap<usize, usize>,
    /// How often each letter is (the first) gold, A first; none where there are no choices.
    pub letters: Vec<usize>,
    /// How often each answer is gold, in lower case, the commonest first.
    pub answers: Vec<(String, usize)>,
}

/// Questions, and the files they are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Questions or conversations.
    pub questions: usize,
    /// Distinct videos and images.
    pub files: usize,
}

impl Stats {
    /// Counts `entries`.
    pub fn new(entries: &[Entry]) -> Self {
        let mut names: Vec<&str> = Vec::new();
        for entry in entries {
            if !names.contains(&&*entry.subset) {
                names.push(&entry.subset);
            }
        }
        let of = |name: &str| -> Vec<&Entry> {
            entries.iter().filter(|entry| entry.subset == name).collect()
        };
        let subsets = names.into_iter().map(|name| Subset::new(name, &of(name))).collect();
        let media = entries.iter().flat_map(|entry| &entry.media);
        Self { subsets, medium: medium::name(media) }
    }
}

impl Subset {
    fn new(name: &str, entries: &[&Entry]) -> Self {
        let mut subset = Self { name: name.to_owned(), all: count(entries), ..Self::default() };
        let mut kinds: BTreeMap<(String, String), Vec<&Entry>> = BTreeMap::new();
        let mut files: BTreeMap<&Medium, usize> = BTreeMap::new();
        let mut answers: BTreeMap<String, usize> = BTreeMap::new();
        for entry in entries {
            kinds.entry((entry.source.clone(), entry.group.clone())).or_default().push(entry);
            // one that is shown twice is one
            for medium in entry.media.iter().collect::<BTreeSet<_>>() {
                *files.entry(medium).or_default() += 1;
            }
            if let Some(&gold) = entry.gold_choices.first() {
                if subset.letters.len() < entry.choices.len() {
                    subset.letters.resize(entry.choices.len(), 0);
                }
                subset.letters[gold] += 1;
            }
            *answers.entry(entry.gold.to_lowercase()).or_default() += 1;
        }
        subset.kinds = kinds.into_iter().map(|(kind, of)| (kind, count(&of))).collect();
        for questions in files.into_values() {
            *subset.per_file.entry(questions).or_default() += 1;
        }
        subset.answers = answers.into_iter().collect();
        // stable: the alphabet among equally common ones
        subset.answers.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        subset
    }
}

fn count(entries: &[&Entry]) -> Count {
    let files: BTreeSet<&Medium> = entries.iter().flat_map(|entry| &entry.media).collect();
    Count { questions: entries.len(), files: files.len() }
}
