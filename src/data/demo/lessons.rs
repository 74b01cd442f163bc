//! A set from which a model without any training learns to see and to answer: conversations on what
//! is in a video, turn by turn, in LLaMA-Factory's layout. Nothing in them is about motion.
//!
//! In: [`LessonOptions`]. Out: a folder with seven data sets to learn from, `words` and `phrases`
//! without a video, `stills` (descriptions) and `glances` (questions) on videos in which nothing
//! moves, `descriptions`, `lessons` and, by letter more often, `answers` on those in which things do,
//! and one data set for each [`Skill`] with single questions on videos of their own, to examine it;
//! `split.json` trains on the former and tests the latter.
//!
//! Words and phrases teach the form: to give back what is asked for, in words or by its letter;
//! stills what is where, and glances to look at what is asked about. In single, short turns that is
//! learned soon, in long conversations not at all.

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
use super::{DemoOptions, DemoSummary, Draft, Film, write_json};
use crate::data::sharegpt;
use crate::data::split::{By, Split};
use crate::error::Result;

/// The data sets that are learned from.
const WORDS: &str = "words";
const PHRASES: &str = "phrases";
const STILLS: &str = "stills";
const GLANCES: &str = "glances";
const DESCRIPTIONS: &str = "descriptions";
const LESSONS: &str = "lessons";
const ANSWERS: &str = "answers";
/// Conversations on a video, and turns in each, as far as its scene has matter for them.
const CONVERSATIONS: usize = 2;
const TURNS: usize = 2;
/// Turns in a conversation about phrases alone.
const PHRASE_TURNS: usize = 5;
/// For so many videos there is one conversation about phrases, and for one so many about words.
const VIDEOS_A_PHRASE: usize = 3;
const WORDS_A_VIDEO: usize = 4;
/// How often phrases are single words, which are easier to find again.
const SINGLE: f64 = 0.7;
/// How to answer on a video, each as often as it stands here: at first, and once what is asked
/// about is seen; and on phrases.
const FORMS: [Form; 3] = [Form::Words, Form::Words, Form::Letter];
const LAST_FORMS: [Form; 4] = [Form::Words, Form::Letter, Form::Letter, Form::Check];
const PHRASE_FORMS: [Form; 5] = [Form::Words, Form::Letter, Form::Letter, Form::Check, Form::Check];
/// What asks for phrases.
const REPEAT: &str = "Repeat after me: ";
/// How often a turn on a video asks for a phrase.
const PHRASE_BETWEEN: f64 = 0.12;
/// How often a phrase comes after a still's description.
const PHRASE_AFTER: f64 = 0.5;
/// How often a conversation begins with what a thing is; later, its name would tell.
const LOOKS: f64 = 0.4;
/// Shares of the looks.
const CLEAN: f64 = 0.4;
const IN_MOTION: f64 = 0.15;
/// How many things there are, each number as often as it stands here.
const THINGS: [usize; 8] = [1, 1, 1, 2, 2, 3, 3, 4];
/// How often some of them are of one kind.
const CROWDS: f64 = 0.25;

/// What to render.
#[derive(Clone, Debug, PartialEq)]
pub struct LessonOptions {
    /// Decides everything random.
    pub seed: u64,
    /// Videos to learn from, and as many stills.
    pub videos: usize,
    /// Further videos to examine on, each with one question for each skill that it has matter for.
    pub exam_videos: usize,
}

impl Default for LessonOptions {
    fn default() -> Self {
        Self { seed: 42, videos: 12_000, exam_videos: 100 }
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
        // As many frames as a recipe samples: the others would be drawn for nothing.
        fps: 2,
        real_videos: 0,
        synthetic_videos: number,
        ..DemoOptions::default()
    };
    pictures.check()?;
    let aspect = pictures.aspect();
    let draft = Draft::beside(out)?;
    // What is asked leaves the scenes as they are.
    let [mut rng, mut asking] = [0, 1].map(|stream| {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        rng.set_stream(stream);
        rng
    });
    let mut sets: BTreeMap<&str, Vec<Row>> = BTreeMap::new();
    let mut films = Vec::with_capacity(number);
    for index in 0..number {
        let path = format!("videos/{:05}.mp4", index + 1);
        let scene = scene(aspect, &mut rng);
        let matter = Matter { scene: &scene, aspect };
        let mut add = |set, turns| sets.entry(set).or_default().push(row(turns, Some(&path)));
        if index < options.videos {
            add(DESCRIPTIONS, describe(&matter, &mut asking));
            for _ in 0..CONVERSATIONS {
                add(LESSONS, converse(&matter, &FORMS, &mut asking));
                add(ANSWERS, converse(&matter, &LAST_FORMS, &mut asking));
            }
        } else {
            for lesson in examine(&matter, &mut asking) {
                let form = pick(&[Form::Letter, Form::Words], &mut asking);
                add(lesson.skill.name(), vec![lesson.ask(form, &mut asking)]);
            }
        }
        films.push(Film { path, scene });
    }
    let mut stills = Vec::with_capacity(options.videos);
    for index in 0..options.videos {
        let path = format!("stills/{:05}.mp4", index + 1);
        let moment = rng.random_range(0.0..=1.0);
        let scene = scene(aspect, &mut rng).stopped(moment);
        let matter = Matter { scene: &scene, aspect };
        let mut add = |set, turns| sets.entry(set).or_default().push(row(turns, Some(&path)));
        add(STILLS, still(&matter, &mut asking));
        let asked = glance(&matter, &mut asking);
        if !asked.is_empty() {
            add(GLANCES, asked);
        }
        stills.push(Film { path, scene });
    }
    for (set, number, turns) in [
        (WORDS, options.videos * WORDS_A_VIDEO, 1),
        (PHRASES, options.videos / VIDEOS_A_PHRASE, PHRASE_TURNS),
    ] {
        let rows = (0..number).map(|_| row(repeat(turns, &mut asking), None));
        sets.insert(set, rows.collect());
    }
    let all = films.len() + stills.len();
    draft.encode(&films, &pictures, |done| progress(done, all))?;
    let short = DemoOptions { seconds: 1.0, ..pictures };
    draft.encode(&stills, &short, |done| progress(films.len() + done, all))?;
    write(&draft, &sets, options.seed)?;
    draft.publish(out)?;
    let questions = sets.values().flatten().map(|row| row.messages.len() / 2).sum();
    Ok(DemoSummary { videos: all, questions })
}

