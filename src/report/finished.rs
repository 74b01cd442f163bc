//! A finished run, read back from its folder.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::iter;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::split;
use crate::data::split::Split;
use crate::data::vlm4d::Format;
use crate::error::{Error, Result};
use crate::eval::predict::{self, Ask, Prediction};
use crate::eval::rounds::CIRCULAR;
use crate::files;
use crate::model::peft;
use crate::model::tensor_files::TensorFiles;
use crate::number::thousands;
use crate::recipe::Recipe;

const AGAIN: &str = "start the run's recipe again: what is missing or damaged is made again";

/// What a finished run left behind.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its folder.
    pub dir: PathBuf,
    /// Its resolved recipe.
    pub recipe: Recipe,
    /// Graded responses before training.
    pub before: Vec<Prediction>,
    /// Graded responses after training.
    pub after: Vec<Prediction>,
    /// How many questions it was trained on, and among how many they were drawn, of each subset
    /// that has others.
    pub limited: BTreeMap<String, [usize; 2]>,
}

impl Finished {
    /// Whether `dir` is a run's folder, finished or not.
    pub fn is_run(dir: &Path) -> bool {
        dir.join("recipe.toml").is_file()
    }

    /// Reads the run in `dir`.
    ///
    /// # Errors
    /// Where it is no run's folder, or the run is not finished.
    pub fn open(dir: &Path) -> Result<Self> {
        let shown = dir.display();
        if !dir.is_dir() {
            return Err(Error::input(format!("{shown}: no such folder"))
                .help("give a run's folder, for example runs/quickstart/real"));
        }
        if !Self::is_run(dir) {
            return Err(Error::input(format!("{shown}: no run: it has no recipe.toml"))
                .help("give a run's folder, for example runs/quickstart/real"));
        }
        if dir.join("predictions.jsonl").exists() {
            return Err(Error::input(format!("{shown}: no run: it is an evaluation alone"))
                .help("give a run's folder: it has `before` and `after`"));
        }
        let recipe = Recipe::of_run(dir)?;
        let read = |stage: &str| {
            let path = dir.join(stage).join("predictions.jsonl");
            match path.exists() {
                true => predict::read(&path),
                false => Err(Error::input(format!(
                    "{shown}: the run is not finished: it has no {stage}/predictions.jsonl"
                ))
                .help("start its recipe again: it goes on where it stopped")),
            }
        };
        let (before, after) = (read("before")?, read("after")?);
        if asked(&dir.join("before"))? != asked(&dir.join("after"))? {
            return Err(Error::input(format!("{shown}: before and after answer other questions"))
                .help(AGAIN));
        }
        let limited = split::limited(dir, &recipe)?;
        Ok(Self { dir: dir.to_owned(), recipe, before, after, limited })
    }

    /// The run of `recipe` into `dir` before it starts: with its test questions, not answered yet.
    pub fn expected(
        dir: PathBuf,
        recipe: Recipe,
        split: &BTreeMap<String, Split>,
        asks: &[Ask],
    ) -> Self {
        let open = |ask: &Ask| Prediction::open(ask, recipe.eval.prompt);
        let before: Vec<Prediction> = asks.iter().map(open).collect();
        let limited = split::limited_in(split, &recipe.data.train);
        Self { dir, recipe, after: before.clone(), before, limited }
    }

    /// Checks that what was trained is there, and whole.
    ///
    /// # Errors
    /// Where it is not.
    pub fn check_trained(&self) -> Result<()> {
        let checked = match self.recipe.lora {
            Some(_) => peft::check(&self.dir.join("adapter")),
            None => TensorFiles::from_dir(&self.dir.join("model")).map(drop),
        };
        checked.map_err(|e| e.help(AGAIN))
    }

    /// Whether nothing is missing of what a finished run has.
    pub fn is_whole(&self) -> bool {
        self.dir.join("report.html").exists()
            && ["before", "after"].iter().all(|stage| has_answers(&self.dir.join(stage)))
            && self.check_trained().is_ok()
    }

    /// `R`, `S`, `R+S` as the paper has it; else the names of the subsets trained on. Where questions
    /// were left out, with how many there were of each subset: `R (400)`, `R+S (400+all)`. A limit
    /// counts as reached where one of `runs` with the same limits reaches it: seeds that draw a split
    /// each may differ in that.
    pub fn trained_on(&self, runs: &[Self]) -> String {
        let letter = |subset: &String| match subset.as_str() {
            "real" => "R".to_owned(),
            "synthetic" => "S".to_owned(),
            other => other.to_owned(),
        };
        let limits = |run: &Self| run.recipe.data.max_questions.clone();
        let alike = runs.iter().filter(|run| limits(self).is_some() && limits(run) == limits(self));
        let reached =
            |subset| iter::once(self).chain(alike.clone()).find_map(|run| run.limited.get(subset));
        let subsets = self.recipe.data.train.iter();
        let mut subsets: Vec<_> = subsets.map(|subset| (letter(subset), reached(subset))).collect();
        subsets.sort();
        let (letters, sizes): (Vec<_>, Vec<_>) = subsets.into_iter().unzip();
        let letters = letters.join("+");
        if sizes.iter().all(Option::is_none) {
            return letters;
        }
        let size = |size: Option<&[usize; 2]>| size.map_or("all".into(), |[n, _]| thousands(*n));
        let sizes: Vec<String> = sizes.into_iter().map(size).collect();
        format!("{letters} ({})", sizes.join("+"))
    }
}

/// File, question, format and rotation of an answer.
type Asked = (OsString, String, Format, Option<usize>);

/// What the predictions in `dir` answer.
fn asked(dir: &Path) -> Result<BTreeSet<Asked>> {
    let mut asked = BTreeSet::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let is_jsonl = path.extension().is_some_and(|ending| ending == "jsonl");
        if is_jsonl && name.to_string_lossy().starts_with("predictions") {
            let predictions = predict::read(&path)?.into_iter();
            asked.extend(predictions.map(|p| (name.clone(), p.id, p.format, p.rotation)));
        }
    }
    Ok(asked)
}

/// Whether the evaluation in `dir` has its metrics, and the answers that these are of.
fn has_answers(dir: &Path) -> bool {
    let Ok(metrics) = files::read_json::<Value>(&dir.join("metrics.json")) else { return false };
    let controls = metrics["controls"].as_object().into_iter().flat_map(|of| of.keys());
    let circular = metrics["mc"].get(CIRCULAR).map(|_| CIRCULAR);
    let mut names = controls.map(String::as_str).chain(circular);
    names.all(|name| dir.join(format!("predictions_{name}.jsonl")).exists())
}
