//! Grading by rules. In: a response and its gold answer; or a whole file in VLM4D's
//! released-output format. Out: a [`Verdict`] per response, and the columns of VLM4D's tables.
//!
//! The rules are general and guess nothing: a response without an answer, or with two, is wrong
//! and its `extracted` is none. Multiple choice takes the last letter (or choice's text) that is
//! stated as a conclusion. Freeform compares normal forms and holds to MMVU's criterion, from
//! which VLM4D's judge descends: no word-for-word match, but unambiguous equivalence; in doubt,
//! wrong.

mod choice;
mod freeform;
mod released;
mod rewrites;

use std::sync::LazyLock;

use regex::Regex;
use serde::Serialize;

pub use self::choice::grade_mc;
pub use self::freeform::{conclusion, grade_ff};
pub use self::released::{
    Graded, GradedFile, Group, Questions, Released, grade_file, jsonl, table,
};

/// Name under which verdicts by these rules go in `predictions.jsonl`.
pub const GRADER: &str = "rules";
/// Name of the verdicts by the letters' probabilities.
pub const LOGPROB: &str = "logprob";

/// What a response was taken to answer, and whether that is right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The letter, as `B`, or the freeform answer's normal form; none where there is no answer or
    /// more than one.
    pub extracted: Option<String>,
    /// Whether the answer equals the gold one.
    pub correct: bool,
    /// Who graded: [`GRADER`] or [`LOGPROB`].
    pub grader: &'static str,
}

impl Verdict {
    fn new(extracted: Option<String>, correct: bool) -> Self {
        Self { extracted, correct, grader: GRADER }
    }
}

/// A regular expression of these files, compiled at first use.
fn rule(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the patterns of these files are constants and tested")
}

/// The response without its thoughts, Markdown and LaTeX. `\boxed{…}` and `<answer>…</answer>`
/// become the words that they stand for; signs of full width and other quotes the usual ones.
fn plain(response: &str) -> String {
    // Up to the last `</think>`; and a thought that never ends.
    static THOUGHT: LazyLock<Regex> =
        LazyLock::new(|| rule(r"(?is)^.*</think(?:ing)?>|<think(?:ing)?>.*$"));
    static FONT: LazyLock<Regex> = LazyLock::new(|| {
        rule(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|operatorname)\s*\{([^{}]*)\}")
    });
    static BOXED: LazyLock<Regex> = LazyLock::new(|| {
        rule(r"\\boxed\s*\{([^{}]*)\}|(?i:<(?:final_)?answer>)(.*?)(?i:</(?:final_)?answer>|$)")
    });
    let text = THOUGHT.replace_all(response.trim_end(), "");
    // Twice: `\text{\textbf{C}}`.
    let text = FONT.replace_all(&text, "$1");
    let text = FONT.replace_all(&text, "$1");
    let text = BOXED.replace_all(&text, " final answer: $1$2\n");
    text.chars()
        .filter_map(|c| match c {
            '*' | '$' | '`' | '#' | '~' | '\\' => None,
            '‘' | '’' | '“' | '”' | '"' | '「' | '」' => Some('\''),
            '_' | '\u{a0}' | '\u{3000}' => Some(' '),
            '。' | '．' => Some('.'),
            // The other signs and letters of full width, as `：`, `（` and `Ｃ`.
            '！'..='～' => char::from_u32(u32::from(c) - 0xfee0),
            c => Some(c),
        })
        .collect()
}

/// Phrases that introduce a conclusion. `final` marks those after which nothing earlier counts.
static CONCLUSION: LazyLock<Regex> = LazyLock::new(|| {
    rule(concat!(
        r"(?ix)",
        r"(?P<final>\bfinal\s+(?:answer|choice|option)(?:\s+(?:to|for)\s+(?:the|this)\s+question)?",
        r"\s*(?:(?:is|must\s+be|should\s+be|would\s+be|will\s+be)\b\s*(?:(?:most\s+)?(?:likely|probably)\b)?\s*[:=]?|'?\s*(?:[:=]|->|→)|\n))",
        r"|(?:\bans(?:wer)?|\b(?:correct|right|best|closest|correct\s+answer)\s+(?:option|choice|letter))",
        r"(?:\s+(?:to|for)\s+(?:the|this)\s+question)?",
        r"\s*(?:(?:is|must\s+be|should\s+be|would\s+be|will\s+be)\b\s*(?:(?:most\s+)?(?:likely|probably)\b)?\s*[:=]?|'?\s*(?:[:=]|->|→))",
        r"|答案\s*(?:应该|应|可能)?\s*(?:是|为|选|:)\s*:?|(?:故|因此|所以|应该?|我)选择?\s*(?:是|为)?\s*:?",
    ))
});
