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
    Truth::{self, Absent, Appears, Beside, Crosses, Heads, Moves, Stands},
    families, numbers_of_questions,
};
use super::figures::{COLOURS, Colour, KINDS, Kind};
use super::scene::Motion::{self, Down, Left, Right, Still, Up};
use super::stage::{Part, Source, Stage, Zone, pick};

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
/// How often a question names the colour too, and a thing so named may have a double in another.
const COLOUR_NAMED: f64 = 0.65;
const DOUBLED: f64 = 0.4;
/// Where the path of a thing that crosses the frame has its middle.
const MIDDLE: Zone = Zone { x: [-0.25, 0.25], y: [-0.25, 0.25] };

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
        self.deal_if(stage, |_, _| true).unwrap_or_default()
    }

    /// The next card that `fits`, of a further round where none of this one does; the others keep
    /// their order. None where no card fits at all.
    fn deal_if(
        &mut self,
        stage: &mut Stage,
        fits: impl Fn(usize, &Stage) -> bool,
    ) -> Option<usize> {
        let next = |left: &[usize], stage: &Stage| left.iter().rposition(|card| fits(*card, stage));
        let at = if let Some(at) = next(&self.left, stage) {
            at
        } else {
            let mut round = self.cards.clone();
            round.shuffle(stage.rng());
            round.append(&mut self.left);
            self.left = round;
            next(&self.left, stage)?
        };
        Some(self.left.remove(at))
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

/// What a video's questions so far have claimed of its scene.
struct Claims {
    crowd: bool,
    place: bool,
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
        let mut claims = Claims { crowd: number > MAX_QUESTIONS_BESIDE_CROWD, place: false };
        let mut questions = Vec::with_capacity(number);
        while questions.len() < number {
            let index = self.order.deal(stage);
            let family = self.families[index].1;
            if !claims.leave_room(&family.pool, stage) {
                continue;
            }
            let can_be = |gold: usize, stage: &Stage| family.can_be(gold, stage);
            let Some(gold) = self.golds[index].deal_if(stage, can_be) else { continue };
            let Some(kind) = family.take_kind(gold, stage) else { continue };
            claims.crowd |= family.pool.is_crowd();
            claims.place |= family.pool.is_place();
            let letter = self.letters.deal(stage);
            questions.push(family.ask(kind, gold, letter, stage));
        }
        questions
    }
}

impl Claims {
    fn leave_room(&self, pool: &Pool, stage: &Stage) -> bool {
        !(pool.is_crowd() && self.crowd
            || pool.is_place() && (self.place || !stage.camera_stands())
            || pool.is_camera() && !stage.camera_is_open())
    }
}

/// What a question calls the things it speaks of.
#[derive(Default)]
struct Names {
    /// The colour that comes before the thing's noun.
    before: Option<&'static str>,
    /// `{colour}`.
    colour: &'static str,
    /// `{other}`.
    other: &'static str,
}

impl Family {
    /// Whether the stage still lets this answer be true.
    fn can_be(&self, gold: usize, stage: &Stage) -> bool {
        match self.pool {
            Pool::Colour => stage.has_colour(COLOURS[gold].name),
            _ => stage.has_kind(|kind| self.suits(kind, gold)),
        }
    }

    /// Takes a kind to ask about off the stage.
    fn take_kind(&self, gold: usize, stage: &mut Stage) -> Option<&'static Kind> {
        stage.take_kind(|kind| self.suits(kind, gold))
    }

    fn suits(&self, kind: &Kind, gold: usize) -> bool {
        match self.pool {
            Pool::Kind => kind.noun == KINDS[gold].noun,
            _ => (self.fits)(kind),
        }
    }

    /// Asks about a thing of `kind`; `gold` is the true answer's place in the pool, `letter` its
    /// place among the choices.
    fn ask(&self, kind: &'static Kind, gold: usize, letter: usize, stage: &mut Stage) -> Question {
        let names = self.set(kind, gold, stage);
        let name = |text: &str| {
            let named = |noun| names.before.map_or(String::from(noun), |c| format!("{c} {noun}"));
            text.replace("{things}", &named(kind.plural))
                .replace("{thing}", &named(kind.noun))
                .replace("{colour}", names.colour)
                .replace("{other}", names.other)
        };
        let answer = |index: usize| match self.pool {
            Pool::Thing(answers) => Answer::Text(name(answers[index].0)),
            Pool::Camera(answers) => Answer::Text(answers[index].0.to_owned()),
            Pool::Count { .. } | Pool::Number => Answer::Count(index),
            Pool::Colour => Answer::Text(COLOURS[index].name.to_owned()),
            Pool::Kind => Answer::Text(KINDS[index].noun.to_owned()),
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

    /// Makes the answer true on the stage. Out: the names that the question uses.
    fn set(&self, kind: &'static Kind, gold: usize, stage: &mut Stage) -> Names {
        match &self.pool {
            Pool::Thing(answers) => set_thing(kind, answers[gold].1, stage),
            Pool::Camera(answers) => {
                stage.move_camera(answers[gold].1);
                Names::default()
            }
            Pool::Count { counted, others } => {
                set_crowd(kind, gold, *counted, others, stage);
                Names::default()
            }
            Pool::Number => {
                for _ in 0..gold {
                    add_extra(kind, stage.take_colour(), stage);
                }
                Names::default()
            }
            Pool::Colour => {
                stage.claim_colour(COLOURS[gold]);
                add_extra(kind, COLOURS[gold], stage);
                Names::default()
            }
            Pool::Kind => {
                let colour = stage.take_colour();
                add_extra(kind, colour, stage);
                Names { colour: colour.name, ..Names::default() }
            }
        }
    }
}

/// Adds a thing that moves in any way.
fn add_extra(kind: &'static Kind, colour: Colour, stage: &mut Stage) {
    let motion = stage.any_motion();
    stage.add(kind, colour, motion);
}

fn set_thing(kind: &'static Kind, truth: Truth, stage: &mut Stage) -> Names {
    let colour = stage.take_colour();
    let mut names = Names::default();
    let part = |motion| Part { kind, colour, motion, facing: None, zone: Zone::ALL };
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
        Stands(zone) => stage.add_part(Part { zone, ..part(Still) }),
        Beside(zone, zone_of_other) => {
            stage.add_part(Part { zone, ..part(Still) });
            if let Some(other) = stage.take_kind(|_| true) {
                let colour = stage.take_colour();
                stage.add_part(Part { kind: other, colour, zone: zone_of_other, ..part(Still) });
                names.other = other.noun;
            }
        }
        Crosses(motion) => stage.add_part(Part { zone: MIDDLE, ..part(motion) }),
    }
    if stage.rng().random_bool(COLOUR_NAMED) {
        names.before = Some(colour.name);
        if stage.rng().random_bool(DOUBLED) {
            stage.allow_double(kind);
        }
    }
    names
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
