//! A set from which a model without any training learns to see and to answer: conversations on what
//! is in a video, turn by turn, in LLaMA-Factory's layout. Nothing in them is about motion.
//!
//! In: [`LessonOptions`]. Out: a folder with three data sets to learn from, `words` without a video,
//! and on videos of two frames, between which things jump, `pairs` (descriptions of both) and
//! `answers` (questions about one thing or two, in words and by letter); and one data set for each
//! [`Skill`] with single questions on videos of their own, to examine it. `split.json` trains on the
//! former and tests the latter.
//!
//! Words teach the form: to give back what is asked for, in words or by its letter; pairs what is
//! where in which frame, and answers to tell of what is asked about.

use std::collections::BTreeMap;
use std::path::Path;

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::{Value, json};

use super::families::{MAX_COUNT, phrases};
use super::figures::{COLOURS, KINDS};
use super::matter::{Form, INSTRUCTION, Lesson, Matter, Skill};
use super::scene::Scene;
use super::stage::{Look, Stage, pick};
use super::{DemoOptions, DemoSummary, Film, encode_all, write_set};
use crate::data::dataset_info;
use crate::data::split::{By, Split};
use crate::error::Result;
use crate::files::write_json;

/// The data sets that are learned from.
const WORDS: &str = "words";
const PAIRS: &str = "pairs";
const ANSWERS: &str = "answers";
/// How often phrases are single words, which are easier to find again.
const SINGLE: f64 = 0.7;
/// How to answer on a video, each as often as it stands here; and on words.
const FORMS: [Form; 4] = [Form::Words, Form::Letter, Form::Letter, Form::Check];
const WORD_FORMS: [Form; 5] = [Form::Words, Form::Letter, Form::Letter, Form::Check, Form::Check];
/// What asks for phrases.
const REPEAT: &str = "Repeat after me: ";
/// How often a phrase is asked for after a description and among answers. Without any beside videos,
/// a model forgets to give words back.
const PHRASE_AFTER: f64 = 0.5;
const PHRASE_AMONG: f64 = 0.9;
/// How many things at most a conversation is about, how many of its questions ask which way it is from
/// one to another and how many ask anything else.
const MAX_ACCOUNTS: usize = 2;
const MAX_RELATIONS: usize = 3;
const MAX_OTHERS: usize = 2;
/// How often a conversation begins with what a thing is; later, its name would tell.
const LOOKS: f64 = 0.2;
/// How often a conversation says how to answer.
const SAID: f64 = 0.5;
/// Shares of the looks.
const CLEAN: f64 = 0.4;
const IN_MOTION: f64 = 0.15;
/// What is painted and when: two frames in a second.
const FPS: u32 = 2;
const SECONDS: f64 = 1.0;
/// How many things there are, each number as often as it stands here.
const THINGS: [usize; 8] = [1, 1, 1, 2, 2, 3, 3, 4];

/// What to render.
#[derive(Clone, Debug, PartialEq)]
pub struct LessonOptions {
    /// Decides everything random.
    pub seed: u64,
    /// Videos to learn from.
    pub videos: usize,
    /// Further videos to examine on, each with one question for each skill that it has matter for.
    pub exam_videos: usize,
}

impl Default for LessonOptions {
    fn default() -> Self {
        Self { seed: 42, videos: 40_000, exam_videos: 100 }
    }
}

/// A turn of a conversation.
#[derive(Debug, Serialize)]
struct Message {
    role: &'static str,
    content: String,
}

/// A conversation on a video.
#[derive(Debug, Serialize)]
struct Row {
    messages: Vec<Message>,
    videos: Vec<String>,
}

