//! Files in VLM4D's released-output format.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{Verdict, grade_ff, grade_mc};
use crate::data::vlm4d::is_false_positive;
use crate::error::{Error, Result, more};
use crate::eval::stats::share;
use crate::files::{json_lines, read_json};

/// One item of a released-output file; other keys are ignored.
#[derive(Clone, Debug, Deserialize)]
pub struct Released {
    /// As `validation_1`; unique within a file, not between real and synthetic.
    pub id: String,
    /// The question.
    pub question: String,
    /// Letter → text; empty in a freeform file. Integers become text.
    #[serde(default, deserialize_with = "choices")]
    pub choices: BTreeMap<String, String>,
    /// What the model said; null or empty where it said nothing. A file without the key has no
    /// answers to grade.
    #[serde(deserialize_with = "text_or_nothing")]
    pub response: Option<String>,
    /// The right choice's text.
    #[serde(alias = "answer", deserialize_with = "text")]
    pub ground_truth_answer: String,
    /// What a judge took the response to answer.
    #[serde(default, deserialize_with = "text_or_nothing")]
    pub extracted_answer: Option<String>,
    /// How a judge decided.
    #[serde(default)]
    pub correct: Option<bool>,
}

fn as_text(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Null => None,
        other => Some(other.to_string()),
    }
}

fn text_or_nothing<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Value::deserialize(from).map(as_text)
}

fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    text_or_nothing(from)?.ok_or_else(|| serde::de::Error::custom("the answer is null"))
}

fn choices<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    let values = Option::<BTreeMap<String, Value>>::deserialize(from)?.unwrap_or_default();
    Ok(values.into_iter().map(|(k, v)| (k, as_text(v).unwrap_or_default())).collect())
}

/// A graded item, as the output has it.
#[derive(Clone, Debug, Serialize)]
pub struct Graded {
    /// As in the file.
    pub id: String,
    /// What the model said.
    pub response: String,
    /// See [`Verdict`].
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Column of VLM4D's tables, where it is known.
    #[serde(skip)]
    pub group: Option<Group>,
    /// How the file's judge decided, where it says so.
    #[serde(skip)]
    pub judged: Option<bool>,
}

/// Columns of VLM4D's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Real, from ego4d.
    Ego,
    /// Real, from davis or youtube-vos.
    Exo,
    /// Real, source unknown.
    Real,
    /// Synthetic, the thing asked about is there.
    Directional,
    /// Synthetic, the thing asked about is not there.
    FalsePositive,
}

impl Group {
    /// The column of a synthetic question with this answer.
    pub fn synthetic(answer: &str) -> Self {
        match is_false_positive(answer) {
            true => Self::FalsePositive,
            false => Self::Directional,
        }
    }

    fn is_real(self) -> bool {
        matches!(self, Self::Ego | Self::Exo | Self::Real)
    }
}

/// A graded file.
#[derive(Clone, Debug)]
pub struct GradedFile {
    /// As given.
    pub path: String,
    /// In the file's order.
    pub items: Vec<Graded>,
}

/// The published questions, to look up an item's video.
#[derive(Clone, Debug, Default)]
pub struct Questions(HashMap<(String, String), Group>);

impl Questions {
    /// Reads `real_mc.json` and `synthetic_mc.json` in `data` or in `data/QA`.
    ///
    /// # Errors
    /// If a file is missing or is not in VLM4D's format.
    pub fn read(data: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Published {
            id: String,
            video: String,
            question: String,
            #[serde(deserialize_with = "text")]
            answer: String,
        }
        let folder = if data.join("QA").is_dir() { data.join("QA") } else { data.to_owned() };
        let mut groups = HashMap::new();
        for name in ["real_mc.json", "synthetic_mc.json"] {
            let questions: Vec<Published> = read_list(&folder.join(name))?;
            for q in questions {
                let group = match name {
                    "synthetic_mc.json" => Group::synthetic(&q.answer),
                    _ if q.video.contains("/ego4d/") => Group::Ego,
                    _ => Group::Exo,
                };
                groups.insert((q.id, q.question), group);
            }
        }
        Ok(Self(groups))
    }

