//! Freeform: normal forms of the response and the gold answer, compared.

use std::sync::LazyLock;

use regex::{Captures, Regex};

use super::rewrites::{DOUBTS, FILLERS, REWRITES};
use super::{CONCLUSION, Verdict, grade_mc, plain, rule};
use crate::eval::answer::sided;

/// Grades a response to a freeform question; `gold` is the right choice's text. A gold of one
/// letter (`B`) is a choice that only the question's text spells out: the response has to name it.
pub fn grade_ff(question: &str, response: &str, gold: &str) -> Verdict {
    if let [letter @ b'A'..=b'Z'] = gold.trim().as_bytes() {
        let unknown = vec![String::new(); 26];
        return grade_mc(response, &unknown, &[usize::from(letter - b'A')]);
    }
    let mut response = conclusion(response);
    let right = Form::of(gold);
    // `From right to left` answers `left`. Not the reverse: a gold answer with both sides is one to
    // "from which end to which", or to "in which order".
    if right.family(SIDES).len() == 1 {
        response = sided(&response, question, gold);
    }
    let said = Form::of(&response);
    let none = || right.words == ["0"] && said.is_none_of(&Form::of(question));
    let correct = said.answers(&right) || none();
    Verdict::new((!said.words.is_empty()).then(|| said.words.join(" ").to_lowercase()), correct)
}

/// The words of a freeform response that are graded: what follows its last announced conclusion,
/// or all of it.
pub fn conclusion(response: &str) -> String {
    let text = plain(response);
    let last = CONCLUSION.find_iter(&text).last().map_or(&*text, |mark| {
        let after = text[mark.end()..].trim_start_matches(|c: char| !c.is_alphanumeric());
        after.lines().next().unwrap_or_default()
    });
    last.trim().to_owned()
}

/// The family of plain answers to a yes-or-no question.
const YES_NO: &[&str] = &["YES", "NO"];

/// The family of sides.
const SIDES: &[&str] = &["LEFT", "RIGHT"];

/// Families of words of the normal form that exclude each other: an answer with the gold word and
/// another one of its family is a different answer.
const FAMILIES: &[&[&str]] = &[
    YES_NO,
    SIDES,
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

/// Number words up to nineteen; digits stand for themselves.
const NUMBERS: [&str; 20] = [
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
];

/// Words for tens, from twenty on.
const TENS: [&str; 8] =
    ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];

const ORDINALS: &str = "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth";

/// Other tokens: numbers with signs in them, words, signs.
const WORD: &str = r"\d+(?:[.,:]\d+)+|[\p{Alphabetic}\p{N}_]+(?:'[a-z]+)?|[.,;:!?()\n/&+]";

/// What makes another number of the one before it.
const MAGNITUDES: [&str; 5] = ["hundred", "thousand", "million", "billion", "dozen"];

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
        static REWRITES_COMPILED: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
            REWRITES.into_iter().flatten().map(|&(from, to)| (rule(from), to)).collect()
        });
        static DOUBTED: LazyLock<Regex> = LazyLock::new(|| rule(DOUBTS));
        let mut text = tokens(text).join(" ");
        for (from, to) in REWRITES_COMPILED.iter() {
            let new = from.replace_all(&text, *to);
            text = new.split_whitespace().collect::<Vec<_>>().join(" ");
        }
        let text = without_contrasts(&text);
        let hedged = DOUBTED.is_match(&text);
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
                // What stands beside it is no word of the normal form: `yes and no`.
                let other = if yes_no == "YES" { "no" } else { "yes" };
                self.family(YES_NO) == [yes_no.as_str()] && !self.has(other)
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
        let joins = |word: &str| ["|", "and", "then"].contains(&word);
        let plain = |word: &&String| !is_number(word) && !is_family(word) && !joins(word);
        let free: Vec<&String> = gold.words.iter().filter(plain).collect();
        // Named beside something else, a thing is no longer the answer.
        let of_gold = |word: &String| !joins(word) && gold.words.contains(word);
        let alone = || {
            let mut clauses = self.words.split(|word| word == "|");
            self.has("and") == gold.has("and")
                && clauses.all(|clause| clause.is_empty() || clause.iter().any(of_gold))
        };
        let goals = |form: &Self| -> Vec<String> {
            form.words.iter().filter(|w| w.starts_with('@')).cloned().collect()
        };
        FAMILIES.iter().all(|f| self.in_order(f, pairs) == gold.in_order(f, pairs))
            && (gold.numbers().is_empty() || self.numbers() == gold.numbers())
            && goals(self) == goals(gold)
            && self.negations() == gold.negations()
            && free.iter().all(|&word| self.words.contains(word))
            && (free.is_empty() || alone())
    }

    /// `gold` is `ABSENT x`: whether this says so of the same thing, and of nothing more.
    fn denies(&self, gold: &Self) -> bool {
        let said =
            self.words.strip_prefix(&["NO".to_owned(), "|".to_owned()]).unwrap_or(&self.words);
        let clauses = said.split(|word| word == "|").any(|clause| clause == gold.words);
        clauses && self.words.iter().filter(|word| *word == "ABSENT").count() == 1
    }

    /// Whether this denies all that a question counts, in its own words: `no cars`, `none of the
    /// cars` to `How many cars …?`.
    fn is_none_of(&self, question: &Self) -> bool {
        let Some((none, things)) = self.words.split_first() else { return false };
        let counted =
            |word: &String| question.has(word) && !["how", "many"].contains(&word.as_str());
        ["ABSENT", "NONE"].contains(&none.as_str())
            && question.has("STILL") == self.has("STILL")
            && !self.hedged
            && !things.is_empty()
            && things.iter().all(counted)
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

    /// Numbers in their order. One that is said again at once, or after it stood alone, is one:
    /// `Two (2)`, `2. He jumps 2 times.`
    fn numbers(&self) -> Vec<&String> {
        let mut found: Vec<(usize, &String)> = Vec::new();
        for (i, word) in self.words.iter().enumerate().filter(|(_, word)| is_number(word)) {
            let again = found.last().is_some_and(|&(at, before)| {
                let between = &self.words[at + 1..i];
                let alone = at == 0 && between.first().is_some_and(|word| word == "|");
                before == word && (alone || between.iter().all(|word| word == "|"))
            });
            if !again {
                found.push((i, word));
            }
        }
        found.into_iter().map(|(_, word)| word).collect()
    }

    fn negations(&self) -> usize {
        let denies = ["not", "never", "ABSENT", "neither", "nobody", "without"];
        self.words.iter().filter(|word| denies.contains(&word.as_str())).count()
    }

    fn has(&self, word: &str) -> bool {
        self.words.iter().any(|w| w == word)
    }
}

