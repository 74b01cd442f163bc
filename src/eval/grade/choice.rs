//! Multiple choice: which letter a response concludes with.

use std::sync::LazyLock;

use regex::Regex;

use super::{CONCLUSION, Verdict, plain, rule};

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
    // An article has a word behind it: an `A` at the end is a letter. So is one that is called
    // right, which the choice `right` has no part in: `So C is the right choice.`, but not `The
    // direction of car A is right.`
    static CHOSEN: LazyLock<Regex> = LazyLock::new(|| {
        rule(concat!(
            r"^[^.:]*\s\(?([A-Z])\)?[.!]?$|",
            r"^(?:[^.:]*\b(?i:option|choice|answer|so|thus|therefore|conclusion|think|believe|that),? )?",
            r"\(?([A-Z])\)? (?:is|seems|must be|would be) (?:the |most likely )*",
            r"(?:right|correct|best)(?: (?:choice|answer|option|one))?[.!]?$",
        ))
    });
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
    if let Some(end) = CHOSEN.captures(sentence).and_then(|c| c.get(1).or(c.get(2))) {
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
            r"^[^\p{Alphabetic}\p{N}]*(?:(?:(?i:option|choice|letter|answer)\b|选项)[^\p{Alphabetic}\p{N}]*)?",
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
    let verdict =
        ["because", "since", "as", "is", "or", "and", "seems", "looks", "appears", "would", "must"];
    let is_letter = next.starts_with(char::is_uppercase)
        || words(next).first().is_some_and(|word| verdict.contains(&word.as_str()));
    name.is_ascii_lowercase() || name == b'I' || !is_letter
}

/// Whether a letter is named only to be rejected: `Option A is incorrect`.
fn denied(rest: &str) -> bool {
    static DENIAL: LazyLock<Regex> = LazyLock::new(|| {
        rule(concat!(
            r"(?i)^[^a-z]*(?:\([^)]*\)\s*)?(?:is|are|can|does|seems|looks|appears|would|must)\s*",
            r"(?:(?:to\s+)?be\s+)?(?:n't|not|incorrect|wrong|excluded|ruled)",
        ))
    });
    DENIAL.is_match(rest)
}

/// Whether what follows the letter names another choice: `A or B`, `A/B`, or another choice's
/// text where its own should stand.
fn another(rest: &str, index: usize, choices: &[String]) -> bool {
    static MORE: LazyLock<Regex> = LazyLock::new(|| {
        rule(concat!(
            r"^[^\p{Alphabetic}\p{N}]*(?:(?:(?i:or|and)\b|或|和|与)[^\p{Alphabetic}\p{N}]*(?:(?i:option)\s+|选项)?[^\p{Alphabetic}\p{N}]*)?",
            r"(?P<letter>[A-Z])(?P<rest>$|[^A-Za-z0-9].*)",
        ))
    });
    if let Some(more) = MORE.captures(after_text(rest, &choices[index])) {
        let name = more["letter"].as_bytes()[0];
        let (other, rest) = (usize::from(name - b'A'), &more["rest"]);
        if other != index && other < choices.len() && !is_word(name, rest) && !denied(rest) {
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
            r"(?i)\b(?:not|cannot|no|never|neither|unable|unclear|unknown|uncertain|doubt|if|",
            r"whether|sorry|or|of the above|(?:between|both|options) \(?[a-z]\)? and)\b|n't\b",
        ))
    });
    static NO_DOUBT: LazyLock<Regex> =
        LazyLock::new(|| rule(r"(?i)\b(?:without (?:a |any )?|no )doubt\b"));
    DOUBT.find_iter(&NO_DOUBT.replace_all(text, "")).count()
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