    fn group(&self, item: &Released) -> Option<Group> {
        self.0.get(&(item.id.clone(), item.question.clone())).copied()
    }
}

/// A JSON array in VLM4D's format.
fn read_list<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    read_json(path).map_err(|e| e.help("the file must be a JSON array in VLM4D's format"))
}

/// What a file of answers is.
const ANSWERS: &str = "the file must be a JSON array of objects with `id`, `question`, `response`, \
                       `ground_truth_answer` and, of multiple choice, `choices`";

/// Grades a file in VLM4D's released-output format. Items without `choices` are freeform. The
/// column of an item comes from `questions`; without them from the names of the file and its
/// folder, which in the release begin with `real` or `synthetic`.
///
/// # Errors
/// If the file cannot be read or is not in that format, an answer is none of its choices, or these
/// have no letters in order.
pub fn grade_file(path: &Path, questions: Option<&Questions>) -> Result<GradedFile> {
    let released: Vec<Released> = read_list(path).map_err(|e| e.help(ANSWERS))?;
    let subset = subset(path);
    let items: Result<Vec<Graded>> = released
        .into_iter()
        .map(|item| {
            let verdict = grade(&item, path)?;
            let group = questions.and_then(|q| q.group(&item)).or_else(|| match subset? {
                "real" => Some(Group::Real),
                _ => Some(Group::synthetic(&item.ground_truth_answer)),
            });
            let response = item.response.unwrap_or_default();
            Ok(Graded { id: item.id, response, verdict, group, judged: item.correct })
        })
        .collect();
    Ok(GradedFile { path: path.display().to_string(), items: items? })
}

fn grade(item: &Released, path: &Path) -> Result<Verdict> {
    let response = item.response.as_deref().unwrap_or_default();
    if item.choices.is_empty() {
        return Ok(grade_ff(&item.question, response, &item.ground_truth_answer));
    }
    let letters = ('A'..='Z').map(String::from).take(item.choices.len());
    if !item.choices.keys().cloned().eq(letters) {
        let (path, id) = (path.display(), &item.id);
        let keys = item.choices.keys().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
        return Err(Error::input(format!("{path}: `{id}`: the choices have the keys {keys}"))
            .help("`choices` stand under the letters A, B, C, … without a gap"));
    }
    let choices: Vec<String> = item.choices.values().cloned().collect();
    let is = |same: &dyn Fn(&str) -> bool| -> Vec<usize> {
        (0..choices.len()).filter(|&i| same(&choices[i])).collect()
    };
    // Exactly, or but for white space around: some of VLM4D's answers carry it.
    let mut gold = is(&|choice| choice == item.ground_truth_answer);
    if gold.is_empty() {
        gold = is(&|choice| choice.trim() == item.ground_truth_answer.trim());
    }
    if gold.is_empty() {
        let (path, id, answer) = (path.display(), &item.id, &item.ground_truth_answer);
        return Err(Error::input(format!("{path}: `{id}`: the answer `{answer}` is no choice"))
            .help("`ground_truth_answer` must equal the text of one of `choices`"));
    }
    Ok(grade_mc(response, &choices, &gold))
}

/// `real` or `synthetic`, from how the file's or its folder's name begins.
fn subset(path: &Path) -> Option<&'static str> {
    let names = [path.file_name(), path.parent().and_then(Path::file_name)];
    ["real", "synthetic"].into_iter().find(|subset| {
        names.iter().flatten().any(|name| name.to_string_lossy().starts_with(subset))
    })
}

/// A graded item and the file that it comes from: ids are unique within one.
#[derive(Serialize)]
struct Line<'a> {
    file: &'a str,
    #[serde(flatten)]
    item: &'a Graded,
}

