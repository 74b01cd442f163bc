//! What a scene has an answer to, motion left out: what colour and kind a thing has, how many there
//! are, and where, how large and at what tilt it is at the beginning and at the end of the video.

use std::f32::consts::PI;

use rand::RngExt;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::figures::{COLOURS, Colour, KINDS, Kind};
use super::scene::{Actor, Pose, Scene};
use super::stage::pick;
use crate::data::vlm4d::{Format, PromptStyle, letter, prompt};

/// Moments that are asked about.
const MOMENTS: [(&str, f32); 2] =
    [("at the beginning of the video", 0.0), ("at the end of the video", 1.0)];
/// A thing in this share of the half frame is in the middle; beyond the other it is at a side.
const MIDDLE: f32 = 0.16;
const SIDE: f32 = 0.28;
/// How far two things must lie apart, in frame heights, for one to lie some way from the other.
const APART: f32 = 0.1;
/// Radii in frame heights: at most, between, at least.
const SMALL: f32 = 0.15;
const MIDDLING: [f32; 2] = [0.165, 0.2];
const LARGE: f32 = 0.225;
/// How far off a quarter of a turn a tilt may be, in radians.
const TILT: f32 = 0.6;

/// How often a thing asked for is not there.
const ABSENT: f64 = 0.5;
/// Which way one thing can lie from another.
const WAYS: [&str; 8] =
    ["left", "right", "up", "down", "left up", "left down", "right up", "right down"];

/// What a question takes to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Skill {
    Colour,
    Kind,
    List,
    Number,
    Place,
    Relation,
    Size,
    Tilt,
    Side,
    Phrase,
    Description,
}

impl Skill {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Colour => "colour",
            Self::Kind => "kind",
            Self::List => "list",
            Self::Number => "number",
            Self::Place => "place",
            Self::Relation => "relation",
            Self::Size => "size",
            Self::Tilt => "tilt",
            Self::Side => "side",
            Self::Phrase => "phrase",
            Self::Description => "description",
        }
    }
}

/// How a question is to be answered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    Words,
    Letter,
    /// Choice by choice, then by letter. Each choice is a step on the way from an answer to its
    /// letter; without them only all of the way pays, and a small model was not seen to find it.
    Check,
}

/// A question that is still without a form.
#[derive(Clone, Debug)]
pub(super) struct Lesson {
    pub(super) skill: Skill,
    pub(super) question: String,
    pub(super) answer: String,
    /// Wrong answers to choose from.
    pub(super) others: Vec<String>,
}

impl Lesson {
    fn new(skill: Skill, question: String, answer: &str, pool: &[&str]) -> Self {
        let others = pool.iter().filter(|other| **other != answer).map(ToString::to_string);
        Self { skill, question, answer: answer.to_owned(), others: others.collect() }
    }

    /// A question without wrong answers to choose from.
    fn open(skill: Skill, question: String, answer: String) -> Self {
        Self { skill, question, answer, others: vec![] }
    }

    /// A question about `thing`, one of whose wrong answers is that there is none.
    fn about(
        thing: &str,
        skill: Skill,
        question: String,
        answer: &str,
        pool: &[&str],
        rng: &mut ChaCha8Rng,
    ) -> Self {
        let mut lesson = Self::new(skill, question, answer, pool);
        lesson.others.push(none_of(thing, rng));
        lesson
    }

    /// Asks it with choices, where it has some, or without. Out: the prompt and the answer.
    pub(super) fn ask(mut self, form: Form, rng: &mut ChaCha8Rng) -> (String, String) {
        if self.others.is_empty() || matches!(form, Form::Words) {
            return (ask(&self.question, &[], Format::Ff), self.answer);
        }
        self.others.shuffle(rng);
        self.others.truncate(CHOICES - 1);
        let gold = rng.random_range(0..=self.others.len());
        self.others.insert(gold, self.answer);
        let check = |(i, text): (usize, &String)| {
            format!("{}: {text} {}", letter(i), if i == gold { "yes" } else { "no" })
        };
        let checked: Vec<String> = self.others.iter().enumerate().map(check).collect();
        let mut prompt = ask(&self.question, &self.others, Format::Mc);
        if matches!(form, Form::Letter) {
            return (prompt, letter(gold).to_string());
        }
        prompt.truncate(prompt.find(INSTRUCTION).unwrap_or(prompt.len()));
        prompt.push_str(CHECK);
        (prompt, format!("{}. {}", checked.join(", "), letter(gold)))
    }
}

