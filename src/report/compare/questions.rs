//! Whether runs were tested on the same questions.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::{RowRuns, Stage};
use crate::data::vlm4d::Format;
use crate::error::{Error, Result};
use crate::eval::predict::Prediction;
use crate::recipe::Recipe;

/// What was asked under an id: question, choices and gold answer.
type Asked<'a> = (&'a str, &'a [String], &'a str);

/// What stands for the test questions of a run in each format that it has: the same where these are
/// the same.
pub fn keys(predictions: &[Prediction]) -> BTreeMap<Format, u64> {
    let formats: BTreeSet<Format> = predictions.iter().map(|p| p.format).collect();
    let key = |format| {
        let mut hasher = DefaultHasher::new();
        questions(predictions, format).hash(&mut hasher);
        (format, hasher.finish())
    };
    formats.into_iter().map(key).collect()
}

/// The test questions of a run in one format, by id.
fn questions(predictions: &[Prediction], format: Format) -> BTreeMap<&str, Asked<'_>> {
    let of = predictions.iter().filter(|p| p.format == format);
    of.map(|p| (&*p.id, (&*p.question, &*p.choices, &*p.gold))).collect()
}

/// Whether two evaluations asked the same questions in `format`.
pub fn same(a: &Stage, b: &Stage, format: Format) -> bool {
    a.asked.get(&format) == b.asked.get(&format)
}

/// Whether two evaluations asked the same questions.
pub fn same_in_all(a: &Stage, b: &Stage) -> bool {
    a.asked == b.asked
}

/// Every row must rest on the same test questions. A row of several seeds may rest on several test
/// sets, if each seed drew a split of its own; the others must then rest on all of them too.
///
/// # Errors
/// Names two runs that were tested on other questions than each other, and in what these differ.
pub fn check(rows: &[RowRuns]) -> Result<()> {
    for format in Format::ALL {
        let trained = rows.iter().filter(|row| !row.is_original());
        let tested: Vec<&RowRuns> = trained.filter(|row| row.has(format)).collect();
        let unequal = |(a, b): &(&Stage, &Stage)| !drew_alone(a, b) && !same(a, b, format);
        if let Some((one, other)) = tested.iter().flat_map(|row| row.pairs()).find(unequal) {
            return Err(refusal(one, other, format));
        }
        for (one, other) in tested.iter().flat_map(|a| tested.iter().map(move |b| (a, b))) {
            let alone = one
                .stages
                .iter()
                .find(|stage| !other.stages.iter().any(|s| same(stage, s, format)));
            if let (Some(stage), Some(against)) = (alone, other.stages.first()) {
                return Err(refusal(stage, against, format));
            }
        }
    }
    Ok(())
}

/// Whether two seeds of one training were to draw a split each.
fn drew_alone(a: &Stage, b: &Stage) -> bool {
    let (a, b) = (&a.run.recipe, &b.run.recipe);
    a.data.split.file.is_none() && a.seed != b.seed && a.split_seed() != b.split_seed()
}

fn refusal(one: &Stage, other: &Stage, format: Format) -> Error {
    let [a, b] = [one, other].map(|stage| questions(stage.predictions, format));
    let [here, there] = [one, other].map(|stage| stage.run.dir.display().to_string());
    let common = a.keys().filter(|id| b.contains_key(*id)).count();
    let name = format.name();
    let only = |a: &BTreeMap<&str, Asked>, b: &BTreeMap<&str, Asked>| {
        a.keys().find(|id| !b.contains_key(*id)).map(|id| (*id).to_owned())
    };
    let example = if let Some(id) = only(&a, &b) {
        format!("`{id}` is only in {here}")
    } else if let Some(id) = only(&b, &a) {
        format!("`{id}` is only in {there}")
    } else {
        let other = a.iter().find(|(id, asked)| b.get(*id) != Some(asked));
        let id = other.map_or("", |(id, _)| *id);
        format!("`{id}` has another question, other choices or another answer")
    };
    let what = format!(
        "{here} and {there}: not tested on the same questions: {} and {} in {name}, {common} in common; {example}",
        a.len(),
        b.len()
    );
    Error::input(what).help(reason(&one.run.recipe, &other.run.recipe))
}

/// Why the test questions differ, and what to do.
fn reason(a: &Recipe, b: &Recipe) -> String {
    let (seed, other) = (a.split_seed(), b.split_seed());
    let hash = |recipe: &Recipe| recipe.provenance.as_ref().map(|p| p.data_sha256.clone());
    if a.data.test_subsets() != b.data.test_subsets() {
        format!(
            "one was tested on {}, the other on {}: give both the same data.test",
            a.data.test_subsets().join(" + "),
            b.data.test_subsets().join(" + ")
        )
    } else if a.data.subsets() == b.data.subsets()
        && hash(a).zip(hash(b)).is_some_and(|(a, b)| a != b)
    {
        "they had other question files: compare runs on the same data".into()
    } else if a.data.split.file.is_some() || b.data.split.file.is_some() {
        "a split was given: set data.split.file to the same one in both, and run one of them again"
            .into()
    } else if seed != other {
        format!(
            "their splits have the seeds {seed} and {other}: set data.split.seed to the same number in both, and run them again"
        )
    } else if a.data.split == b.data.split {
        "their question files differ: compare runs on the same data".into()
    } else {
        "their data.split differs: give both the same, and run one of them again".into()
    }
}
