//! What an answer says: a direction, no motion, a number, that nothing is there, or something else.

use std::sync::LazyLock;

use regex::Regex;

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

/// A way from one side to the other.
struct Way {
    words: Regex,
    from: &'static str,
    to: &'static str,
}

static WAYS: LazyLock<[Way; 2]> = LazyLock::new(|| {
    [("left", "right"), ("right", "left")].map(|(from, to)| Way {
        words: rule(&format!(r"\b(?:from )?{THE}{from}[ -]to[ -]{THE}{to}\b")),
        from,
        to,
    })
});

/// A side that something only comes from.
static FROM_SIDE: LazyLock<Regex> = LazyLock::new(|| {
    rule(&format!(r"\bfrom {THE}(left|right)(?:[ -]hand)?(?: (?:side|edge|end|part|half))?\b"))
});

/// Whose side it is.
const THE: &str = "(?:the |its |his |her |their )?";

fn rule(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the patterns of this file are constants and tested")
}

/// What names each, tried in this order; what one has matched is taken out before the next.
static DIRECTIONS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        // None of these speaks of motion.
        (r"\b(?:left|right)[ -]hand\b|\bpick(?:s|ed|ing)? up\b", ""),
        (r"\b(?:counter|anti)[ -]?clock ?wise\b", "counter-clockwise"),
        (r"\bclock ?wise\b", "clockwise"),
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
    .map(|(pattern, name)| (rule(pattern), name))
    .collect()
});

/// The one direction that a text names; nothing where it names none or several.
pub fn direction(text: &str) -> Option<&'static str> {
    match *directions(text) {
        [name] => Some(name),
        _ => None,
    }
}

/// A text in small letters, with each way across as one of its sides.
fn one_side(text: &str, side: fn(&Way) -> &str) -> String {
    let replace = |text: String, way: &Way| way.words.replace_all(&text, side(way)).into_owned();
    WAYS.iter().fold(text.to_lowercase(), replace)
}

/// A text in small letters, with a way across as the one direction that it is: `from left to right`
/// as `right`. A side that something only comes from is none: `from the left` becomes `from_left`.
pub fn across(text: &str) -> String {
    FROM_SIDE.replace_all(&one_side(text, |way| way.to), "from_$1").into_owned()
}

/// An answer in small letters, with a way across as the side that the question asks for, of which
/// `gold` is the answer: where it leads, or where it begins.
pub fn sided(answer: &str, question: &str, gold: &str) -> String {
    // Of a side or a hand: `He cuts from the left side first.`
    static PART: LazyLock<Regex> = LazyLock::new(|| rule(r"(?i)\b(?:side|hand|arm|foot|leg)s?\b"));
    static MOTION: LazyLock<Regex> = LazyLock::new(|| rule(r"(?i)\b(?:mov\w*|direction|way)\b"));
    if is_origin(question, gold) {
        one_side(answer, |way| way.from)
    } else if PART.is_match(question) && !MOTION.is_match(question) {
        one_side(answer, |way| way.to)
    } else {
        across(answer)
    }
}

/// Whether the answer to a question is where something comes from: the right one says so, or the
/// question's `from` belongs to its own word (`From which side …?`, `What direction did the ball
/// come from?`), not to a noun behind it (`from the camera's perspective`).
fn is_origin(question: &str, gold: &str) -> bool {
    static FROM: LazyLock<Regex> =
        LazyLock::new(|| rule(r"(?i)\bfrom(?:\s*(?:[?,.]|$)|\s+(?:which|what|with)\b)"));
    static TO: LazyLock<Regex> = LazyLock::new(|| rule(r"(?i)\bmov\w* to\b"));
    FROM.is_match(question) && !TO.is_match(question) || FROM_SIDE.is_match(&gold.to_lowercase())
}

/// The directions that a text names.
fn directions(text: &str) -> Vec<&'static str> {
    let mut rest = one_side(text, |way| way.to);
    let mut found = Vec::new();
    for (rule, name) in DIRECTIONS.iter() {
        if rule.is_match(&rest) {
            rest = rule.replace_all(&rest, " ").into_owned();
            found.push(*name);
        }
    }
    found.retain(|name| !name.is_empty());
    found.sort_unstable();
    found.dedup();
    found
}

/// What [`kind`] tells apart.
const DIRECTION: &str = "direction";
const NO_MOTION: &str = "no motion";
const NUMBER: &str = "number";
const NOTHING_THERE: &str = "nothing there";
const OTHER: &str = "other answer";

static NUMBERS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^(?:\d+|one|two|three|four|five|once|twice|never)\b").expect("a constant, tested")
});
static NOTHING: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^(?:there? (?:is|are) )?no \w").expect("a constant, tested"));

/// What kind of answer `text`, a right answer, is. VLM4D's paper tells translation, rotation, counting and
/// false positives apart, but which question is which was not released.
pub fn kind(text: &str) -> &'static str {
    let plain = text.trim().to_lowercase();
    match *directions(&plain) {
        ["not moving"] => NO_MOTION,
        _ if NUMBERS.is_match(&plain) => NUMBER,
        [] if NOTHING.is_match(&plain) => NOTHING_THERE,
        [] => OTHER,
        _ => DIRECTION,
    }
}
