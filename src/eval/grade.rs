//! Grading by rules. In: a response and its gold answer; or a whole file in VLM4D's
//! released-output format. Out: a [`Verdict`] per response, and the columns of VLM4D's tables.
//!
//! The rules are general and guess nothing: a response without an answer, or with two, is wrong
//! and its `extracted` is none. Multiple choice takes the last letter (or choice's text) that is
//! stated as a conclusion. Freeform compares normal forms and holds to MMVU's criterion, from
//! which VLM4D's judge descends: no word-for-word match, but unambiguous equivalence; in doubt,
//! wrong.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};

/// Name under which verdicts by these rules go in `predictions.jsonl`.
pub const GRADER: &str = "rules";

/// What a response was taken to answer, and whether that is right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The letter, as `B`, or the freeform answer's normal form; none where there is no answer or
    /// more than one.
    pub extracted: Option<String>,
    /// Whether the answer equals the gold one.
    pub correct: bool,
    /// Who graded: [`GRADER`].
    pub grader: &'static str,
}

impl Verdict {
    fn new(extracted: Option<String>, correct: bool) -> Self {
        Self { extracted, correct, grader: GRADER }
    }
}

/// A regular expression of this file, compiled at first use.
fn rule(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the patterns of this file are constants and tested")
}

// ---------------------------------------------------------------------------------------------
// Multiple choice

/// What a stretch of text answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// This choice, counted from 0.
    Choice(usize),
    /// Several choices, a letter against its own choice's text, or a letter that is no choice.
    Unclear,
    /// Nothing.
    Absent,
}

/// Grades a response to a multiple-choice question. `choices` in the order of their letters;
/// `gold` the right ones, counted from 0 (several where choices are identical).
pub fn grade_mc(response: &str, choices: &[String], gold: &[usize]) -> Verdict {
    match answer(&plain(response), choices) {
        Answer::Choice(i) => Verdict::new(Some(letter(i).to_string()), gold.contains(&i)),
        Answer::Unclear | Answer::Absent => Verdict::new(None, false),
    }
}

/// `0` → `A`; choices beyond `Z` do not occur.
fn letter(index: usize) -> char {
    u8::try_from(index).map_or('?', |i| char::from(b'A'.saturating_add(i)))
}

/// The response without Markdown and LaTeX. `\boxed{…}` and `<answer>…</answer>` become the words
/// that they stand for.
fn plain(response: &str) -> String {
    static FONT: LazyLock<Regex> = LazyLock::new(|| {
        rule(r"\\(?:text|textbf|textit|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}")
    });
    static BOXED: LazyLock<Regex> =
        LazyLock::new(|| rule(r"\\boxed\s*\{([^{}]*)\}|(?i:<answer>)(.*?)(?i:</answer>|$)"));
    let text = FONT.replace_all(response, "$1");
    let text = BOXED.replace_all(&text, " final answer: $1$2\n");
    text.chars()
        .filter_map(|c| match c {
            '*' | '$' | '`' | '#' | '~' | '\\' => None,
            '‘' | '’' | '“' | '”' | '"' => Some('\''),
            '：' => Some(':'),
            '（' => Some('('),
            '）' => Some(')'),
            '。' => Some('.'),
            c => Some(c),
        })
        .collect()
}

/// Phrases that introduce a conclusion. `final` marks those after which nothing earlier counts.
static CONCLUSION: LazyLock<Regex> = LazyLock::new(|| {
    rule(concat!(
        r"(?ix)",
        r"(?P<final>\bfinal\s+(?:answer|choice|option)(?:\s+(?:to|for)\s+(?:the|this)\s+question)?",
        r"\s*(?:(?:is|must\s+be|should\s+be|would\s+be|will\s+be)\b\s*[:=]?|[:=]))",
        r"|(?:\banswer|\b(?:correct|right|best|closest|correct\s+answer)\s+(?:option|choice|letter))",
        r"(?:\s+(?:to|for)\s+(?:the|this)\s+question)?",
        r"\s*(?:(?:is|must\s+be|should\s+be|would\s+be|will\s+be)\b\s*[:=]?|[:=])",
        r"|答案\s*(?:是|为|:)\s*:?",
    ))
});

