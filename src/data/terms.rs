//! How often captions or questions speak of motion: spatiotemporal words in any JSON file.
//!
//! A file is JSON lines, or JSON: a list of records, or an object whose lists and values hold them
//! (COCO's `annotations`, videos of `ActivityNet`). A record's texts are all its strings, however deep,
//! but for paths, URLs and ids; a record without a word does not count.
//! Source: Figure 7 of the VLM4D paper, whose four kinds of words are direction, translation,
//! rotation and perspective; which words it counted it does not say, so these are ours.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::files::{io_reason, json_error, json_place, json_reason};

/// A word, in all its forms.
pub struct Term {
    /// Direction, translation, rotation or perspective.
    pub kind: &'static str,
    /// As it is shown.
    pub name: &'static str,
    pattern: Regex,
}

/// The words that are counted, kind by kind.
pub static TERMS: LazyLock<Vec<Term>> = LazyLock::new(|| {
    let forms = [
        ("direction", "left", "left(most|wards?)?"),
        ("direction", "right", "right(most|wards?)?"),
        ("direction", "up", "up(wards?|hill)?"),
        ("direction", "down", "down(wards?|hill)?"),
        ("direction", "forward", "forwards?"),
        ("direction", "backward", "backwards?"),
        ("direction", "towards", "towards?"),
        ("direction", "away", "away"),
        ("direction", "sideways", "sideways|lateral(ly)?"),
        ("direction", "direction", "directions?"),
        ("translation", "move", "mov(e|es|ed|ing|ements?)|motions?"),
        ("translation", "go, come", "go(es|ing)?|went|gone|com(e|es|ing)|came"),
        ("translation", "walk, run", "walk(s|ed|ing)?|run(s|ning)?|ran"),
        ("translation", "drive, ride", "driv(e|es|ing|en)|drove|rid(e|es|ing|den)|rode"),
        ("translation", "fly, swim", "fl(y|ies|ying|ew|own)|sw(im|ims|imming|am|um)"),
        ("translation", "jump, fall", "jump(s|ed|ing)?|fall(s|ing|en)?|fell"),
        ("translation", "closer, further", "closer|nearer|f[au]rther|approach(es|ed|ing)?"),
        ("rotation", "turn", "turn(s|ed|ing)?"),
        ("rotation", "rotate", "rotat(e|es|ed|ing|ions?|ional)|revol(ve|ves|ved|ving|utions?)"),
        ("rotation", "spin, roll", "spin(s|ning)?|spun|roll(s|ed|ing)?"),
        ("rotation", "flip, twist", "flip(s|ped|ping)?|twist(s|ed|ing)?|somersault(s|ed|ing)?"),
        ("rotation", "clockwise", "clockwise"),
        ("rotation", "counterclockwise", "(counter|anti)[- ]?clockwise"),
        ("perspective", "perspective", "perspectives?"),
        ("perspective", "viewpoint", "(view[- ]?points?|points? of view|vantage points?|pov)"),
        ("perspective", "camera", "cameras?"),
        ("perspective", "first person", "(first|third)[- ]person|ego-?centric|exo-?centric"),
    ];
    let term = |(kind, name, pattern)| {
        let pattern = Regex::new(&format!(r"(?i)\b(?:{pattern})\b")).expect("tested");
        Term { kind, name, pattern }
    };
    forms.into_iter().map(term).collect()
});

/// How often each of [`TERMS`] stands in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// The file's name without its ending.
    pub name: String,
    /// Records with at least one word.
    pub records: usize,
    /// Words in all.
    pub words: usize,
    /// By term, the records that have it.
    pub having: Vec<usize>,
    /// By term, how often it stands there.
    pub times: Vec<usize>,
    /// By kind of term, in [`TERMS`]' order, the records that have one.
    pub having_kind: Vec<(&'static str, usize)>,
}

/// Keys whose strings name things and say nothing.
const NAMES: [&str; 14] = [
    "answer_type",
    "audio",
    "dataset",
    "file_name",
    "filename",
    "id",
    "image",
    "images",
    "path",
    "question_type",
    "url",
    "video",
    "video_id",
    "videos",
];

