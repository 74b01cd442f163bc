//! What a run asks and learns: its questions, read, divided and planned, with all that they show at
//! hand. A run, an evaluation, a plan and a check all begin with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::data::augment::{Augment, Samples};
use crate::data::entry::{self, Entry};
use crate::data::medium;
use crate::data::split::{self, Split};
use crate::data::variant::Shown;
use crate::data::vlm4d::Format;
use crate::error::{Error, Result};
use crate::eval::rounds::{Round, rounds};
use crate::places;
use crate::recipe::Recipe;
use crate::report::terminal::Terminal;
use crate::train::schedule::Course;

/// The questions of a recipe.
pub struct Questions {
    /// The data folder.
    pub dir: PathBuf,
    /// What the recipe names it, with the commit where it comes from the hub.
    pub path: String,
    pub entries: Vec<Entry>,
    pub parts: Parts,
    /// What is worth telling of them.
    pub notes: Vec<String>,
    /// What is asked before and after.
    pub rounds: Vec<Round>,
    /// What is trained on, epoch by epoch; nothing in an evaluation alone.
    pub samples: Samples,
    /// Every video and image that is needed, once for each way in which it is shown.
    pub shown: Vec<Shown>,
    trains: bool,
}

/// A split, and the entries of its parts.
pub struct Parts {
    pub split: BTreeMap<String, Split>,
    pub train: Vec<Entry>,
    pub val: Vec<Entry>,
    pub test: Vec<Entry>,
}

impl Parts {
    /// Train, val and test.
    pub fn all(&self) -> [&[Entry]; 3] {
        [&self.train, &self.val, &self.test]
    }
}

impl Questions {
    /// Reads the questions of `recipe` and fetches what they show; `trains` says whether it is a
    /// whole run or an evaluation alone, which neither trains nor validates.
    ///
    /// # Errors
    /// The first thing that is wrong with recipe or questions, or a file that is missing.
    pub fn read(recipe: &Recipe, trains: bool, terminal: &Terminal) -> Result<Self> {
        let place = places::questions(&recipe.data.path, terminal)?;
        let (entries, mut notes) = entry::read(&place.dir, &recipe.data.subsets())?;
        let (parts, of_split) = divide(recipe, &entries)?;
        notes.extend(of_split);
        notes.extend(freeform_note(recipe, &entries));
        notes.extend(controls_note(recipe, &parts.test));
        let rounds = rounds(recipe, &parts.test, &parts.train)?;
        let (samples, shown) = (Samples::default(), vec![]);
        let (dir, path) = (place.dir.clone(), place.path.clone());
        let mut all = Self { dir, path, entries, parts, notes, rounds, samples, shown, trains };
        place.media(all.used(), terminal)?;
        entry::check_media(&all.dir, all.used())?;
        if trains {
            all.samples = plan_samples(recipe, all.learned())?;
        }
        all.shown = all.all_shown();
        Ok(all)
    }

    /// What is trained on.
    pub fn learned(&self) -> &[Entry] {
        if self.trains { &self.parts.train } else { &[] }
    }

    /// What validates while the run trains.
    pub fn validating(&self) -> &[Entry] {
        if self.trains { &self.parts.val } else { &[] }
    }

    /// How many questions its lists hold together: each has its own of them.
    pub fn listed(&self) -> usize {
        let parts = self.parts.all().map(<[Entry]>::len).iter().sum::<usize>();
        let asks = self.rounds.iter().map(|round| round.asks.len()).sum::<usize>();
        self.entries.len() + parts + self.samples.distinct.len() + asks
    }

    /// What each file is that is shown: `video`, `image` or `file`.
    pub fn medium(&self) -> &'static str {
        medium::name(self.shown.iter().map(|shown| &shown.medium))
    }

    /// How often a video or image is needed: for each training sample of each epoch, and for each
    /// question whenever it is asked. Without the cache each of these would be a decoding and a pass
    /// of the tower.
    pub fn uses(&self, recipe: &Recipe) -> usize {
        let per_epoch = self.samples.epochs.first().map_or(0, Vec::len);
        let trained = (recipe.train.epochs * per_epoch as f64).ceil() as usize;
        let per_step = recipe.train.samples_per_step();
        let most =
            recipe.train.max_steps.map_or(usize::MAX, |steps| steps.saturating_mul(per_step));
        let asked = self.rounds.iter().filter(|round| round.view.has_video());
        let asked: usize = asked.map(|round| round.asks.len()).sum();
        let stages = if self.trains { 2 } else { 1 };
        trained.min(most) + stages * asked
    }

    fn used(&self) -> impl Iterator<Item = &Entry> {
        let asked = self.rounds.iter().flat_map(|round| &round.asks).map(|ask| &ask.entry);
        self.learned().iter().chain(self.validating()).chain(asked)
    }

    fn all_shown(&self) -> Vec<Shown> {
        let trained_on = self.samples.distinct.iter().flat_map(|(entry, _)| entry.shown());
        let asked = self.rounds.iter();
        let asked = asked.flat_map(|r| r.asks.iter().flat_map(|ask| r.view.shown(&ask.entry)));
        let validating = self.validating().iter().flat_map(Entry::shown);
        let all: BTreeSet<Shown> = trained_on.chain(asked).chain(validating).collect();
        all.into_iter().collect()
    }
}