/// The last conclusion counts; without one the first or last line, if it is in the form of an
/// answer; without that the text of a single choice in a response of one sentence.
fn answer(text: &str, choices: &[String]) -> Answer {
    let marks: Vec<_> = CONCLUSION.captures_iter(text).collect();
    let any_final = marks.iter().any(|mark| mark.name("final").is_some());
    for mark in marks.iter().rev() {
        let (start, end) = mark.get(0).map_or((0, 0), |m| (m.start(), m.end()));
        let is_final = mark.name("final").is_some();
        let after = text[end..].trim_start_matches(|c: char| !c.is_alphanumeric());
        let mut found = lettered(after, choices);
        if found == Answer::Absent && (is_final || !any_final) {
            // `final answer is:` and nothing behind it concludes from the sentence before.
            let before = if is_final { last_sentence(&text[..start]) } else { "" };
            let sentence = if after.is_empty() { before } else { first_sentence(after) };
            found = named(sentence, choices);
        }
        if found != Answer::Absent || is_final {
            return found;
        }
    }
    unmarked(text, choices)
}

/// An answer in a response that announces none.
fn unmarked(text: &str, choices: &[String]) -> Answer {
    static AT_END: LazyLock<Regex> =
        LazyLock::new(|| rule(r"^[^.:]*\s\(?([B-Z]|\([A-Z])\)?[.!]?$"));
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let (Some(&first), Some(&last)) = (lines.first(), lines.last()) else {
        return Answer::Absent;
    };
    if lines.iter().filter(|line| lettered(line, choices) != Answer::Absent).count() > 2 {
        // The choices are listed, not chosen from.
        return Answer::Absent;
    }
    match (lettered(first, choices), lettered(last, choices)) {
        (Answer::Absent, Answer::Absent) => {}
        (Answer::Absent, found) | (found, Answer::Absent) => return found,
        (a, b) => return if a == b { a } else { Answer::Unclear },
    }
    let sentence = last_sentence(last);
    if let Some(end) = AT_END.captures(sentence).and_then(|c| c.get(1)) {
        return if doubts(sentence) > 0 { Answer::Absent } else { lettered(end.as_str(), choices) };
    }
    if lines.len() > 1 || sentence.len() < first.len() {
        return lettered(sentence, choices);
    }
    named(sentence, choices)
}

/// The answer of a text that starts with a letter: `B`, `(b)`, `B.`, `B: text`, `Option B`.
fn lettered(text: &str, choices: &[String]) -> Answer {
    static LETTER: LazyLock<Regex> = LazyLock::new(|| {
        rule(concat!(
            r"^[^\p{Alphabetic}\p{N}]*(?:(?i:option|choice|letter|answer)\b[^\p{Alphabetic}\p{N}]*)?",
            r"(?P<letter>[A-Za-z])(?P<rest>$|[^A-Za-z0-9].*)",
        ))
    });
    let line = text.lines().next().unwrap_or_default().trim_end();
    let Some(found) = LETTER.captures(line) else {
        return Answer::Absent;
    };
    let (name, rest) = (found["letter"].as_bytes()[0], &found["rest"]);
    let index = usize::from(name.to_ascii_uppercase() - b'A');
    let own = choices.get(index).map(|c| words(c)).unwrap_or_default();
    let is_own = !own.is_empty() && words(rest).starts_with(&own);
    if !is_own && (is_word(name, rest) || denied(rest)) {
        return Answer::Absent;
    }
    if index >= choices.len() || another(rest, index, choices) || listed(text, rest, index, choices)
    {
        return Answer::Unclear;
    }
    Answer::Choice(index)
}

