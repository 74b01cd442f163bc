//! A question's texts → those of the mirrored video, where there are such.
//!
//! The rule, for English:
//!
//! 1. In all texts alike (question, choices, answer), `left` and `right` are exchanged, also in
//!    `leftward(s)`, `leftmost`, `lefthand(ed)` and before a hyphen, and so are `clockwise` and its
//!    opposite: whole words, case kept, and the opposite spelled as the question spells it
//!    (`counter-clockwise`, `anticlockwise`, …).
//! 2. Perspectives need no words exchanged: the camera's left, a dancer's own left and her left hand
//!    all become right in the mirrored picture; towards, away, up and down stay.
//! 3. Texts are left alone for a word that mirroring makes false (see [`Why`]): what is read in the
//!    picture, what tells a mirrored picture or one of several cameras, a side that has no opposite
//!    here, `left` and `right` in another sense (`has left`, `right away`), and what might be a
//!    misspelled side or turn.
//! 4. Texts that mirroring twice would not give back are left alone too.
//!
//! Where it is not clear, texts are left alone: a sample less is mirrored, and none is wrong.

use std::fmt;

/// Why texts are left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// Something is read in the picture: signs, numbers, clocks.
    Text,
    /// The picture is told from its mirror image, or one camera from another.
    Camera,
    /// A side that has no opposite here: `north`, `starboard`.
    Side,
    /// `left` or `right` is no side: `never left the ground`, `right behind it`.
    Sense,
    /// A word that may be a misspelled side or turn: `clckwise`.
    Spelling,
    /// Letters beyond A to Z: the rule is one for English.
    Language,
    /// There is nothing to mirror.
    NoMedia,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text in the picture",
            Self::Camera => "mirrors or several cameras",
            Self::Side => "sides without an opposite",
            Self::Sense => "`left` or `right` in another sense",
            Self::Spelling => "unknown spellings",
            Self::Language => "other languages",
            Self::NoMedia => "no video or image",
        })
    }
}

const TEXT: &[&str] = &[
    "billboard",
    "caption",
    "captions",
    "clock",
    "clocks",
    "digit",
    "digits",
    "keyboard",
    "label",
    "labels",
    "letter",
    "letters",
    "license",
    "licence",
    "logo",
    "logos",
    "map",
    "maps",
    "newspaper",
    "number",
    "numbers",
    "numeral",
    "numerals",
    "read",
    "reading",
    "reads",
    "scoreboard",
    "sign",
    "signboard",
    "signs",
    "spell",
    "spelled",
    "spells",
    "subtitle",
    "subtitles",
    "text",
    "texts",
    "word",
    "words",
    "write",
    "writes",
    "writing",
    "written",
    "wrote",
];
const CAMERA: &[&str] = &[
    "lens",
    "mirror",
    "mirrored",
    "mirroring",
    "mirrors",
    "reflected",
    "reflection",
    "reflections",
    "selfie",
    "stereo",
    "webcam",
];
const SIDE: &[&str] = &[
    "east",
    "eastern",
    "eastward",
    "eastwards",
    "larboard",
    "nearside",
    "north",
    "northeast",
    "northeastern",
    "northern",
    "northward",
    "northwards",
    "northwest",
    "northwestern",
    "offside",
    "port",
    "portside",
    "south",
    "southeast",
    "southeastern",
    "southern",
    "southward",
    "southwards",
    "southwest",
    "southwestern",
    "starboard",
    "west",
    "western",
    "westward",
    "westwards",
];

/// What may follow `left` or `right` within one word.
const ENDINGS: &[&str] =
    &["", "hand", "handed", "hander", "most", "side", "ward", "wardly", "wards"];
/// `counter-clockwise` where a question has no spelling of its own: VLM4D's commonest.
const COUNTER: Counter = Counter { prefix: "counter", gap: "-", capital: false };
const PREFIXES: &[&str] = &["counter", "anti", "contra"];

/// The texts of the mirrored video.
///
/// # Errors
/// Why they are left alone.
pub fn mirror(texts: &[&str]) -> Result<Vec<String>, Why> {
    let once = exchange(texts)?;
    let once_again: Vec<&str> = once.iter().map(String::as_str).collect();
    match exchange(&once_again)? {
        twice if twice == texts => Ok(once),
        _ => Err(Why::Spelling),
    }
}

