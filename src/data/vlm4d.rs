//! VLM4D's question files → [`Entry`]s and prompts.
//!
//! A data folder holds `QA/real_mc.json` and `QA/synthetic_mc.json` (or the two
//! at its top): JSON arrays of `{id, video, question, choices: {A, B, …}, answer}`
//! where `answer` is the *text* of a choice. Own questions in the same form work
//! too, as `<subset>_mc.json`.
//! Source: `shijiezhou/VLM4D` on the hub; prompts: `ShijieZhou-UCLA/VLM4D`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::entry::Entry;
use super::fault::{Fault, Inspected, fault, read_text};
use super::medium::Medium;
use super::names::name_in;
use crate::error::{Error, Result, more};
use crate::files::{json_place, json_reason};

/// How a question is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Multiple choice: the choices are shown, the answer is a letter.
    Mc,
    /// Freeform: the same question without its choices, the answer is text.
    Ff,
}

impl Format {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Mc, Self::Ff];

    /// As in recipes and files: `mc` or `ff`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mc => "mc",
            Self::Ff => "ff",
        }
    }
}

/// What the prompt asks the model to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptStyle {
    /// Direct output: the answer alone.
    Do,
    /// Chain of thought: reasoning, then the answer.
    Cot,
}

/// Reads a subset's questions as far as that goes.
///
/// # Errors
/// Where the folder has no file for the subset.
pub(super) fn inspect(data_dir: &Path, subset: &str) -> Result<Inspected<Entry>> {
    let mut read = inspect_file(find(data_dir, subset)?, subset);
    let media = read.items.iter_mut().flat_map(|entry| &mut entry.media);
    for file in media.flat_map(Medium::files_mut) {
        *file = name_in(data_dir, file);
    }
    Ok(read)
}

/// The letter of a choice: 0 is A.
///
/// # Panics
/// Beyond 26 choices, which the reading refuses.
pub fn letter(choice: usize) -> char {
    char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"[choice])
}

/// The user's text for a question, word for word as VLM4D's evaluation has it, but for white space
/// at the ends of questions and choices.
pub fn prompt(question: &str, choices: &[String], format: Format, style: PromptStyle) -> String {
    let mut text = format!("\nQuestion: {question}\n");
    if format == Format::Mc {
        for (i, choice) in choices.iter().enumerate() {
            let _ = writeln!(text, "{}: {choice}", letter(i));
        }
    }
    let task = match (format, style) {
        (Format::Mc, PromptStyle::Do) => "Do not generate any intermediate reasoning process. \
             Answer directly with the option letter from the given choices.\n"
            .into(),
        (Format::Ff, PromptStyle::Do) => "Do not generate any intermediate reasoning process. \
             Directly output the final short answer.\n"
            .into(),
        (Format::Mc, PromptStyle::Cot) => format!(
            "Answer the given multiple-choice question step by step. Begin by explaining your \
             reasoning process clearly. In the last sentence of your response, you must conclude \
             by stating the final answer using the following format: 'Therefore, the final answer \
             is: $LETTER' (without quotes), where $LETTER must be only one of the options ({}). \
             Think step by step before answering.",
            letters(choices.len())
        ),
        (Format::Ff, PromptStyle::Cot) => "Answer the given question step by step. Begin by \
             explaining your reasoning process clearly. Conclude by stating the final answer using \
             the following format: 'Therefore, the final answer is: 'Answer: $ANSWER' (without \
             quotes), where $ANSWER is the final answer of the question. Think step by step before \
             answering."
            .into(),
    };
    format!("{text}\n{task}")
}

/// What is worth telling about a question set, one line each: repeated gold
/// choices, and the same question asked twice on one video. Nothing of conversations.
pub(super) fn notes(entries: &[Entry]) -> Vec<String> {
    let [mut alike, mut twice] = [vec![], vec![]];
    let mut asked: BTreeMap<(&[Medium], String), &str> = BTreeMap::new();
    for q in entries.iter().filter(|entry| !entry.is_conversation()) {
        let n = q.gold_choices.len();
        if n > 1 {
            let (number, either) = match n {
                2 => ("two".to_owned(), "either"),
                n => (n.to_string(), "each"),
            };
            alike.push(format!("{} has {number} identical choices; {either} letter counts", q.id));
        }
        if let Some(first) = asked.insert((&q.media, q.question.to_lowercase()), &q.id) {
            twice.push(format!("{first} and {} are the same question on the same video", q.id));
        }
    }
    [few(alike), few(twice)].concat()
}

/// The first of the notes of one kind, and how many more there are.
fn few(mut notes: Vec<String>) -> Vec<String> {
    const FEW: usize = 3;
    let more = more(notes.len().saturating_sub(FEW));
    notes.truncate(FEW);
    if let Some(last) = notes.last_mut() {
        *last += &more;
    }
    notes
}

/// `A or B or C or D`.
fn letters(n: usize) -> String {
    (0..n).map(|i| letter(i).to_string()).collect::<Vec<_>>().join(" or ")
}

pub(super) fn find(data_dir: &Path, subset: &str) -> Result<PathBuf> {
    let name = format!("{subset}_mc.json");
    let places = [data_dir.join("QA").join(&name), data_dir.join(&name)];
    places.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        let found = subsets(data_dir);
        let help = if found.is_empty() {
            "the folder must hold VLM4D's question files, in QA/ or at its top".to_owned()
        } else {
            format!("the folder has the subsets {}", found.join(", "))
        };
        Error::input(format!("{}: no `QA/{name}` and no `{name}`", data_dir.display())).help(help)
    })
}