/// Whether the letter is the article `a`, the pronoun `I`, or any small letter within a sentence.
fn is_word(name: u8, rest: &str) -> bool {
    if name.is_ascii_uppercase() && name != b'A' && name != b'I' {
        return false;
    }
    let next = rest.trim_start();
    if name == b'I' && next.starts_with('\'') {
        return true;
    }
    if next.len() == rest.len() || !next.starts_with(char::is_alphanumeric) {
        return false;
    }
    let verdict = ["because", "since", "as", "is", "or", "and"];
    let is_letter = next.starts_with(char::is_uppercase)
        || words(next).first().is_some_and(|word| verdict.contains(&word.as_str()));
    name.is_ascii_lowercase() || name == b'I' || !is_letter
}

/// Whether a letter is named only to be rejected: `Option A is incorrect`.
fn denied(rest: &str) -> bool {
    static DENIAL: LazyLock<Regex> = LazyLock::new(|| {
        rule(
            r"(?i)^[^a-z]*(?:\([^)]*\)\s*)?(?:is|are|can|does)\s*(?:n't|not|incorrect|wrong|excluded|ruled)",
        )
    });
    DENIAL.is_match(rest)
}

/// Whether what follows the letter names another choice: `A or B`, `A/B`, or another choice's
/// text where its own should stand.
fn another(rest: &str, index: usize, choices: &[String]) -> bool {
    static MORE: LazyLock<Regex> = LazyLock::new(|| {
        rule(concat!(
            r"^[^\p{Alphabetic}\p{N}]*(?:(?i:or|and)\b[^\p{Alphabetic}\p{N}]*(?:(?i:option)\s+)?[^\p{Alphabetic}\p{N}]*)?",
            r"(?P<letter>[A-Z])(?P<rest>$|[^A-Za-z0-9].*)",
        ))
    });
    if let Some(more) = MORE.captures(after_text(rest, &choices[index])) {
        let name = more["letter"].as_bytes()[0];
        let other = usize::from(name - b'A');
        if other != index && other < choices.len() && !is_word(name, &more["rest"]) {
            return true;
        }
    }
    let said = words(first_sentence(rest));
    let is = |i: usize| words(&choices[i]) == said;
    !said.is_empty() && !is(index) && (0..choices.len()).any(is)
}

/// What follows a choice's own text, if that is what stands here.
fn after_text<'a>(rest: &'a str, choice: &str) -> &'a str {
    let text = rest.trim_start_matches(|c: char| !c.is_alphanumeric());
    let choice = choice.trim();
    match (text.get(..choice.len()), text.get(choice.len()..)) {
        (Some(own), Some(after)) if own.eq_ignore_ascii_case(choice) => after,
        _ => rest,
    }
}

/// Whether the letter opens a list of the choices: `A: left⏎B: right`.
fn listed(text: &str, rest: &str, index: usize, choices: &[String]) -> bool {
    let (Some(own), Some(next)) = (choices.get(index), choices.get(index + 1)) else {
        return false;
    };
    let line = text.lines().skip(1).map(str::trim).find(|l| !l.is_empty()).unwrap_or_default();
    let follows = line.trim_start_matches(|c: char| !c.is_alphanumeric());
    words(rest) == words(own)
        && follows.strip_prefix(letter(index + 1)).is_some_and(|r| words(r) == words(next))
}

/// The choice whose text a sentence is or contains, if it is one only and the sentence neither
/// denies nor doubts it.
fn named(sentence: &str, choices: &[String]) -> Answer {
    let said = words(sentence);
    if said.is_empty() {
        return Answer::Absent;
    }
    let texts: Vec<Vec<String>> = choices.iter().map(|c| words(c)).collect();
    if let Some(i) = texts.iter().position(|text| *text == said) {
        return Answer::Choice(i);
    }
    let found: Vec<usize> = (0..texts.len()).filter(|&i| within(&texts[i], &said)).collect();
    // `left` inside `left and towards the camera` is part of the longer choice, not a second one.
    let is_part =
        |i: usize| found.iter().any(|&j| texts[i] != texts[j] && within(&texts[i], &texts[j]));
    let mut kept: Vec<usize> = found.iter().copied().filter(|&i| !is_part(i)).collect();
    kept.dedup_by(|a, b| texts[*a] == texts[*b]);
    match kept[..] {
        [] => Answer::Absent,
        [i] if doubts(sentence) > doubts(&choices[i]) => Answer::Absent,
        [i] => Answer::Choice(i),
        _ => Answer::Unclear,
    }
}