/// Renders the set into the folder `out`; `progress` is told after each video how many are done
/// and how many there are.
///
/// # Errors
/// As those of [`render`](super::render).
pub fn render_lessons(
    out: &Path,
    options: &LessonOptions,
    mut progress: impl FnMut(usize, usize),
) -> Result<DemoSummary> {
    let number = options.videos + options.exam_videos;
    let pictures = DemoOptions {
        seconds: SECONDS,
        fps: FPS,
        real_videos: 0,
        synthetic_videos: number,
        ..DemoOptions::default()
    };
    pictures.check()?;
    let aspect = pictures.aspect();
    // What is asked leaves the scenes as they are.
    let [mut rng, mut asking] = [0, 1].map(|stream| {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        rng.set_stream(stream);
        rng
    });
    let mut sets = Sets::default();
    let mut films = Vec::with_capacity(number);
    for index in 0..number {
        let path = format!("videos/{:05}.mp4", index + 1);
        let scene = scene(aspect, &mut rng);
        let matter = Matter { scene: &scene, aspect };
        if index < options.videos {
            sets.teach(&matter, &path, &mut asking);
        } else {
            sets.examine(&matter, &path, &mut asking);
        }
        films.push(Film { path, scene });
    }
    let films: Vec<&Film> = films.iter().collect();
    write_set(out, |folder| {
        encode_all(folder, &films, &pictures, |done| progress(done, number))?;
        write(folder, &sets, options.seed)
    })?;
    let rows = sets.learned.values().chain(sets.exams.values()).flatten();
    Ok(DemoSummary { videos: number, questions: rows.map(|row| row.messages.len() / 2).sum() })
}

/// A scene with anything in it, which shows its first frame and its last.
fn scene(aspect: f32, rng: &mut ChaCha8Rng) -> Scene {
    let look = match rng.random_range(0.0..1.0) {
        share if share < CLEAN => Look::Clean,
        share if share < CLEAN + IN_MOTION => Look::FilmedInMotion,
        _ => Look::Filmed,
    };
    let mut stage = Stage::new(look, aspect, rng);
    for _ in 0..pick(&THINGS, stage.rng()) {
        if let Some(kind) = stage.take_kind(|_| true) {
            let colour = stage.take_colour();
            stage.add_jumping(kind, colour);
        }
    }
    stage.build()
}

/// The data sets by name.
#[derive(Default)]
struct Sets {
    learned: BTreeMap<&'static str, Vec<Row>>,
    exams: BTreeMap<&'static str, Vec<Row>>,
}

impl Sets {
    /// Adds what is learned from a video, and words beside it.
    fn teach(&mut self, matter: &Matter, path: &str, rng: &mut ChaCha8Rng) {
        let mut add = |set, turns, video| {
            self.learned.entry(set).or_default().push(row(turns, video));
        };
        add(WORDS, repeat(rng), None);
        add(PAIRS, describe(matter, rng), Some(path));
        add(ANSWERS, converse(matter, rng), Some(path));
    }

    /// Adds one question for each skill, where the scene has matter for it.
    fn examine(&mut self, matter: &Matter, path: &str, rng: &mut ChaCha8Rng) {
        let mut lessons = [matter.names(rng), matter.places(rng)].concat();
        lessons.extend(matter.list(rng));
        lessons.push(phrase(3, rng));
        lessons.shuffle(rng);
        let mut by_skill: BTreeMap<Skill, Lesson> = BTreeMap::new();
        for lesson in lessons {
            by_skill.entry(lesson.skill).or_insert(lesson);
        }
        for (skill, lesson) in by_skill {
            let turn = lesson.ask(pick(&[Form::Letter, Form::Words], rng), rng);
            self.exams.entry(skill.name()).or_default().push(row(vec![turn], Some(path)));
        }
    }
}

/// A description of all things, in short, and words after some. Out: prompts and answers.
fn describe(matter: &Matter, rng: &mut ChaCha8Rng) -> Vec<(String, String)> {
    let mut turns = vec![matter.description().ask(Form::Words, rng)];
    if rng.random_bool(PHRASE_AFTER) {
        turns.push(phrase(3, rng).ask(pick(&WORD_FORMS, rng), rng));
    }
    brief(turns, 0)
}