/// One JSON object per item: `file`, `id`, `response`, `extracted`, `correct`, `grader`.
///
/// # Errors
/// If an item cannot be written as JSON, which no input causes.
pub fn jsonl(graded: &GradedFile) -> Result<String> {
    let lines = graded.items.iter().map(|item| Line { file: &graded.path, item });
    json_lines(&lines.collect::<Vec<_>>())
}

/// VLM4D's columns, in percent with the number of questions, a row per model and prompt (its real
/// and synthetic files share one); `–` where a column's questions are not known. Below it, where
/// the files carry a judge's `correct`, how far it agrees, and on which items not.
pub fn table(files: &[GradedFile]) -> String {
    let mut rows: BTreeMap<_, Vec<&Graded>> = BTreeMap::new();
    for file in files {
        // Equal names in different places are different runs.
        let place = Path::new(&file.path).parent().and_then(Path::parent);
        rows.entry((row_name(&file.path), place)).or_default().extend(&file.items);
    }
    let width = rows.keys().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut out = format!("{:width$}", "");
    for (head, _) in COLUMNS {
        let _ = write!(out, "  {head:>14}");
    }
    for ((name, _), items) in &rows {
        let _ = write!(out, "\n{name:width$}");
        for (_, has) in COLUMNS {
            let _ = write!(out, "  {:>14}", percent(items, has));
        }
    }
    out.push('\n');
    for file in files {
        agreement(file, &mut out);
    }
    out
}

/// Whether an item belongs in a column.
type Has = fn(Option<Group>) -> bool;

/// Heads and contents of the table's columns.
const COLUMNS: [(&str, Has); 7] = [
    ("ego", |g| g == Some(Group::Ego)),
    ("exo", |g| g == Some(Group::Exo)),
    ("real", |g| g.is_some_and(Group::is_real)),
    ("directional", |g| g == Some(Group::Directional)),
    ("false positive", |g| g == Some(Group::FalsePositive)),
    ("synthetic", |g| g.is_some_and(|g| !g.is_real())),
    ("overall", |_| true),
];

fn percent(items: &[&Graded], has: Has) -> String {
    let verdicts: Vec<bool> =
        items.iter().filter(|item| has(item.group)).map(|item| item.verdict.correct).collect();
    let correct = verdicts.iter().filter(|&&correct| correct).count();
    match verdicts.len() {
        0 => "–".to_owned(),
        n => format!("{:.1} ({n})", share(correct, n) * 100.0),
    }
}

/// The file's stem and its folder, without the subset that either begins with: the real and the
/// synthetic answers of one model to one prompt share it.
fn row_name(path: &str) -> String {
    let path = Path::new(path);
    let name = |part: Option<&std::ffi::OsStr>| {
        let name = part.map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
        let rest = ["real", "synthetic"].iter().find_map(|subset| name.strip_prefix(subset));
        rest.unwrap_or(&name).trim_start_matches('_').to_owned()
    };
    let (stem, folder) = (name(path.file_stem()), name(path.parent().and_then(Path::file_name)));
    [stem, folder].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

fn agreement(file: &GradedFile, out: &mut String) {
    let judged: Vec<_> = file.items.iter().filter_map(|item| Some((item, item.judged?))).collect();
    if judged.is_empty() {
        return;
    }
    let disagree: Vec<&str> = judged
        .iter()
        .filter(|(item, judged)| item.verdict.correct != *judged)
        .map(|(item, _)| item.id.as_str())
        .collect();
    let (n, agree) = (judged.len(), judged.len() - disagree.len());
    let share = share(agree, n) * 100.0;
    let _ = write!(out, "{}: agrees with `correct` on {agree} of {n} ({share:.2}%)", file.path);
    if !disagree.is_empty() {
        let (first, others) = disagree.split_at(disagree.len().min(10));
        let _ = write!(out, "; not on {}{}", first.join(", "), more(others.len()));
    }
    out.push('\n');
}