/// How often a text denies or doubts.
fn doubts(text: &str) -> usize {
    static DOUBT: LazyLock<Regex> = LazyLock::new(|| {
        rule(concat!(
            r"(?i)\b(?:not|cannot|no|never|neither|unable|unclear|unknown|uncertain|if|whether|sorry|",
            r"or)\b|n't\b",
        ))
    });
    DOUBT.find_iter(text).count()
}

/// Whether `part` stands in `whole`, word by word.
fn within(part: &[String], whole: &[String]) -> bool {
    !part.is_empty() && whole.windows(part.len()).any(|w| w == part)
}

/// Where sentences end: not within `1.5`.
static SENTENCE: LazyLock<Regex> = LazyLock::new(|| rule(r"[.!?](?:\s+|$)|\n"));

fn first_sentence(text: &str) -> &str {
    let text = text.trim();
    SENTENCE.find(text).map_or(text, |end| &text[..end.start()])
}

/// The last sentence with at least three words: not a `Therefore,` left hanging.
fn last_sentence(text: &str) -> &str {
    let mut rest = text.trim();
    loop {
        let inner = rest.trim_end_matches(|c: char| !c.is_alphanumeric());
        let start = SENTENCE.find_iter(inner).last().map_or(0, |end| end.end());
        if start == 0 || words(&inner[start..]).len() >= 3 {
            return &rest[start..];
        }
        rest = &rest[..start];
    }
}

/// Words in small letters without articles and punctuation; `toward` as `towards`.
fn words(text: &str) -> Vec<String> {
    text.to_lowercase()
        .replace('’', "'")
        .split(|c: char| !c.is_alphanumeric() && c != '\'')
        .map(|w| w.trim_matches('\''))
        .filter(|w| !w.is_empty() && !["a", "an", "the"].contains(w))
        .map(|w| if w == "toward" { "towards".to_owned() } else { w.to_owned() })
        .collect()
}

// ---------------------------------------------------------------------------------------------
// Freeform

/// Grades a response to a freeform question; `gold` is the right choice's text.
pub fn grade_ff(response: &str, gold: &str) -> Verdict {
    let (said, gold) = (Form::of(concluded(&plain(response))), Form::of(gold));
    let correct = said.answers(&gold);
    Verdict::new((!said.words.is_empty()).then(|| said.words.join(" ").to_lowercase()), correct)
}

/// What follows the last announced conclusion, or all of the text.
fn concluded(text: &str) -> &str {
    let last = CONCLUSION.find_iter(text).last().map_or(text, |mark| {
        let after = text[mark.end()..].trim_start_matches(|c: char| !c.is_alphanumeric());
        after.lines().next().unwrap_or_default()
    });
    last.trim()
}

