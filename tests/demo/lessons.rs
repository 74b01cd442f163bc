//! The lessons: conversations on what is in a video, in LLaMA-Factory's layout, true to the video,
//! and none of them about motion.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;
use video_rs::Frame;
use vlm4d_train::data::chat::{Content, Message};
use vlm4d_train::data::demo::{LessonOptions, render_lessons};
use vlm4d_train::data::entry::{self, Entry};
use vlm4d_train::data::split;
use vlm4d_train::data::vlm4d::Format;

use super::videos::{centroid, named_colour, pixels_of};
use super::{files, frames};

const OPTIONS: LessonOptions = LessonOptions { seed: 42, videos: 40, exam_videos: 20 };
/// What is learned from; the first has no videos.
const LEARNED: [&str; 3] = ["words", "pairs", "answers"];
const SKILLS: [&str; 10] =
    ["colour", "kind", "list", "number", "phrase", "place", "relation", "side", "size", "tilt"];

/// A rendered set, made once for all tests.
fn rendered() -> &'static Path {
    static SET: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, set) = SET.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let set = folder.path().join("lessons");
        render_lessons(&set, &OPTIONS, |_, _| ()).unwrap();
        (folder, set)
    });
    set
}

fn entries(sets: &[&str]) -> Vec<Entry> {
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    entry::read(rendered(), &sets).unwrap().0
}

/// A question, its choices if it has some, and its answer's text.
struct Turn {
    question: String,
    choices: BTreeMap<String, String>,
    answer: String,
}

fn text(message: &Message) -> String {
    message.content.iter().filter_map(Content::text).collect()
}

fn turns(entry: &Entry) -> Vec<Turn> {
    let messages = entry.training(Format::Ff);
    let turn = |pair: &[Message]| {
        let (prompt, said) = (text(&pair[0]), text(&pair[1]));
        let mut lines = prompt.lines().skip_while(|line| line.is_empty());
        let question = lines.next().unwrap().strip_prefix("Question: ").unwrap().to_owned();
        let choices: BTreeMap<_, _> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(letter, choice)| (letter.to_owned(), choice.to_owned()))
            .collect();
        let answer = match said.rsplit_once(". ") {
            _ if choices.is_empty() => said,
            None => choices[&said].clone(),
            Some((checked, letter)) => {
                assert!(prompt.ends_with("\nCheck each choice.\n"), "{prompt}");
                let check = |(at, choice): (&String, &String)| {
                    format!("{at}: {choice} {}", if at == letter { "yes" } else { "no" })
                };
                let want: Vec<_> = choices.iter().map(check).collect();
                assert_eq!(checked, want.join(", "));
                choices[letter].clone()
            }
        };
        Turn { question, choices, answer }
    };
    messages.chunks(2).map(turn).collect()
}

#[test]
fn every_conversation_is_trained_on_and_every_skill_examined() {
    let trained = entries(&["pairs", "answers"]);
    assert_eq!(trained.len(), 2 * OPTIONS.videos);
    let words = entries(&["words"]);
    assert_eq!(words.len(), OPTIONS.videos);
    assert!(words.iter().all(|entry| entry.media.is_empty()));
    let examined = entries(&SKILLS);
    let videos = |entries: &[Entry]| -> BTreeSet<_> {
        entries.iter().flat_map(|entry| entry.media.clone()).collect()
    };
    assert_eq!(videos(&trained).len(), OPTIONS.videos);
    assert!(videos(&trained).is_disjoint(&videos(&examined)));
    let all = trained.iter().chain(&words).chain(&examined);
    let all: Vec<Entry> = all.cloned().collect();
    let (split, _) = split::read(&rendered().join("split.json"), &all).unwrap();
    let count = |part: fn(&split::Split) -> usize| split.values().map(part).sum::<usize>();
    assert_eq!(count(|s| s.train.len()), trained.len() + words.len());
    assert_eq!(count(|s| s.test.len()), examined.len());
    for skill in SKILLS {
        assert!(split[skill].test.len() >= 3, "{skill} is hardly examined");
    }
}

#[test]
fn nothing_is_about_motion() {
    let words = ["mov", "direction", "going", "spin", "rotat", "wise", "closer", "away", "towards"];
    let mut phrases = 0;
    for turn in entries(&[&LEARNED[..], &SKILLS].concat()).iter().flat_map(turns) {
        if turn.question.starts_with("Repeat after me: ") {
            phrases += 1;
            assert_eq!(turn.question, format!("Repeat after me: {}", turn.answer));
            continue;
        }
        let said = format!("{} {} {:?}", turn.question, turn.answer, turn.choices);
        assert!(!words.iter().any(|word| said.contains(word)), "{said}");
    }
    assert!(phrases > 10, "{phrases}");
}

