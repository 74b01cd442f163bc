//! Which direction of motion is taken for which: answers' texts → directions → counts.

use std::sync::LazyLock;

use regex::Regex;

use crate::data::vlm4d::Format;
use crate::eval::predict::Prediction;

/// The directions that answers name, in the order of the table.
pub const NAMES: [&str; 11] = [
    "left",
    "right",
    "up",
    "down",
    "towards",
    "away",
    "forwards",
    "backwards",
    "clockwise",
    "counter-clockwise",
    "not moving",
];

/// The last column: no answer, no direction, or two.
pub const OTHER: &str = "other";

/// Patterns, tried in this order; what one has matched is taken out before the next.
static RULES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        // "left to right" is one direction, and none of these speaks of motion.
        (r"\b(?:left|right)[ -]hand\b|\bpick(?:s|ed|ing)? up\b", ""),
        (r"\b(?:from )?(?:the )?left to (?:the )?right\b", "right"),
        (r"\b(?:from )?(?:the )?right to (?:the )?left\b", "left"),
        (r"\b(?:counter|anti)[ -]?clockwise\b", "counter-clockwise"),
        (r"\bclockwise\b", "clockwise"),
        (r"\bmoving straight and not turning\b", "forwards"),
        (
            r"\bnot (?:moving|spinning|rotating|turning)\b|\bstay(?:s|ed|ing)? in place\b|\bno (?:motion|movement|rotation)\b|\bstationary\b|\bin no direction\b",
            "not moving",
        ),
        (r"\b(?:coming |getting )?closer\b(?: towards?)?|\btowards?\b|\bapproach(?:es|ing)?\b", "towards"),
        (r"\b(?:further |farther )?away\b|\bfurther\b|\bfarther\b", "away"),
        (r"\bleft(?:wards?)?\b", "left"),
        (r"\bright(?:wards?)?\b", "right"),
        (r"\bup(?:wards?|hill)?\b", "up"),
        (r"\bdown(?:wards?|hill)?\b", "down"),
        (r"\bforwards?\b|\bstraight\b", "forwards"),
        (r"\bbackwards?\b", "backwards"),
    ]
    .into_iter()
    .map(|(pattern, name)| (Regex::new(pattern).expect("a constant, tested"), name))
    .collect()
});

/// The one direction that a text names; nothing where it names none or several.
pub fn direction(text: &str) -> Option<&'static str> {
    let mut rest = text.to_lowercase();
    let mut found = None;
    for (rule, name) in RULES.iter() {
        if !rule.is_match(&rest) {
            continue;
        }
        rest = rule.replace_all(&rest, " ").into_owned();
        match found {
            _ if name.is_empty() => {}
            Some(other) if other != *name => return None,
            _ => found = Some(*name),
        }
    }
    found
}

/// How often each direction was taken for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    /// Directions that are the right answer to some question.
    pub rows: Vec<String>,
    /// Directions that were answered or right, and [`OTHER`].
    pub columns: Vec<String>,
    /// `[rows][columns]`.
    pub counts: Vec<Vec<usize>>,
}

/// Counts the questions whose right answer names one direction. Nothing where there is none.
pub fn confusion(predictions: &[Prediction], format: Format) -> Option<Confusion> {
    let pairs: Vec<(&str, &str)> = predictions
        .iter()
        .filter(|p| p.format == format)
        .filter_map(|p| Some((direction(&p.gold)?, answered(p).unwrap_or(OTHER))))
        .collect();
    let named = |of: &dyn Fn(&str) -> bool| -> Vec<String> {
        NAMES.iter().filter(|name| of(name)).map(|name| (*name).to_owned()).collect()
    };
    let rows = named(&|name| pairs.iter().any(|(gold, _)| *gold == name));
    let mut columns = named(&|name| pairs.iter().any(|(a, b)| *a == name || *b == name));
    columns.push(OTHER.to_owned());
    let count = |gold: &String, answer: &String| {
        pairs.iter().filter(|(a, b)| *a == gold && *b == answer).count()
    };
    let counts = rows.iter().map(|gold| columns.iter().map(|a| count(gold, a)).collect()).collect();
    (!pairs.is_empty()).then_some(Confusion { rows, columns, counts })
}

/// The direction that a response names: its letter's choice, or its own words.
fn answered(p: &Prediction) -> Option<&'static str> {
    let extracted = p.extracted.as_deref()?;
    match p.format {
        Format::Ff => direction(extracted),
        Format::Mc => direction(choice(p, extracted)?),
    }
}

/// The text of the choice with this letter.
pub fn choice<'a>(p: &'a Prediction, letter: &str) -> Option<&'a str> {
    let letter = letter.bytes().next()?;
    let place = usize::from(letter.checked_sub(b'A')?);
    p.choices.get(place).map(String::as_str)
}