/// Rewritings into normal form, applied in this order to a text in small letters whose words are
/// single-spaced and whose sentence marks are ` | `. What is in capitals is a word of the normal
/// form; `@` marks the goal of a motion other than the camera.
const REWRITES: &[(&str, &str)] = &[
    // Words without weight, and one spelling for each word.
    (r"\b(?:a|an|the|this|that|these|those|its|his|her|hers|their|theirs|my|your|own)\b", ""),
    (r"\b(?:can|do|does|did|is|are|was|were|has|have) ?n't\b", "not"),
    (r"\bther (are|is)\b", "there $1"),
    (r"\bfarther\b", "further"),
    (r"\bnearer\b", "closer"),
    (r"\bonce\b", "1 time"),
    (r"\btwice\b", "2 time"),
    (r"\bthrice\b", "3 time"),
    (r"\btimes\b", "time"),
    (r"\bright (?:now|away)\b", ""),
    // Rotation and rest, before the words that they are made of.
    (r"\b(?:counter|anti)[ -]?clock ?wise\b", "COUNTERCLOCKWISE"),
    (r"\bclock ?wise\b", "CLOCKWISE"),
    (
        r"\bnot (?:be |been )?(?:spinning|rotating|spin|rotate)\b|\bno (?:rotation|spin)\b",
        "NOT_SPINNING",
    ),
    (
        r"\b(?:(?:moving|going|moves|goes) )?straight(?: and not turning)?\b|\bnot turn(?:ing)?\b",
        "STRAIGHT",
    ),
    (
        r"\b(?:remain|stay|keep|kept|sit|stand)\w* (?:still|stationary|put|(?:in|at) (?:same )?(?:place|location|position|spot))\b",
        "STILL",
    ),
    (
        r"\bnot (?:be |been )?(?:moving|moved|move)(?: at all)?\b|\bnot in motion\b|\bno (?:movement|motion)\b",
        "STILL",
    ),
    (r"\b(?:stationary|motionless|immobile|at rest)\b", "STILL"),
    (r"\bstill (\w+ing)\b", "$1"),
    (r"\bstill\b", "STILL"),
    // Directions.
    (r"\bleft(?:wards?|most)?\b", "LEFT"),
    (r"\bright(?:wards?|most)?\b", "RIGHT"),
    (r"\bLEFT (?:frame|scene|screen|video)\b", "GONE"),
    (r"\b(LEFT|RIGHT) (?:hand|side|one|direction)s?\b", "$1"),
    (r"\buphill\b", "UPHILL"),
    (r"\bdownhill\b", "DOWNHILL"),
    (r"\b(pick|end|stand|get|set)(?:s|ed|ing|ting)? up\b", "${1}up"),
    (r"\b(?:speed(?:s|ing)? up|accelerat\w+|faster)\b", "FASTER"),
    (r"\b(?:slow(?:s|ing)? down|decelerat\w+|slower)\b", "SLOWER"),
    (r"\b(?:up|upwards?|upper)\b", "UP"),
    (r"\b(?:down|downwards?|lower)\b", "DOWN"),
    (r"\b(?:forward|forwards)\b", "FORWARD"),
    (r"\b(?:backward|backwards|in reverse)\b", "BACKWARD"),
    (r"\bin front(?: of)?\b", "FRONT"),
    (r"\bbehind\b", "BEHIND"),
    (r"\babove\b", "ABOVE"),
    (r"\b(?:below|beneath|underneath)\b", "BELOW"),
    // To and from the camera, or another goal.
    (r"\b(?:closer (?:to|towards?)|approach(?:es|ing)|towards?|in direction of)\b", "TO"),
    (r"\b(?:further )?away from\b|\bfurther from\b", "FROM"),
    (r"\bTO (?:camera|viewer|observer|screen|lens|us)\b", "TOWARDS"),
    (r"\bFROM (?:camera|viewer|observer|screen|lens|us)\b", "AWAY"),
    (r"\bcloser\b", "TOWARDS"),
    (r"\bTOWARDS TOWARDS\b", "TOWARDS"),
    (r"\bTOWARDS TO\b", "TO"),
    (r"\bfurther away\b|\bfurther\b|\baway\b|\breced(?:es|ing)\b", "AWAY"),
    (r"\bTO ([A-Z_]{2,})\b", "$1"),
    (r"\bTO (\w+)\b", "TOWARDS @$1"),
    (r"\bFROM (\w+)\b", "AWAY @$1"),
    (r"\bTO\b", "TOWARDS"),
    (r"\bFROM\b", "AWAY"),
    // Yes, no, and what is not there.
    (r"^(?:yes|yeah|yep)\b|\bis yes(?: \||$)", "YES"),
    (r"^ *(?:no|nope) *(?:\||$)|\bis no(?: \||$)", "NO |"),
    (r"\b(?:no one|nobody)\b", "nobody"),
    (r"^none\b", "NONE"),
    (r"\bboth (.+ and )", "$1"),
    (
        r"\bthere (?:is|are|was|were|s) (?:not any|not|no)\b|\bthere not any\b|\bthere not\b",
        "ABSENT",
    ),
    (r"\bnot (?:contain|show|feature|include|see)s? (?:any )?", "ABSENT "),
    (r"(\w+) (?:(?:is|are|was|were) )?not (?:visible|present|shown|seen|in video)\b", "ABSENT $1"),
    (r"\bno (\w)", "ABSENT $1"),
];