/// The frame that is asked about.
fn moment<'a>(question: &str, frames: &'a [Frame]) -> &'a Frame {
    &frames[usize::from(question.contains("end of"))]
}

/// What an account is counted as whose thing is not seen where it is said to be: another may lie before it.
const HIDDEN: &str = "hidden";

#[test]
fn answers_are_true() {
    let mut checked: BTreeMap<String, usize> = BTreeMap::new();
    for entry in entries(&[&LEARNED[1..], &SKILLS].concat()) {
        let frames = frames(&rendered().join(&entry.media[0].files()[0]));
        assert_eq!(frames.len(), 2);
        for turn in turns(&entry) {
            if let Some(kind) = check(&turn, &frames) {
                *checked.entry(kind).or_default() += 1;
            }
        }
    }
    let hidden = checked.remove(HIDDEN).unwrap_or_default();
    assert!(10 * hidden < checked["account"] + checked["description"], "{hidden}: {checked:?}");
    let expected =
        ["account", "bottom", "colour", "description", "in the middle", "left", "right", "top"];
    assert_eq!(checked.keys().collect::<Vec<_>>(), expected, "{checked:?}");
    assert!(checked.values().all(|n| *n >= 5), "{checked:?}");
}

/// Where the thing of a colour is: from -1, left and top, to 1.
fn place(frame: &Frame, colour: &str) -> [f64; 2] {
    let at = centroid(&pixels_of(frame, colour));
    [0, 1].map(|axis| 2.0 * at[axis] / [224.0, 168.0][axis] - 1.0)
}

/// Whether a place agrees with its word. What is told is a thing's middle, what is seen the middle of its colour: of a
/// boat that lies on its side, the hull.
fn agrees(word: &str, share: f64) -> bool {
    match word {
        "left" | "top" => share < -0.1,
        "right" | "bottom" => share > 0.1,
        _ => share.abs() < 0.35,
    }
}

/// Whether a thing is seen where it is said to be at the beginning and at the end.
fn is_seen(account: &str, colour: &str, frames: &[Frame]) -> bool {
    let moments: Vec<_> = account.split(" then ").collect();
    assert_eq!(moments.len(), 2, "{account}");
    moments.into_iter().zip(frames).all(|(said, frame)| {
        said.split(' ').zip(place(frame, colour)).all(|(word, share)| agrees(word, share))
    })
}

/// Checks a turn against the pixels, where they tell. Out: what was checked.
fn check(turn: &Turn, frames: &[Frame]) -> Option<String> {
    let Turn { question, answer, .. } = turn;
    // Where compression blends two colours, a few pixels look like a third.
    let seen = |frame: &Frame, colour: &str| pixels_of(frame, colour).len() > 150;
    if question.starts_with("What colour") {
        assert!(frames.iter().all(|frame| seen(frame, answer)), "{question} {answer}");
        return Some("colour".to_owned());
    }
    if question.starts_with("Describe all") {
        let mut all = true;
        for told in answer.split(", ") {
            let (colour, account) = told.split_once(' ').unwrap();
            if account == "no" {
                assert!(!frames.iter().any(|frame| seen(frame, colour)), "{colour}: {answer}");
            } else {
                all &= is_seen(account, colour, frames);
            }
        }
        return Some(if all { "description" } else { HIDDEN }.to_owned());
    }
    if question.starts_with("Describe") {
        let seen = is_seen(answer, named_colour(question)?, frames);
        return Some(if seen { "account" } else { HIDDEN }.to_owned());
    }
    let colour = named_colour(question)?;
    let axis = match question {
        q if q.contains("on the left or") => 0,
        q if q.contains("at the top or") => 1,
        _ => return None,
    };
    let share = place(moment(question, frames), colour)[axis];
    let told = ["left", "right", "top", "bottom", "in the middle"].contains(&&**answer);
    assert!(!told || agrees(answer, share), "{question} {answer}: {share:.2}");
    told.then(|| answer.clone())
}

#[test]
fn same_options_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let few = LessonOptions { videos: 3, exam_videos: 2, ..OPTIONS };
    let set = |name: &str, options: &LessonOptions| {
        let out = folder.path().join(name);
        let summary = render_lessons(&out, options, |_, _| ()).unwrap();
        assert_eq!(summary.videos, 3 + 2);
        files(&out)
    };
    let first = set("first", &few);
    assert!(first == set("second", &few), "two renderings differ");
    assert!(first != set("third", &LessonOptions { seed: 43, ..few }), "the seed is not used");
}