/// A conversation about single things. Their accounts come last: they would tell what else is asked.
fn converse(matter: &Matter, rng: &mut ChaCha8Rng) -> Vec<(String, String)> {
    let (relations, others): (Vec<_>, Vec<_>) =
        matter.places(rng).into_iter().partition(|lesson| lesson.skill == Skill::Relation);
    let mut take = |mut lessons: Vec<Lesson>, most, forms: &[Form]| -> Vec<_> {
        lessons.shuffle(rng);
        lessons.truncate(most);
        lessons.into_iter().map(|lesson| lesson.ask(pick(forms, rng), rng)).collect()
    };
    let mut turns = take(relations, MAX_RELATIONS, &FORMS);
    turns.extend(take(others, MAX_OTHERS, &FORMS));
    let accounts = take(matter.accounts(), MAX_ACCOUNTS, &[Form::Words]);
    if rng.random_bool(PHRASE_AMONG) {
        turns.push(phrase(3, rng).ask(pick(&WORD_FORMS, rng), rng));
    }
    turns.shuffle(rng);
    if rng.random_bool(LOOKS) {
        let looks = matter.looks(rng).into_iter().take(1);
        turns.splice(0..0, looks.map(|lesson| lesson.ask(pick(&FORMS, rng), rng)));
    }
    turns.extend(accounts);
    brief(turns, usize::from(rng.random_bool(SAID)))
}

/// A question about words alone, in short.
fn repeat(rng: &mut ChaCha8Rng) -> Vec<(String, String)> {
    let others = rng.random_range(1..=3);
    brief(vec![phrase(others, rng).ask(pick(&WORD_FORMS, rng), rng)], 0)
}

/// How to answer is said in the first `said` turns alone.
fn brief(mut turns: Vec<(String, String)>, said: usize) -> Vec<(String, String)> {
    for (prompt, _) in turns.iter_mut().skip(said) {
        if let Some(end) = prompt.find(INSTRUCTION) {
            prompt.truncate(end);
        }
    }
    turns
}

/// A question about words alone, with so many wrong choices.
fn phrase(others: usize, rng: &mut ChaCha8Rng) -> Lesson {
    let single = rng.random_bool(SINGLE);
    let mut all = pool(rng);
    all.retain(|text| !single || !text.contains(' '));
    all.shuffle(rng);
    all.truncate(others + 1);
    let answer = all.pop().unwrap_or_default();
    Lesson { skill: Skill::Phrase, question: format!("{REPEAT}{answer}"), answer, others: all }
}

/// The phrases that answers can be, told of a random thing.
fn pool(rng: &mut ChaCha8Rng) -> Vec<String> {
    let kind = &KINDS[rng.random_range(0..KINDS.len())];
    let mut all = phrases(kind);
    all.extend((0..=MAX_COUNT).map(|count| count.to_string()));
    all.extend(COLOURS.map(|colour| colour.name.to_owned()));
    all.extend(KINDS.map(|kind| kind.noun.to_owned()));
    all
}

fn row(turns: Vec<(String, String)>, video: Option<&str>) -> Row {
    let mut messages = Vec::new();
    for (prompt, answer) in turns {
        let marker = if messages.is_empty() && video.is_some() { "<video>" } else { "" };
        messages.push(Message { role: "user", content: format!("{marker}{prompt}") });
        messages.push(Message { role: "assistant", content: answer });
    }
    Row { messages, videos: video.map(str::to_owned).into_iter().collect() }
}

/// Writes the data sets, what describes them and their split into `folder`.
fn write(folder: &Path, sets: &Sets, seed: u64) -> Result<()> {
    let (mut infos, mut splits) = (BTreeMap::new(), BTreeMap::new());
    let learned = sets.learned.iter().map(|set| (set, true));
    for ((name, rows), trains) in learned.chain(sets.exams.iter().map(|set| (set, false))) {
        let file = format!("{name}.json");
        write_json(&folder.join(&file), rows)?;
        infos.insert(name, info(&file));
        let ids = (0..rows.len()).map(|row| format!("{name}/{row}")).collect();
        let (train, test) = if trains { (ids, vec![]) } else { (vec![], ids) };
        splits.insert(
            name,
            Split { seed, by: By::Video, train, val: vec![], test, left_out: vec![] },
        );
    }
    write_json(&folder.join(dataset_info::INFO), &infos)?;
    write_json(&folder.join("split.json"), &splits)
}

/// How LLaMA-Factory describes a data set.
fn info(file: &str) -> Value {
    json!({
        "file_name": file,
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "videos": "videos"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
        },
    })
}