/// Words that carry no answer.
const FILLERS: &[&str] = &[
    "is",
    "are",
    "was",
    "were",
    "be",
    "been",
    "being",
    "it",
    "he",
    "she",
    "they",
    "them",
    "there",
    "here",
    "in",
    "on",
    "at",
    "of",
    "to",
    "from",
    "by",
    "with",
    "as",
    "has",
    "have",
    "had",
    "does",
    "do",
    "did",
    "will",
    "move",
    "moves",
    "moved",
    "moving",
    "going",
    "goes",
    "go",
    "coming",
    "comes",
    "come",
    "getting",
    "gets",
    "heading",
    "headed",
    "traveling",
    "travelling",
    "video",
    "scene",
    "image",
    "images",
    "frame",
    "frames",
    "clip",
    "direction",
    "directions",
    "side",
    "visible",
    "present",
    "shown",
    "seen",
    "any",
    "time",
    "answer",
    "s",
    "i",
    "we",
];

/// The family of plain answers to a yes-or-no question.
const YES_NO: &[&str] = &["YES", "NO"];

/// Families of words of the normal form that exclude each other: an answer with the gold word and
/// another one of its family is a different answer.
const FAMILIES: &[&[&str]] = &[
    YES_NO,
    &["LEFT", "RIGHT"],
    &["UP", "DOWN"],
    &["UPHILL", "DOWNHILL"],
    &["FORWARD", "BACKWARD", "STRAIGHT"],
    &["TOWARDS", "AWAY"],
    &["CLOCKWISE", "COUNTERCLOCKWISE", "NOT_SPINNING"],
    &["STILL"],
    &["FASTER", "SLOWER"],
    &["FRONT", "BEHIND"],
    &["ABOVE", "BELOW"],
];

/// Number words; digits stand for themselves.
const NUMBERS: [&str; 21] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
];

/// An answer in normal form.
struct Form {
    /// Words of weight in their order: family words, numbers, stems of the rest, `|` between
    /// clauses.
    words: Vec<String>,
    /// The answer is doubted, or one of several: `left or right`, `at least 3`.
    hedged: bool,
}

impl Form {
    fn of(text: &str) -> Self {
        static REWRITES_COMPILED: LazyLock<Vec<(Regex, &str)>> =
            LazyLock::new(|| REWRITES.iter().map(|&(from, to)| (rule(from), to)).collect());
        static HEDGE: LazyLock<Regex> = LazyLock::new(|| {
            rule(concat!(
                r"\b(?:or|either|cannot|can not|ca not|unable|unclear|unknown|uncertain|sorry|maybe|perhaps|",
                r"possibly|not (?:sure|clear|possible|enough|certain)|(?:at (?:least|most)|more than|",
                r"less than|fewer than|about|around|approximately|roughly|almost|nearly) \d)",
            ))
        });
        let mut text = tokens(text).join(" ");
        let hedged = HEDGE.is_match(&text);
        for (from, to) in REWRITES_COMPILED.iter() {
            let new = from.replace_all(&text, *to);
            text = new.split_whitespace().collect::<Vec<_>>().join(" ");
        }
        let mut words: Vec<String> = text
            .split(' ')
            .filter(|word| !word.is_empty() && !FILLERS.contains(word))
            .map(stem)
            .collect();
        words.dedup();
        while words.last().is_some_and(|word| word == "|") {
            words.pop();
        }
        // `none` and `never` answer "how many" as `0` does, if they are all there is.
        if let [word] = &mut words[..]
            && (word == "NONE" || word == "never")
        {
            "0".clone_into(word);
        }
        Self { words, hedged }
    }

