//! Which direction of motion is taken for which: answers' directions → counts.

use crate::data::vlm4d::Format;
use crate::eval::answer::{NAMES, across, direction};
use crate::eval::grade::{GRADER, conclusion};
use crate::eval::predict::Prediction;

/// The last column: no answer, no direction, or two.
pub const OTHER: &str = "other";

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

/// The direction that a response names: its letter's choice, or its own words. A right one is the
/// gold answer's, however it is worded.
fn answered(p: &Prediction) -> Option<&'static str> {
    if p.correct {
        return direction(&p.gold);
    }
    let extracted = p.extracted.as_deref()?;
    match p.format {
        // What the rules extract is a normal form, in words of its own.
        Format::Ff if p.grader == GRADER => direction(&across(&conclusion(&p.response))),
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