/// A text in normal form without what it only contrasts: `LEFT | not RIGHT` says `LEFT`.
fn without_contrasts(text: &str) -> String {
    static CONTRAST: LazyLock<Regex> = LazyLock::new(|| {
        rule(concat!(
            r"\b(?P<said>[A-Z]+)\b(?P<rest>[^|A-Z]*?)(?: (?:\||and|but))*",
            r" (?:not|rather than|instead of) (?:to |in )*",
            r"(?P<other>[A-Z]+)\b(?: @\w+)?",
        ))
    });
    let said = |found: &Captures<'_>| {
        let (said, other) = (&found["said"], &found["other"]);
        let exclude = FAMILIES.iter().any(|f| f.contains(&said) && f.contains(&other));
        if exclude && said != other { format!("{said}{}", &found["rest"]) } else { found[0].into() }
    };
    CONTRAST.replace_all(text, said).into_owned()
}

/// The number that is said by `twenty`, `twenty-one` or `twenty one`.
fn number(word: &str) -> Option<usize> {
    let unit = |word: &str| NUMBERS.iter().position(|number| *number == word);
    let tens = |word: &str| Some(20 + 10 * TENS.iter().position(|tens| *tens == word)?);
    match word.split_once(['-', ' ']) {
        Some((ten, one)) => Some(tens(ten)? + unit(one).filter(|one| (1..10).contains(one))?),
        None => unit(word).or_else(|| tens(word)),
    }
}

/// Words in small letters with number words as digits and signs as words; ` | ` where a clause ends.
fn tokens(text: &str) -> Vec<String> {
    // Units are of one word with their tens, and so is what makes another number of these:
    // `thirty-first`, `thirty-odd`; not so in `thirty-foot`.
    static TOKEN: LazyLock<Regex> = LazyLock::new(|| {
        let (tens, units) = (TENS.join("|"), NUMBERS[1..10].join("|"));
        rule(&format!(
            r"\b(?:{tens})(?:[- ](?:{units})\b|-(?:{ORDINALS}|odd|ish|something|plus)\b)|{WORD}"
        ))
    });
    let text = text.to_lowercase().replace(['’', '‘'], "'").replace(['‑', '–'], "-");
    let mut found: Vec<String> = Vec::new();
    for token in TOKEN.find_iter(&text) {
        let word = token.as_str();
        let number = number(word);
        let many = |of: &&mut String| is_number(of) || (*of == "a" && word == "hundred");
        let magnitude = word.strip_suffix('s').unwrap_or(word);
        if MAGNITUDES.contains(&magnitude)
            && let Some(before) = found.last_mut().filter(many)
        {
            // `A hundred` and `two hundred` are numbers, `two thousand` is only not 2.
            *before = match (before.as_str(), before.parse::<usize>()) {
                ("a", _) => "100".into(),
                (_, Ok(n @ 1..=9)) if magnitude == "hundred" => (100 * n).to_string(),
                (number, _) => format!("{number}{magnitude}"),
            };
        } else if let Some(verb) = word.strip_suffix("n't") {
            found.extend([verb.to_owned(), "not".to_owned()]);
        } else if let Some(owner) = word.strip_suffix("'s") {
            found.push(owner.to_owned());
        } else if let Some(number) = number {
            found.push(number.to_string());
        } else {
            let word = match word {
                "/" => "or",
                "&" => "and",
                "+" => "plus",
                _ if word.contains(|c: char| c.is_alphanumeric()) => word,
                _ => "|",
            };
            found.push(word.to_owned());
        }
    }
    // A `one` that stands for a thing is no number.
    for i in 1..found.len() {
        if found[i] == "1"
            && ["left", "right", "no", "which", "other"].contains(&found[i - 1].as_str())
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