    /// Whether this answer is unambiguously equivalent to `gold`.
    fn answers(&self, gold: &Self) -> bool {
        if gold.words.is_empty() || self.words.is_empty() || (self.hedged && !gold.hedged) {
            return false;
        }
        if self.words == gold.words {
            return true;
        }
        let numbers = gold.numbers();
        match &gold.words[..] {
            [yes_no] if YES_NO.contains(&yes_no.as_str()) => {
                self.family(YES_NO) == [yes_no.as_str()]
            }
            [absent, ..] if absent == "ABSENT" => self.denies(gold),
            // A count: the question's other words may be repeated around it.
            [_] if numbers.len() == 1 => {
                self.numbers() == numbers && self.negations() == 0 && !self.has("and")
            }
            // A count and its unit, answered by the count alone.
            [count, _] if numbers == [count] && self.words.len() == 1 => self.numbers() == numbers,
            _ => self.says(gold),
        }
    }

    /// The same directions, counts, goals and negations, and all other words of `gold`.
    fn says(&self, gold: &Self) -> bool {
        let pairs = FAMILIES.iter().filter(|family| !gold.family(family).is_empty()).count() > 1;
        let plain = |word: &&String| {
            !is_number(word) && !is_family(word) && !["|", "and", "then"].contains(&word.as_str())
        };
        let free: Vec<&String> = gold.words.iter().filter(plain).collect();
        let goals = |form: &Self| -> Vec<String> {
            form.words.iter().filter(|w| w.starts_with('@')).cloned().collect()
        };
        FAMILIES.iter().all(|f| self.in_order(f, pairs) == gold.in_order(f, pairs))
            && (gold.numbers().is_empty() || self.numbers() == gold.numbers())
            && goals(self) == goals(gold)
            && self.negations() == gold.negations()
            && free.iter().all(|&word| self.words.contains(word))
            // Named beside something else, a thing is no longer the answer.
            && (free.is_empty() || self.has("and") == gold.has("and"))
    }

    /// `gold` is `ABSENT x`: whether this says so of the same thing, and of nothing more.
    fn denies(&self, gold: &Self) -> bool {
        let said =
            self.words.strip_prefix(&["NO".to_owned(), "|".to_owned()]).unwrap_or(&self.words);
        let clauses = said.split(|word| word == "|").any(|clause| clause == gold.words);
        clauses && self.words.iter().filter(|word| *word == "ABSENT").count() == 1
    }

    /// This family's words in their order, without repetition.
    fn family(&self, family: &[&str]) -> Vec<&str> {
        let mut found: Vec<&str> =
            self.words.iter().map(String::as_str).filter(|w| family.contains(w)).collect();
        found.dedup();
        found
    }

    /// This family's words, and whether they were sorted since their order says nothing: joined by
    /// `and`, with nothing beside them that they `pair` with, as counts or another family.
    fn in_order(&self, family: &[&str], pairs: bool) -> (bool, Vec<&str>) {
        let mut found = self.family(family);
        let joined = self.has("and") && !self.has("then");
        let unordered = found.len() > 1 && joined && !pairs && self.numbers().is_empty();
        if unordered {
            found.sort_unstable();
        }
        (unordered, found)
    }

    fn numbers(&self) -> Vec<&String> {
        self.words.iter().filter(|word| is_number(word)).collect()
    }

    fn negations(&self) -> usize {
        let denies = ["not", "never", "ABSENT", "neither", "nobody", "without"];
        self.words.iter().filter(|word| denies.contains(&word.as_str())).count()
    }

    fn has(&self, word: &str) -> bool {
        self.words.iter().any(|w| w == word)
    }
}

/// Words in small letters with number words as digits; ` | ` where a clause ends.
fn tokens(text: &str) -> Vec<String> {
    static TOKEN: LazyLock<Regex> = LazyLock::new(|| {
        rule(r"\d+(?:[.,:]\d+)+|[\p{Alphabetic}\p{N}_]+(?:'[a-z]+)?|[.,;:!?()\n]")
    });
    let text = text.to_lowercase().replace(['’', '‘'], "'");
    let mut found: Vec<String> = Vec::new();
    for token in TOKEN.find_iter(&text) {
        let word = token.as_str();
        let number = NUMBERS.iter().position(|&number| number == word);
        if let Some(verb) = word.strip_suffix("n't") {
            found.extend([verb.to_owned(), "not".to_owned()]);
        } else if let Some(owner) = word.strip_suffix("'s") {
            found.push(owner.to_owned());
        } else if let Some(number) = number {
            found.push(number.to_string());
        } else if word.contains(|c: char| c.is_alphanumeric()) {
            found.push(word.to_owned());
        } else {
            found.push("|".to_owned());
        }
    }
    // A `one` that stands for a thing is no number.
    for i in 1..found.len() {
        if found[i] == "1"
            && ["left", "right", "no", "which", "other", "only"].contains(&found[i - 1].as_str())
        {
            "one".clone_into(&mut found[i]);
        }
    }
    found
}