/// How the prompts' last line begins; what stands there instead where choices are checked.
pub(super) const INSTRUCTION: &str = "Do not generate";
const CHECK: &str = "Check each choice.\n";
/// How many choices are shown.
const CHOICES: usize = 4;

/// The prompt, as VLM4D has it; `choices` are shown in multiple choice.
fn ask(question: &str, choices: &[String], format: Format) -> String {
    prompt(question, choices, format, PromptStyle::Do)
}

/// A scene to ask about; `aspect` is the frame's width over its height.
pub(super) struct Matter<'a> {
    pub(super) scene: &'a Scene,
    pub(super) aspect: f32,
}

impl Matter<'_> {
    fn pose(&self, actor: &Actor, t: f32) -> Pose {
        actor.pose(t, self.scene.camera.view(t))
    }

    fn number_of(&self, kind: &Kind) -> usize {
        self.scene.actors.iter().filter(|actor| actor.kind.noun == kind.noun).count()
    }

    fn of_colour(&self, colour: &Colour) -> Option<&Actor> {
        self.scene.actors.iter().find(|actor| actor.colour.name == colour.name)
    }

    /// What the things are: all of them in a row, or each one's colour or kind.
    pub(super) fn looks(&self, rng: &mut ChaCha8Rng) -> Vec<Lesson> {
        if let Some(list) = self.list(rng).filter(|_| rng.random_bool(0.5)) {
            return vec![list];
        }
        let mut lessons = self.names(rng);
        lessons.shuffle(rng);
        lessons
    }

    /// Each thing's colour or kind.
    pub(super) fn names(&self, rng: &mut ChaCha8Rng) -> Vec<Lesson> {
        let ask = |actor| {
            self.colour(actor).filter(|_| rng.random_bool(0.4)).unwrap_or_else(|| kind(actor))
        };
        self.scene.actors.iter().map(ask).collect()
    }

    /// Everything else that the scene has an answer to.
    pub(super) fn places(&self, rng: &mut ChaCha8Rng) -> Vec<Lesson> {
        let mut lessons = Vec::new();
        for actor in &self.scene.actors {
            for (when, t) in MOMENTS {
                let pose = self.pose(actor, t);
                let thing = name(actor);
                lessons.extend(self.across(pose, &thing, when, rng));
                lessons.extend(down(pose, &thing, when, rng));
                lessons.extend(size(pose, &thing, when, rng).filter(|_| rng.random_bool(0.6)));
                // Most things stand upright: enough to ask now and then.
                let tilts = actor.angle[0] != actor.angle[1];
                if actor.kind.lopsided && (tilts || rng.random_bool(0.1)) {
                    lessons.extend(tilt(pose, &thing, when, rng));
                }
            }
            lessons.extend(facing(actor, &name(actor), rng));
            for other in self.scene.actors.iter().filter(|other| !std::ptr::eq(*other, actor)) {
                lessons.extend(self.relation(actor, other, rng));
            }
        }
        lessons.push(self.number());
        if rng.random_bool(ABSENT) {
            lessons.extend(self.absent(rng));
        }
        lessons
    }

    fn colour(&self, actor: &Actor) -> Option<Lesson> {
        let unique = self.number_of(actor.kind) == 1;
        let question = format!("What colour is the {}?", actor.kind.noun);
        unique.then(|| {
            Lesson::new(Skill::Colour, question, actor.colour.name, &COLOURS.map(|c| c.name))
        })
    }

    fn number(&self) -> Lesson {
        let count = self.scene.actors.len().to_string();
        let question = "How many things are there in the video?".to_owned();
        Lesson::new(Skill::Number, question, &count, &["0", "1", "2", "3", "4"])
    }

    /// A question about what is not there, that could be asked if it were.
    fn absent(&self, rng: &mut ChaCha8Rng) -> Option<Lesson> {
        let missing: Vec<&Kind> = KINDS.iter().filter(|kind| self.number_of(kind) == 0).collect();
        let kind = missing.choose(rng)?;
        let colours: Vec<_> =
            COLOURS.iter().filter(|colour| self.of_colour(colour).is_none()).collect();
        let thing = format!("{} {}", colours.choose(rng)?.name, kind.noun);
        let (when, _) = pick(&MOMENTS, rng);
        let pose = Pose { centre: [-1.0, -1.0], radius: 0.1, angle: 0.0 };
        let options = [
            self.across(pose, &thing, when, rng),
            down(pose, &thing, when, rng),
            size(pose, &thing, when, rng),
            tilt(pose, &thing, when, rng),
        ];
        let mut lesson =
            options.into_iter().flatten().collect::<Vec<_>>().swap_remove(rng.random_range(0..4));
        let none = none_of(&thing, rng);
        lesson.others.retain(|other| !other.contains("no "));
        lesson.others.push(std::mem::replace(&mut lesson.answer, none));
        Some(lesson)
    }

    /// What is where at both moments, colour by colour.
    pub(super) fn description(&self) -> Lesson {
        let told = COLOURS.map(|colour| {
            let there = self.of_colour(&colour).map(|actor| self.account(actor));
            format!("{} {}", colour.name, there.as_deref().unwrap_or("no"))
        });
        let question = format!("Describe all things {}.", both_moments());
        Lesson::open(Skill::Description, question, told.join(", "))
    }

    /// What is where at both moments, a question for each thing.
    pub(super) fn accounts(&self) -> Vec<Lesson> {
        let ask = |actor| {
            let question = format!("Describe the {} {}.", name(actor), both_moments());
            Lesson::open(Skill::Description, question, self.account(actor))
        };
        self.scene.actors.iter().map(ask).collect()
    }

    /// A thing's place and size at the beginning, then at the end.
    fn account(&self, actor: &Actor) -> String {
        MOMENTS.map(|(_, t)| self.told(self.pose(actor, t))).join(" then ")
    }

    /// The things from left to right.
    fn in_order(&self, t: f32) -> Vec<(Pose, &Actor)> {
        let mut things: Vec<_> =
            self.scene.actors.iter().map(|actor| (self.pose(actor, t), actor)).collect();
        things.sort_by(|(a, _), (b, _)| a.centre[0].total_cmp(&b.centre[0]));
        things
    }

    /// A thing's place and size, the nearest word for each.
    fn told(&self, pose: Pose) -> String {
        let size = match pose.radius {
            r if r < f32::midpoint(SMALL, MIDDLING[0]) => "small",
            r if r < f32::midpoint(MIDDLING[1], LARGE) => "middle",
            _ => "large",
        };
        let place = |share: f32, [low, middle, high]: [&'static str; 3]| match share {
            s if s.abs() < f32::midpoint(MIDDLE, SIDE) => middle,
            s if s < 0.0 => low,
            _ => high,
        };
        let x = place(pose.centre[0] / (self.aspect / 2.0), ["left", "middle", "right"]);
        let y = place(pose.centre[1] / 0.5, ["top", "middle", "bottom"]);
        format!("{x} {y} {size}")
    }

    /// Where in the frame's width a thing is.
    fn across(&self, pose: Pose, thing: &str, when: &str, rng: &mut ChaCha8Rng) -> Option<Lesson> {
        let answer =
            side(pose.centre[0] / (self.aspect / 2.0), ["left", "in the middle", "right"])?;
        let question = format!("Is the {thing} on the left or on the right {when}?");
        let pool = ["left", "in the middle", "right"];
        Some(Lesson::about(thing, Skill::Place, question, answer, &pool, rng))
    }

    /// Which way one thing lies from another, at the same moment or not.
    fn relation(&self, from: &Actor, to: &Actor, rng: &mut ChaCha8Rng) -> Option<Lesson> {
        let [(from_when, from_t), (to_when, to_t)] = [(); 2].map(|()| pick(&MOMENTS, rng));
        let (a, b) = (self.pose(from, from_t).centre, self.pose(to, to_t).centre);
        let way = |offset: f32, [low, high]: [&'static str; 2]| match offset {
            d if d.abs() < APART => None,
            d => Some([low, high][usize::from(d > 0.0)]),
        };
        let across = way(b[0] - a[0], ["left", "right"]);
        let down = way(b[1] - a[1], ["up", "down"]);
        let answer = [across, down].into_iter().flatten().collect::<Vec<_>>().join(" ");
        let [from, to] = [from, to].map(name);
        let question =
            format!("Which way is it from the {from} {from_when} to the {to} {to_when}?");
        (!answer.is_empty()).then(|| Lesson::new(Skill::Relation, question, &answer, &WAYS))
    }

    /// All things by name, in the order in which they stand.
    pub(super) fn list(&self, rng: &mut ChaCha8Rng) -> Option<Lesson> {
        let (when, t) = pick(&MOMENTS, rng);
        let things = self.in_order(t);
        let apart = things.windows(2).all(|pair| pair[1].0.centre[0] - pair[0].0.centre[0] > 0.1);
        let names: Vec<String> = things.iter().map(|(_, actor)| name(actor)).collect();
        let question = format!("What is there from left to right {when}?");
        apart.then(|| Lesson::open(Skill::List, question, names.join(", ")))
    }
}

