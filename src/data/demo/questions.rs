//! What is asked about a scene: VLM4D's forms of question and answer.
//!
//! A question comes first: its family, its true answer and three more from the same pool are
//! drawn, then the stage is set so that the answer holds. Within a family every answer is true
//! equally often and the other three are drawn evenly, so that the text alone tells nothing:
//! given the four choices, each is as likely as the others.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::seq::SliceRandom;
use serde::Serialize;

use super::families::{
    Family, MAX_COUNT, Pool,
    Truth::{self, Absent, Appears, Heads, Moves},
    families, numbers_of_questions,
};
use super::figures::Kind;
use super::scene::Motion::{self, Down, Left, Right, Still, Up};
use super::stage::{Part, Source, Stage, pick};

/// A choice or an answer, as it stands in the file.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Answer {
    Text(String),
    Count(usize),
}

/// A question about one video.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) text: String,
    /// By letter, `A` to `D`.
    pub(super) choices: BTreeMap<char, Answer>,
    pub(super) answer: Answer,
}

/// With more questions than this on a video there is no room for a crowd to count.
const MAX_QUESTIONS_BESIDE_CROWD: usize = 2;
/// How often a thing that is asked about may have a double in another colour.
const DOUBLED: f64 = 0.4;

/// Cards dealt in random order; a new round begins when all are dealt.
struct Deck {
    cards: Vec<usize>,
    left: Vec<usize>,
}

impl Deck {
    fn new(cards: impl IntoIterator<Item = usize>) -> Self {
        Self { cards: cards.into_iter().collect(), left: Vec::new() }
    }

    fn deal(&mut self, stage: &mut Stage) -> usize {
        if self.left.is_empty() {
            self.left.clone_from(&self.cards);
            self.left.shuffle(stage.rng());
        }
        self.left.pop().unwrap_or_default()
    }
}

/// Asks the questions of one group of sources and keeps their answers in balance.
pub(super) struct Author {
    families: &'static [(usize, &'static Family)],
    numbers: Deck,
    order: Deck,
    /// For each family, which answer of its pool is true next.
    golds: Vec<Deck>,
    /// Which letter is the true one next.
    letters: Deck,
}

impl Author {
    pub(super) fn new(source: Source) -> Self {
        let families = families(source);
        let shares = families.iter().enumerate();
        Self {
            families,
            numbers: Deck::new(numbers_of_questions(source).iter().copied()),
            order: Deck::new(shares.flat_map(|(i, (share, _))| std::iter::repeat_n(i, *share))),
            golds: families.iter().map(|(_, family)| Deck::new(0..family.pool.len())).collect(),
            letters: Deck::new(0..4),
        }
    }

    /// Asks a video's questions and sets its stage so that their answers hold.
    pub(super) fn ask(&mut self, stage: &mut Stage) -> Vec<Question> {
        let number = self.numbers.deal(stage);
        let mut crowded = number > MAX_QUESTIONS_BESIDE_CROWD;
        let mut questions = Vec::with_capacity(number);
        while questions.len() < number {
            let index = self.order.deal(stage);
            let family = self.families[index].1;
            let pool = &family.pool;
            if pool.is_crowd() && crowded || pool.is_camera() && !stage.camera_is_open() {
                continue;
            }
            let Some(kind) = stage.take_kind(family.fits) else { continue };
            crowded |= pool.is_crowd();
            let gold = self.golds[index].deal(stage);
            let letter = self.letters.deal(stage);
            questions.push(family.ask(kind, gold, letter, stage));
        }
        questions
    }
}

impl Family {
    /// Asks about a thing of `kind`; `gold` is the true answer's place in the pool, `letter` its
    /// place among the choices.
    fn ask(&self, kind: &'static Kind, gold: usize, letter: usize, stage: &mut Stage) -> Question {
        let colour = self.set(kind, gold, stage);
        let name = |text: &str| {
            let named = |noun| colour.map_or(String::from(noun), |c| format!("{c} {noun}"));
            text.replace("{things}", &named(kind.plural)).replace("{thing}", &named(kind.noun))
        };
        let answer = |index: usize| match self.pool {
            Pool::Thing(answers) => Answer::Text(name(answers[index].0)),
            Pool::Camera(answers) => Answer::Text(answers[index].0.to_owned()),
            Pool::Count { .. } => Answer::Count(index),
        };
        let mut others: Vec<usize> = (0..self.pool.len()).filter(|other| *other != gold).collect();
        others.shuffle(stage.rng());
        others.truncate(3);
        others.insert(letter, gold);
        Question {
            text: name(pick(self.wordings, stage.rng())),
            choices: ('A'..='D').zip(others.into_iter().map(answer)).collect(),
            answer: answer(gold),
        }
    }

    /// Makes the answer true on the stage. Out: the colour that the thing's name begins with.
    fn set(&self, kind: &'static Kind, gold: usize, stage: &mut Stage) -> Option<&'static str> {
        match &self.pool {
            Pool::Thing(answers) => return Some(set_thing(kind, answers[gold].1, stage)),
            Pool::Camera(answers) => stage.move_camera(answers[gold].1),
            Pool::Count { counted, others } => set_crowd(kind, gold, *counted, others, stage),
        }
        None
    }
}

fn set_thing(kind: &'static Kind, truth: Truth, stage: &mut Stage) -> &'static str {
    let colour = stage.take_colour();
    let part = |motion| Part { kind, colour, motion, facing: None };
    match truth {
        Absent => {}
        Moves(motions) => {
            let motion = pick(motions, stage.rng());
            stage.add_part(part(motion));
        }
        Heads(way) => {
            let motion = pick(&[Left, Right], stage.rng());
            stage.add_part(Part { facing: Some(way * motion.direction()[0]), ..part(motion) });
        }
        Appears(seen) => {
            let (motion, camera) = behind_appearance(seen, stage);
            stage.move_camera(camera);
            stage.add_part(part(motion));
        }
    }
    if stage.rng().random_bool(DOUBLED) {
        stage.allow_double(kind);
    }
    colour.name
}

/// A thing's motion and the camera's that together look like `seen`: half of the time the thing
/// alone moves, else the camera does.
fn behind_appearance(seen: Motion, stage: &mut Stage) -> (Motion, Motion) {
    let follows = stage.rng().random_bool(0.5);
    let together = pick(&[Left, Right, Up, Down], stage.rng());
    match (seen, follows) {
        (Still, true) => (together, together),
        (_, true) => (Still, seen.opposite()),
        (_, false) => (seen, Still),
    }
}

fn set_crowd(
    kind: &'static Kind,
    count: usize,
    counted: Motion,
    others: &[Motion],
    stage: &mut Stage,
) {
    let least = usize::from(count == 0);
    let rest = stage.rng().random_range(least..=(MAX_COUNT - count).max(least));
    for index in 0..count + rest {
        let motion = if index < count { counted } else { pick(others, stage.rng()) };
        let colour = stage.take_colour();
        stage.add(kind, colour, motion);
    }
}