fn is_number(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit())
}

fn is_family(word: &str) -> bool {
    FAMILIES.iter().any(|family| family.contains(&word))
}

/// A word without its ending: `cars` → `car`, `picking` → `pick`.
fn stem(word: &str) -> String {
    match word {
        "people" | "persons" => return "person".to_owned(),
        "men" => return "man".to_owned(),
        "women" => return "woman".to_owned(),
        _ => {}
    }
    if word.len() < 4 || !word.bytes().all(|b| b.is_ascii_lowercase() || b == b'@') {
        return word.to_owned();
    }
    let long = |stem: &&str| stem.len() >= 3;
    let hiss = |stem: &str| ["s", "x", "sh", "ch"].iter().any(|end| stem.ends_with(end));
    let word = word.strip_suffix("es").filter(long).filter(|s| hiss(s)).unwrap_or_else(|| {
        word.strip_suffix('s').filter(|s| !s.ends_with(['s', 'u', 'i'])).unwrap_or(word)
    });
    let word =
        ["ing", "ed"].iter().find_map(|end| word.strip_suffix(end).filter(long)).unwrap_or(word);
    word.strip_suffix('e').filter(long).unwrap_or(word).to_owned()
}

// ---------------------------------------------------------------------------------------------
// Files in VLM4D's released-output format

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
    /// What the model said; empty where it said nothing.
    #[serde(default, deserialize_with = "text_or_nothing")]
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

/// A graded item, as one line of the output.
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
    /// The column of a synthetic question: false positive if its answer is `no` or begins with
    /// `no `. Source: VLM4D's evaluation.
    pub fn synthetic(answer: &str) -> Self {
        let answer = answer.trim().to_lowercase();
        if answer == "no" || answer.starts_with("no ") {
            Self::FalsePositive
        } else {
            Self::Directional
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
            let questions: Vec<Published> = read_json(&folder.join(name))?;
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

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path)
        .map_err(|e| Error::input(format!("{}: cannot be read: {e}", path.display())))?;
    serde_json::from_str(&text).map_err(|e| {
        Error::input(format!("{}:{}:{}: {e}", path.display(), e.line(), e.column()))
            .help("the file must be a JSON array in VLM4D's format")
    })
}

/// Grades a file in VLM4D's released-output format. Items without `choices` are freeform. The
/// column of an item comes from `questions`; without them from the names of the file and its
/// folder, which in the release begin with `real` or `synthetic`.
///
/// # Errors
/// If the file cannot be read, is not in that format, or an answer is none of its choices.
pub fn grade_file(path: &Path, questions: Option<&Questions>) -> Result<GradedFile> {
    let released: Vec<Released> = read_json(path)?;
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
        return Ok(grade_ff(response, &item.ground_truth_answer));
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

/// One JSON object per item: `id`, `response`, `extracted`, `correct`, `grader`.
///
/// # Errors
/// If an item cannot be written as JSON, which no input causes.
pub fn jsonl(file: &GradedFile) -> Result<String> {
    let mut lines = String::new();
    for item in &file.items {
        let line = serde_json::to_string(item)
            .map_err(|e| Error::run(format!("{}: `{}`: {e}", file.path, item.id)))?;
        lines.push_str(&line);
        lines.push('\n');
    }
    Ok(lines)
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

#[expect(clippy::cast_precision_loss, reason = "counts of questions stay far below 2^53")]
fn share(part: usize, of: usize) -> f64 {
    part as f64 / of as f64
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
        let _ = write!(out, "; not on {}", disagree.join(", "));
    }
    out.push('\n');
}
