//! Rulings on disk: one file per request, so that nothing is asked, or paid, twice.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Case, Ruling};
use crate::error::Result;
use crate::{files, hash};

/// A folder of rulings.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
}

/// A file's content: the ruling, and for people what it is about.
#[derive(Serialize, Deserialize)]
struct Entry {
    judge: String,
    question: String,
    gold: String,
    response: String,
    ruling: Ruling,
}

impl Cache {
    /// The cache in the folder `dir`, which need not exist yet.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The ruling on `case` in answer to `request`; nothing where there is none, or the file is
    /// damaged.
    pub fn get(&self, request: &str, case: &Case) -> Option<Ruling> {
        let text = std::fs::read_to_string(self.path(request)).ok()?;
        let entry: Entry = serde_json::from_str(&text).ok()?;
        let same = (&entry.question, &entry.gold, &entry.response)
            == (&case.question, &case.gold, &case.response);
        same.then_some(entry.ruling)
    }

    /// Keeps the `ruling` on `case` that `judge` gave in answer to `request`.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn put(&self, request: &str, judge: &str, case: &Case, ruling: &Ruling) -> Result<()> {
        let path = self.path(request);
        files::create_dir(path.parent().unwrap_or(&self.dir))?;
        let entry = Entry {
            judge: judge.to_owned(),
            question: case.question.clone(),
            gold: case.gold.clone(),
            response: case.response.clone(),
            ruling: ruling.clone(),
        };
        files::write_json(&path, &entry)
    }

    fn path(&self, request: &str) -> PathBuf {
        let name = hash::text(request);
        self.dir.join(&name[..2]).join(format!("{name}.json"))
    }
}