/// Splits the questions, or takes the split that is given; and what is worth telling of that.
fn divide(recipe: &Recipe, entries: &[Entry]) -> Result<(Parts, Vec<String>)> {
    let shares = &recipe.data.split;
    let (mut split, notes) = if let Some(file) = &shares.file {
        split::read(file, entries).map_err(|e| e.of_key("data.split.file"))?
    } else {
        let seed = recipe.split_seed();
        (split::split(entries, seed, shares.test, shares.val, shares.by)?, vec![])
    };
    if let Some(limits) = &recipe.data.max_questions {
        for (subset, parts) in &mut split {
            if let (Some(most), true) = (limits.of(subset), recipe.data.train.contains(subset)) {
                parts.limit(most);
            }
        }
    }
    let (mut train, mut val, mut test) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (subset, parts) in &split {
        if recipe.data.train.contains(subset) {
            train.extend(&parts.train);
            val.extend(&parts.val);
        }
        if recipe.data.test_subsets().contains(subset) {
            test.extend(&parts.test);
        }
    }
    let of = |ids: &BTreeSet<&String>| -> Vec<Entry> {
        entries.iter().filter(|e| ids.contains(&e.id)).cloned().collect()
    };
    let (train, val, test) = (of(&train), of(&val), of(&test));
    if let (Some(file), true) = (&shares.file, val.is_empty() && recipe.train.is_validated()) {
        return Err(Error::input(format!("{}: holds nothing back to validate", file.display()))
            .of_key("data.split.file")
            .help("leave train.best, patience and eval_steps out, or take a split with `val`"));
    }
    Ok((Parts { split, train, val, test }, notes))
}

/// Conversations have no choices: a recipe that wants multiple choice alone gets something else.
fn freeform_note(recipe: &Recipe, entries: &[Entry]) -> Option<String> {
    let without = [&recipe.data.formats, &recipe.eval.formats];
    let without = without.iter().any(|formats| !formats.contains(&Format::Ff));
    let conversations = entries.iter().any(Entry::is_conversation);
    let note = "conversations are freeform, whatever data.formats and eval.formats say";
    (without && conversations).then(|| note.to_owned())
}

/// A control changes what the video shows.
fn controls_note(recipe: &Recipe, test: &[Entry]) -> Option<String> {
    let idle = !recipe.eval.controls.is_empty() && !test.is_empty();
    let note = "no test question has a video: eval.controls have nothing to change";
    (idle && !test.iter().any(Entry::has_video)).then(|| note.to_owned())
}

/// What the run will train on, epoch by epoch.
fn plan_samples(recipe: &Recipe, entries: &[Entry]) -> Result<Samples> {
    let data = &recipe.data;
    let (shuffle_choices, mirror) = (data.shuffle_choices, data.mirror);
    let augment = Augment { seed: recipe.seed, shuffle_choices, mirror };
    if shuffle_choices && entries.iter().all(|entry| entry.choices.is_empty()) {
        return Err(Error::input("data.shuffle_choices: no training question has choices")
            .of_key("data.shuffle_choices")
            .help("leave it out: a data set of conversations has no choices to put in order"));
    }
    let per_epoch = entries.iter().map(|entry| entry.formats(&data.formats).len()).sum();
    if per_epoch == 0 {
        return Err(Error::input("there is nothing to train on")
            .of_key("data.train")
            .help("check data.train and data.split"));
    }
    let course = Course::new(&recipe.train, per_epoch);
    let epochs = course.steps.div_ceil(course.steps_per_epoch);
    Ok(augment.samples(entries, &data.formats, epochs))
}