impl Counts {
    /// Counts the words in a file; of `fields` alone where some are named.
    ///
    /// # Errors
    /// A file that cannot be read or holds no text.
    pub fn read(path: &Path, fields: &[String]) -> Result<Self> {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let zeros = vec![0; TERMS.len()];
        let mut kinds: Vec<(&str, usize)> = TERMS.iter().map(|term| (term.kind, 0)).collect();
        kinds.dedup();
        let mut counts = Self {
            name,
            records: 0,
            words: 0,
            having: zeros.clone(),
            times: zeros,
            having_kind: kinds,
        };
        let shown = path.display();
        if path.is_dir() {
            return Err(Error::input(format!("{shown}: is a folder")).help("name the files in it"));
        }
        let file =
            File::open(path).map_err(|e| Error::input(format!("{shown}: {}", io_reason(&e))))?;
        let reader = BufReader::new(file);
        if path.extension().is_some_and(|ending| ending == "jsonl") {
            for (line, text) in (1..).zip(reader.lines()) {
                let text =
                    text.map_err(|e| Error::input(format!("{shown}:{line}: {}", io_reason(&e))))?;
                if !text.trim().is_empty() {
                    let record: Value = serde_json::from_str(&text).map_err(|e| {
                        let ((_, column), what) = (json_place(&e), json_reason(&e));
                        Error::input(format!("{shown}:{line}:{column}: not JSON: {what}"))
                    })?;
                    counts.add(&record, fields);
                }
            }
        } else {
            let json: Value = serde_json::from_reader(reader).map_err(|e| {
                json_error(path, "not JSON: ", &e)
                    .help("give JSON, or JSON lines in a file named .jsonl")
            })?;
            for record in records(&json) {
                counts.add(record, fields);
            }
        }
        match counts.records {
            0 if fields.is_empty() => Err(Error::input(format!("{shown}: holds no text"))),
            0 => Err(Error::input(format!("{shown}: holds no text in {}", fields.join(", ")))
                .help("--field names the keys whose strings are counted")),
            _ => Ok(counts),
        }
    }

    fn add(&mut self, record: &Value, fields: &[String]) {
        let mut text = String::new();
        collect(record, fields.is_empty(), fields, &mut text);
        let words = text.split_whitespace().filter(|w| w.contains(char::is_alphabetic)).count();
        if words == 0 {
            return;
        }
        self.records += 1;
        self.words += words;
        let mut kinds: Vec<&str> = Vec::new();
        for (i, term) in TERMS.iter().enumerate() {
            let times = term.count(&text);
            self.times[i] += times;
            self.having[i] += usize::from(times > 0);
            if times > 0 && kinds.last() != Some(&term.kind) {
                kinds.push(term.kind);
            }
        }
        for (kind, n) in &mut self.having_kind {
            *n += usize::from(kinds.contains(kind));
        }
    }
}

impl Term {
    fn count(&self, text: &str) -> usize {
        let found = self.pattern.find_iter(text);
        // `counter-clockwise` is another term
        let is_own = |at: usize| {
            let before = text[..at].trim_end_matches(['-', ' ']).to_lowercase();
            self.name != "clockwise" || !(before.ends_with("counter") || before.ends_with("anti"))
        };
        found.filter(|found| is_own(found.start())).count()
    }
}

/// The records of a JSON file: see this file's head.
fn records(json: &Value) -> Vec<&Value> {
    let Value::Object(fields) = json else { return items(json) };
    // COCO: what else it holds is about the set.
    if let Some(annotations) = fields.get("annotations") {
        return items(annotations);
    }
    match fields.values().any(|value| value.is_array() || value.is_object()) {
        true => fields.values().flat_map(items).collect(),
        false => vec![json],
    }
}

/// The items of a list, or the one thing that it is.
fn items(value: &Value) -> Vec<&Value> {
    value.as_array().map_or_else(|| vec![value], |items| items.iter().collect())
}

/// Adds the strings of `value`, one a line; `taken` says whether its key was asked for.
fn collect(value: &Value, taken: bool, fields: &[String], text: &mut String) {
    match value {
        Value::String(string) if taken && !is_path(string) => {
            text.push_str(string);
            text.push('\n');
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, taken, fields, text)),
        Value::Object(object) => {
            for (key, value) in object {
                let taken = match fields.is_empty() {
                    true => !NAMES.contains(&&*key.to_lowercase()),
                    false => taken || fields.contains(key),
                };
                collect(value, taken, fields, text);
            }
        }
        _ => {}
    }
}

/// Whether a string is a path or a URL: slashes or a file's ending, and no white space.
fn is_path(text: &str) -> bool {
    let ending = Path::new(text).extension().is_some_and(|e| (2..=4).contains(&e.len()));
    !text.contains(char::is_whitespace) && (text.contains("://") || text.contains('/') || ending)
}