fn exchange(texts: &[&str]) -> Result<Vec<String>, Why> {
    if texts.iter().any(|text| text.chars().any(|c| c.is_alphabetic() && !c.is_ascii())) {
        return Err(Why::Language);
    }
    let texts: Vec<Text> = texts.iter().map(|text| Text::new(text)).collect();
    let counter = texts.iter().find_map(Text::counter).unwrap_or(COUNTER);
    texts.iter().map(|text| text.exchanged(&counter)).collect()
}

/// A spelling of `counter-clockwise`.
#[derive(Clone, Copy)]
struct Counter<'a> {
    /// In lower case.
    prefix: &'a str,
    /// What stands before `clockwise`: nothing, a hyphen or a space.
    gap: &'a str,
    /// Whether a capital at the beginning asks for another one after the gap.
    capital: bool,
}

/// A text cut into words, runs of letters, and what stands between them.
struct Text<'a> {
    /// Between, word, between, word, …, between.
    pieces: Vec<&'a str>,
    /// The pieces in lower case.
    lower: Vec<String>,
}

/// What a word, or a turn of several, says of sides.
enum Said {
    Side(String),
    Clockwise,
    /// So many pieces long.
    Counter(usize),
    Nothing,
}

impl<'a> Text<'a> {
    fn new(text: &'a str) -> Self {
        let mut pieces = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let is_word = pieces.len() % 2 == 1;
            let end = rest.find(|c: char| c.is_ascii_alphabetic() != is_word);
            let (piece, after) = rest.split_at(end.unwrap_or(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        let lower = pieces.iter().map(|piece| piece.to_ascii_lowercase()).collect();
        Self { pieces, lower }
    }

    /// The word `i`, in lower case; empty beyond the ends.
    fn word(&self, i: Option<usize>) -> &str {
        i.and_then(|i| self.lower.get(i)).map_or("", String::as_str)
    }

    /// The first spelling of `counter-clockwise`, if there is one.
    fn counter(&self) -> Option<Counter<'static>> {
        (1..self.pieces.len()).step_by(2).find_map(|i| {
            let Said::Counter(length) = self.said(i).ok()? else { return None };
            let prefix = PREFIXES.iter().find(|prefix| self.lower[i].starts_with(*prefix))?;
            let gap = match self.pieces[i + 1..i + length].first() {
                None => "",
                Some(&" ") => " ",
                Some(_) => "-",
            };
            let capital = self.pieces[i + length - 1].starts_with('C') && length > 1;
            Some(Counter { prefix, gap, capital })
        })
    }

    fn exchanged(&self, counter: &Counter) -> Result<String, Why> {
        let mut text = String::new();
        let mut i = 0;
        while i < self.pieces.len() {
            let piece = self.pieces[i];
            let mut length = 1;
            match if i % 2 == 1 { self.said(i)? } else { Said::Nothing } {
                Said::Nothing => text.push_str(piece),
                Said::Side(opposite) => text.push_str(&in_case_of(piece, &opposite)),
                Said::Clockwise => {
                    text.push_str(&in_case_of(piece, counter.prefix));
                    text.push_str(counter.gap);
                    let capital = piece.starts_with('C') && counter.capital;
                    let case = if capital || is_upper(piece) { piece } else { "" };
                    text.push_str(&in_case_of(case, "clockwise"));
                }
                Said::Counter(pieces) => {
                    length = pieces;
                    text.push_str(&in_case_of(piece, "clockwise"));
                }
            }
            i += length;
        }
        Ok(text)
    }

    /// What the word `i` says of sides.
    fn said(&self, i: usize) -> Result<Said, Why> {
        let word = self.word(Some(i));
        for (words, why) in [(TEXT, Why::Text), (CAMERA, Why::Camera), (SIDE, Why::Side)] {
            if words.contains(&word) {
                return Err(why);
            }
        }
        for (side, opposite) in [("left", "right"), ("right", "left")] {
            let Some(ending) = word.strip_prefix(side) else { continue };
            if !ENDINGS.contains(&ending) {
                return Err(Why::Spelling);
            }
            if ending.is_empty() && self.has_another_sense(i) {
                return Err(Why::Sense);
            }
            return Ok(Said::Side(format!("{opposite}{ending}")));
        }
        if word == "clockwise" {
            return Ok(Said::Clockwise);
        }
        let prefix = PREFIXES.iter().find_map(|prefix| word.strip_prefix(prefix));
        match prefix {
            Some("clockwise") => return Ok(Said::Counter(1)),
            Some("") if self.word(Some(i + 2)) == "clockwise" => {
                return match self.pieces[i + 1] {
                    "-" | " " => Ok(Said::Counter(3)),
                    _ => Err(Why::Spelling),
                };
            }
            _ => {}
        }
        let turn = prefix.unwrap_or(word);
        let misspelled =
            turn.contains("clock") || strsim::damerau_levenshtein(turn, "clockwise") <= 2;
        if misspelled { Err(Why::Spelling) } else { Ok(Said::Nothing) }
    }

    /// Whether `left` or `right` at `i` is, or may be, no side.
    fn has_another_sense(&self, i: usize) -> bool {
        let (word, before) = (self.word(Some(i)), self.word(i.checked_sub(2)));
        // a word in the next sentence does not count
        let ends =
            self.pieces.get(i + 1).is_some_and(|gap| gap.contains(['.', ',', '?', '!', ';']));
        let after = if ends { "" } else { self.word(Some(i + 2)) };
        let a_side = A_SIDE_AFTER.contains(&after);
        let (others_before, others_after) = match word {
            "left" => (LEFT_BEFORE, LEFT_AFTER),
            _ => (RIGHT_BEFORE, RIGHT_AFTER),
        };
        (others_before.contains(&before) && !a_side)
            || (others_after.contains(&after) && !A_SIDE_BEFORE.contains(&before))
            || (word == "right" && RIGHT_NOUNS.contains(&after))
    }
}

/// Before these, `left` and `right` are sides whatever stands before: `is left of`, `was left or`.
const A_SIDE_AFTER: &[&str] =
    &["and", "arm", "foot", "hand", "hands", "leg", "of", "or", "side", "then", "to"];
/// After these, they are sides whatever follows: `to the left over`, `left or right from`.
const A_SIDE_BEFORE: &[&str] = &[
    "and", "bottom", "far", "from", "her", "his", "its", "left", "lower", "nor", "or", "right",
    "the", "their", "then", "to", "top", "upper",
];
/// After these, `left` may be what somebody did or what remains: `has left`, `are left`.
const LEFT_BEFORE: &[&str] = &[
    "already",
    "anything",
    "are",
    "be",
    "been",
    "being",
    "ever",
    "everything",
    "get",
    "gets",
    "got",
    "had",
    "has",
    "have",
    "having",
    "is",
    "just",
    "many",
    "much",
    "never",
    "none",
    "nothing",
    "something",
    "was",
    "were",
    "what",
    "who",
];
/// Before these too: `left the ground`, `left behind`.
const LEFT_AFTER: &[&str] = &[
    "a",
    "alone",
    "an",
    "behind",
    "for",
    "her",
    "him",
    "his",
    "home",
    "it",
    "its",
    "my",
    "off",
    "out",
    "over",
    "that",
    "the",
    "their",
    "them",
    "this",
    "unattended",
    "untouched",
    "without",
    "your",
];
/// After these, `right` may be no side: `all right`, `is right`.
const RIGHT_BEFORE: &[&str] =
    &["all", "are", "be", "being", "get", "gets", "got", "is", "just", "quite", "was", "were"];
/// Before these too: `right away`, `right behind`.
const RIGHT_AFTER: &[&str] = &[
    "above", "after", "along", "as", "at", "away", "before", "behind", "below", "beside", "by",
    "down", "here", "in", "into", "next", "now", "on", "onto", "past", "there", "through", "up",
    "when", "where",
];
/// Before these, `right` is never a side.
const RIGHT_NOUNS: &[&str] =
    &["amount", "angle", "angles", "answer", "answers", "moment", "order", "thing", "time", "way"];

fn is_upper(word: &str) -> bool {
    word.len() > 1 && word.chars().all(|c| c.is_ascii_uppercase())
}

/// `word`, which is in lower case, with the capitals of `model`.
fn in_case_of(model: &str, word: &str) -> String {
    match model.chars().next() {
        _ if is_upper(model) => word.to_ascii_uppercase(),
        Some(first) if first.is_ascii_uppercase() => word[..1].to_ascii_uppercase() + &word[1..],
        _ => word.to_owned(),
    }
}