/// The subsets a data folder has files for, sorted.
pub fn subsets(data_dir: &Path) -> Vec<String> {
    let mut found = BTreeSet::new();
    for folder in [data_dir.join("QA"), data_dir.to_path_buf()] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            found.extend(name.strip_suffix("_mc.json").map(str::to_owned));
        }
    }
    found.into_iter().collect()
}

fn inspect_file(path: PathBuf, subset: &str) -> Inspected<Entry> {
    let text = match read_text(&path) {
        Ok(text) => text,
        Err(fault) => return Inspected::lost(path, fault),
    };
    let items: Vec<Value> = match serde_json::from_str(&text) {
        Ok(Value::Array(items)) => items,
        Ok(_) => {
            return Inspected::lost(path, fault("not a JSON array of questions", ITEM));
        }
        Err(e) => {
            let what = format!("not valid JSON: {}", json_reason(&e));
            let fault = Fault { place: Some(json_place(&e)), what, help: "" };
            return Inspected::lost(path, fault);
        }
    };
    let mut ids = BTreeSet::new();
    let mut read = Inspected { path, items: Vec::with_capacity(items.len()), faults: vec![] };
    for (i, item) in items.iter().enumerate() {
        let name = match item.get("id").and_then(text_of) {
            Some(id) => format!("item {i} (`{}`)", id.trim()),
            None => format!("item {i}"),
        };
        let question =
            parse(item, subset).and_then(|question| match ids.insert(question.id.clone()) {
                true => Ok(question),
                false => {
                    Err(fault("this `id` stands in it twice", "give every question its own id"))
                }
            });
        match question {
            Ok(question) => read.items.push(question),
            Err(fault) => read.faults.push(fault.of(&name)),
        }
    }
    read.not_empty()
}

/// What an item of a question file looks like.
const ITEM: &str = "an item is {id, video, question, choices: {A, B, …}, answer}";

fn parse(item: &Value, subset: &str) -> Result<Entry, Fault> {
    let object = item.as_object().ok_or_else(|| fault("not an object", ITEM))?;
    let choices = choices(object)?;
    let gold = field(object, "answer")?;
    let gold_choices: Vec<usize> = (0..choices.len()).filter(|&i| choices[i] == gold).collect();
    if gold_choices.is_empty() {
        return Err(fault(
            format!("`answer` is \"{gold}\", which is none of the `choices`"),
            "the answer is the text of a choice, not its letter",
        ));
    }
    let video = video(&field(object, "video")?)?;
    let source = source(&video, subset);
    let question = field(object, "question")?;
    choices.iter().chain([&question]).try_for_each(|text| Fault::no_pads(text))?;
    Ok(Entry {
        id: format!("{subset}/{}", field(object, "id")?),
        subset: subset.to_owned(),
        group: group(subset, &source, &gold),
        source,
        media: vec![Medium::video(video)],
        question,
        choices,
        gold,
        gold_choices,
        ..Entry::default()
    })
}

/// The file gives counts as integers: they count as their digits.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A field's text, trimmed.
fn field(object: &Map<String, Value>, name: &str) -> Result<String, Fault> {
    let value = object.get(name).ok_or_else(|| fault(format!("`{name}` is missing"), ITEM))?;
    let text = text_of(value)
        .ok_or_else(|| fault(format!("`{name}` is neither text nor a number"), ITEM))?;
    match text.trim() {
        "" => Err(fault(format!("`{name}` is empty"), ITEM)),
        trimmed => Ok(trimmed.to_owned()),
    }
}

fn choices(object: &Map<String, Value>) -> Result<Vec<String>, Fault> {
    const HELP: &str = "give 2 to 26 choices under the letters A, B, C, … without a gap";
    let choices = object
        .get("choices")
        .and_then(Value::as_object)
        .ok_or_else(|| fault("`choices` is missing or not an object", HELP))?;
    if !(2..=26).contains(&choices.len()) {
        return Err(fault(format!("`choices` has {} entries", choices.len()), HELP));
    }
    (0..choices.len())
        .map(|i| {
            let key = letter(i).to_string();
            field(choices, &key).map_err(|f| fault(format!("`choices`: {}", f.what), HELP))
        })
        .collect()
}

/// `https://…/resolve/main/videos_real/davis/x.mp4` → `videos_real/davis/x.mp4`;
/// what is no URL is a path already.
fn video(text: &str) -> Result<PathBuf, Fault> {
    match text.split_once("/resolve/main/") {
        Some((_, path)) if !path.is_empty() => Ok(path.into()),
        None if !text.contains("://") => Ok(text.into()),
        _ => Err(fault(
            format!("`video` is the URL \"{text}\", which has no path after /resolve/main/"),
            "give the video's path relative to the data folder",
        )),
    }
}

/// The name of the video's folder, `videos_synthetic` being `synthetic`.
fn source(video: &Path, subset: &str) -> String {
    let folder = video.parent().and_then(Path::file_name).map(|name| name.to_string_lossy());
    match folder {
        Some(name) => name.strip_prefix("videos_").unwrap_or(&name).to_owned(),
        None => subset.to_owned(),
    }
}

/// Whether a synthetic question with this answer asks about what is not there. Source: VLM4D's
/// evaluation.
pub fn is_false_positive(answer: &str) -> bool {
    let answer = answer.trim().to_lowercase();
    answer == "no" || answer.starts_with("no ")
}

/// The paper's groups.
fn group(subset: &str, source: &str, answer: &str) -> String {
    match (subset, source) {
        ("synthetic", _) if is_false_positive(answer) => "false-positive",
        ("synthetic", _) => "directional",
        (_, "davis" | "youtube-vos") => "exo-centric",
        (_, "ego4d") => "ego-centric",
        (_, own) => own,
    }
    .to_owned()
}