/// A scene with anything in it.
fn scene(aspect: f32, rng: &mut ChaCha8Rng) -> Scene {
    let look = match rng.random_range(0.0..1.0) {
        share if share < CLEAN => Look::Clean,
        share if share < CLEAN + IN_MOTION => Look::FilmedInMotion,
        _ => Look::Filmed,
    };
    let mut stage = Stage::new(look, aspect, rng);
    let number = pick(&THINGS, stage.rng());
    let crowd = number > 1 && stage.rng().random_bool(CROWDS);
    let alike = if crowd { stage.rng().random_range(2..=number) } else { 1 };
    let first = stage.take_kind(|_| true);
    for index in 0..number {
        let motion = stage.any_motion();
        let kind = if index < alike { first } else { stage.take_kind(|_| true) };
        if let Some(kind) = kind {
            let colour = stage.take_colour();
            stage.add(kind, colour, motion);
        }
    }
    stage.build()
}

/// The turns of a conversation: prompts and answers.
fn converse(matter: &Matter, forms: &[Form], rng: &mut ChaCha8Rng) -> Vec<(String, String)> {
    let looks = matter.looks(rng).into_iter().take(usize::from(rng.random_bool(LOOKS)));
    let mut lessons = matter.places(rng);
    lessons.shuffle(rng);
    lessons.truncate(TURNS - looks.len());
    for lesson in &mut lessons {
        if rng.random_bool(PHRASE_BETWEEN) {
            *lesson = phrase(3, rng);
        }
    }
    lessons.splice(0..0, looks);
    brief(lessons.into_iter().map(|lesson| lesson.ask(pick(forms, rng), rng)).collect(), 1)
}

/// The turns of a description, moment by moment in any order, in short.
fn describe(matter: &Matter, rng: &mut ChaCha8Rng) -> Vec<(String, String)> {
    let mut lessons = matter.descriptions();
    lessons.shuffle(rng);
    brief(lessons.into_iter().map(|lesson| lesson.ask(Form::Words, rng)).collect(), 0)
}

/// A still's description at any moment; at times a phrase comes after it, so that letters are not
/// forgotten meanwhile.
fn still(matter: &Matter, rng: &mut ChaCha8Rng) -> Vec<(String, String)> {
    let mut turns = describe(matter, rng);
    turns.truncate(1);
    if rng.random_bool(PHRASE_AFTER) {
        turns.extend(repeat(1, rng));
    }
    turns
}

/// A question on where a thing on a still is or how large it looks, in short; none where no word
/// tells.
fn glance(matter: &Matter, rng: &mut ChaCha8Rng) -> Vec<(String, String)> {
    let mut lessons = matter.places(rng);
    lessons.retain(|lesson| matches!(lesson.skill, Skill::Place | Skill::Size));
    lessons.shuffle(rng);
    let asked = lessons.into_iter().take(1);
    brief(asked.map(|lesson| lesson.ask(pick(&FORMS, rng), rng)).collect(), 0)
}

/// The turns of a conversation about phrases alone; a single one is kept short.
fn repeat(turns: usize, rng: &mut ChaCha8Rng) -> Vec<(String, String)> {
    let turn = |_| {
        let others = if turns == 1 { rng.random_range(1..=3) } else { 3 };
        phrase(others, rng).ask(pick(&PHRASE_FORMS, rng), rng)
    };
    brief((0..turns).map(turn).collect(), usize::from(turns > 1))
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

/// One question for each skill, where the scene has matter for it.
fn examine(matter: &Matter, rng: &mut ChaCha8Rng) -> Vec<Lesson> {
    let mut lessons = [matter.looks(rng), matter.looks(rng), matter.places(rng)].concat();
    lessons.push(phrase(3, rng));
    lessons.shuffle(rng);
    let mut by_skill: BTreeMap<Skill, Lesson> = BTreeMap::new();
    for lesson in lessons {
        by_skill.entry(lesson.skill).or_insert(lesson);
    }
    by_skill.into_values().collect()
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

/// Writes the data sets, what describes them and their split.
fn write(draft: &Draft, sets: &BTreeMap<&str, Vec<Row>>, seed: u64) -> Result<()> {
    let (mut infos, mut splits) = (BTreeMap::new(), BTreeMap::new());
    for (name, rows) in sets {
        let file = format!("{name}.json");
        write_json(&draft.folder.join(&file), rows)?;
        infos.insert(name, info(&file));
        let ids = (0..rows.len()).map(|row| format!("{name}/{row}")).collect();
        let trains =
            [WORDS, PHRASES, STILLS, GLANCES, DESCRIPTIONS, LESSONS, ANSWERS].contains(name);
        let (train, test) = if trains { (ids, vec![]) } else { (vec![], ids) };
        splits.insert(name, Split { seed, by: By::Video, train, val: vec![], test });
    }
    write_json(&draft.folder.join(sharegpt::INFO), &infos)?;
    write_json(&draft.folder.join("split.json"), &splits)
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