fn both_moments() -> String {
    MOMENTS.map(|(when, _)| when).join(" and ")
}

fn name(actor: &Actor) -> String {
    format!("{} {}", actor.colour.name, actor.kind.noun)
}

fn kind(actor: &Actor) -> Lesson {
    let question = format!("What is the {} thing in the video?", actor.colour.name);
    Lesson::new(Skill::Kind, question, actor.kind.noun, &KINDS.each_ref().map(|kind| kind.noun))
}

/// The word for a place along an axis, none between two of them.
fn side(share: f32, [low, middle, high]: [&'static str; 3]) -> Option<&'static str> {
    match share {
        s if s.abs() < MIDDLE => Some(middle),
        s if s < -SIDE => Some(low),
        s if s > SIDE => Some(high),
        _ => None,
    }
}

/// Says that no `thing` is there.
fn none_of(thing: &str, rng: &mut ChaCha8Rng) -> String {
    match rng.random_bool(0.5) {
        true => format!("no {thing} there"),
        false => format!("there are no {} in the video", plural(thing)),
    }
}

/// `red fish` → `red fish`, `blue mouse` → `blue mice`.
fn plural(thing: &str) -> String {
    let (before, noun) = thing.rsplit_once(' ').map_or(("", thing), |(b, n)| (b, n));
    let plural = KINDS.iter().find(|kind| kind.noun == noun).map_or(noun, |kind| kind.plural);
    format!("{before} {plural}").trim_start().to_owned()
}

/// Where in the frame's height a thing is.
fn down(pose: Pose, thing: &str, when: &str, rng: &mut ChaCha8Rng) -> Option<Lesson> {
    const PLACES: [&str; 3] = ["top", "in the middle", "bottom"];
    let answer = side(pose.centre[1] / 0.5, PLACES)?;
    let question = format!("Is the {thing} at the top or at the bottom {when}?");
    Some(Lesson::about(thing, Skill::Place, question, answer, &PLACES, rng))
}

fn size(pose: Pose, thing: &str, when: &str, rng: &mut ChaCha8Rng) -> Option<Lesson> {
    let answer = match pose.radius {
        r if r < SMALL => "small",
        r if r > MIDDLING[0] && r < MIDDLING[1] => "of middle size",
        r if r > LARGE => "large",
        _ => return None,
    };
    let question = format!("How large does the {thing} look {when}?");
    Some(Lesson::about(
        thing,
        Skill::Size,
        question,
        answer,
        &["small", "of middle size", "large"],
        rng,
    ))
}

const TILTS: [&str; 4] = ["upright", "tipped to the right", "upside down", "tipped to the left"];

/// The quarter turns that a thing's tilt is nearest to, and how far from it, in radians.
fn nearest_tilt(pose: Pose) -> (usize, f32) {
    let quarters = pose.angle.rem_euclid(2.0 * PI) / (PI / 2.0);
    let nearest = quarters.round();
    (nearest as usize % 4, (quarters - nearest).abs() * PI / 2.0)
}

fn tilt(pose: Pose, thing: &str, when: &str, rng: &mut ChaCha8Rng) -> Option<Lesson> {
    let (quarter, off) = nearest_tilt(pose);
    if off > TILT {
        return None;
    }
    let question = format!("How does the {thing} stand {when}?");
    Some(Lesson::about(thing, Skill::Tilt, question, TILTS[quarter], &TILTS, rng))
}

fn facing(actor: &Actor, thing: &str, rng: &mut ChaCha8Rng) -> Option<Lesson> {
    let shows = actor.kind.has_front && actor.angle[0] == actor.angle[1];
    let answer = if actor.facing < 0.0 { "left" } else { "right" };
    let question = format!("To which side does the {thing} look?");
    shows.then(|| Lesson::about(thing, Skill::Side, question, answer, &["left", "right"], rng))
}
