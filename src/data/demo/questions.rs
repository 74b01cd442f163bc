//! What is asked about a scene: VLM4D's forms of question and answer, in sentences of our own.
//!
//! A question comes first: its family, its true answer and three more from the same pool are
//! drawn, then the stage is set so that the answer holds. Within a family every answer is true
//! equally often and the other three are drawn evenly, so that the text alone tells nothing:
//! given the four choices, each is as likely as the others.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::figures::Kind;
use super::world::{Motion, Source, Stage, pick};

use Motion::{Away, Clockwise, CounterClockwise, Down, Left, Right, Still, Towards, Up};
use Truth::{Absent, Heads, Moves};

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

/// What makes an answer about a thing true.
#[derive(Clone, Copy)]
enum Truth {
    /// The thing moves in one of these ways.
    Moves(&'static [Motion]),
    /// It moves to the side that it looks to (1) or to the other one (-1).
    Heads(f32),
    /// It is not in the video.
    Absent,
}

/// The pool that a family's choices come from. `{thing}` and `{things}` stand for the name.
enum Pool {
    Thing(&'static [(&'static str, Truth)]),
    Camera(&'static [(&'static str, Motion)]),
    /// How many things of one kind move as `counted`; the rest moves as one of `others`.
    Count {
        counted: Motion,
        others: [Motion; 2],
    },
}

/// A form of question.
struct Family {
    /// Which kinds of things it can be asked of.
    fits: fn(&Kind) -> bool,
    wordings: &'static [&'static str],
    pool: Pool,
}

/// The most that a question counts to.
const MAX_COUNT: usize = 4;
/// With more questions than this on a video there is no room for a crowd to count.
const MAX_QUESTIONS_BESIDE_CROWD: usize = 2;
/// How often a question names the colour too, and a thing so named may have a double in another.
const COLOUR_NAMED: f64 = 0.65;
const DOUBLED: f64 = 0.4;

const DIRECTION: Family = Family {
    fits: |_| true,
    wordings: &[
        "What direction is the {thing} moving towards?",
        "In which direction does the {thing} move?",
    ],
    pool: Pool::Thing(&[
        ("left", Moves(&[Left])),
        ("right", Moves(&[Right])),
        ("up", Moves(&[Up])),
        ("down", Moves(&[Down])),
        ("towards the camera", Moves(&[Towards])),
        ("away from the camera", Moves(&[Away])),
        ("not moving", Moves(&[Still])),
        ("there are no {things} in the video", Absent),
    ]),
};

const SIDEWAYS: Family = Family {
    fits: |_| true,
    wordings: &[
        "From the camera's perspective, is the {thing} moving left or right?",
        "To which side is the {thing} going?",
    ],
    pool: Pool::Thing(&[
        ("left", Moves(&[Left])),
        ("right", Moves(&[Right])),
        ("staying in place", Moves(&[Still])),
        ("there are no {things} in the video", Absent),
    ]),
};

const APPROACH: Family = Family {
    fits: |_| true,
    wordings: &[
        "Is the {thing} coming closer or going further away?",
        "How does the distance between the {thing} and the camera change?",
    ],
    pool: Pool::Thing(&[
        ("coming closer", Moves(&[Towards])),
        ("going further away", Moves(&[Away])),
        ("staying at the same distance", Moves(&[Still, Left, Right])),
        ("there are no {things} in the video", Absent),
    ]),
};

const SPIN: Family = Family {
    fits: |kind| kind.lopsided,
    wordings: &[
        "Is the {thing} spinning clockwise or counter-clockwise?",
        "Which way is the {thing} spinning?",
    ],
    pool: Pool::Thing(&[
        ("clockwise", Moves(&[Clockwise])),
        ("counter-clockwise", Moves(&[CounterClockwise])),
        ("not spinning", Moves(&[Still, Left, Right])),
        ("there are no {things} in the video", Absent),
    ]),
};

const HEADING: Family = Family {
    fits: |kind| kind.has_front,
    wordings: &[
        "Is the {thing} moving forwards or backwards from its own perspective?",
        "Seen from the {thing}'s own side, which way is it going?",
    ],
    pool: Pool::Thing(&[
        ("forwards", Heads(1.0)),
        ("backwards", Heads(-1.0)),
        ("not moving", Moves(&[Still])),
        ("there are no {things} in the video", Absent),
    ]),
};

const TO_THE_LEFT: Family = Family {
    fits: |_| true,
    wordings: &["How many {things} are moving to the left?"],
    pool: Pool::Count { counted: Left, others: [Right, Still] },
};

const TO_THE_RIGHT: Family = Family {
    fits: |_| true,
    wordings: &["How many {things} are moving to the right?"],
    pool: Pool::Count { counted: Right, others: [Left, Still] },
};

const AT_REST: Family = Family {
    fits: |_| true,
    wordings: &["How many {things} are not moving?"],
    pool: Pool::Count { counted: Still, others: [Left, Right] },
};

const IN_THE_SCENE: Family = Family {
    fits: |_| true,
    wordings: &[
        "Relative to its surroundings, which way is the {thing} moving?",
        "Setting aside the camera's own motion, which way does the {thing} go?",
    ],
    pool: Pool::Thing(&[
        ("left", Moves(&[Left])),
        ("right", Moves(&[Right])),
        ("upwards", Moves(&[Up])),
        ("downwards", Moves(&[Down])),
        ("not moving", Moves(&[Still])),
        ("there are no {things} in the video", Absent),
    ]),
};

const CAMERA: Family = Family {
    fits: |_| true,
    wordings: &[
        "In which direction does the person with the camera move?",
        "Which way does the camera go?",
    ],
    pool: Pool::Camera(&[
        ("Left", Left),
        ("Right", Right),
        ("Up", Up),
        ("Down", Down),
        ("Forward", Towards),
        ("Backward", Away),
        ("Nowhere", Still),
    ]),
};

const DIRECTION_OR_NONE: Family = Family {
    fits: |_| true,
    wordings: &[
        "What direction is the {thing} moving towards?",
        "Which direction is the {thing} moving?",
    ],
    pool: Pool::Thing(&[
        ("left", Moves(&[Left])),
        ("right", Moves(&[Right])),
        ("up", Moves(&[Up])),
        ("down", Moves(&[Down])),
        ("towards the camera", Moves(&[Towards])),
        ("away from the camera", Moves(&[Away])),
        ("not moving", Moves(&[Still])),
        ("no {thing} there", Absent),
    ]),
};

const ROTATION_OR_NONE: Family = Family {
    fits: |kind| kind.lopsided,
    wordings: &["Which direction is the {thing} rotating?", "Which way does the {thing} rotate?"],
    pool: Pool::Thing(&[
        ("clockwise", Moves(&[Clockwise])),
        ("counter-clockwise", Moves(&[CounterClockwise])),
        ("not rotating", Moves(&[Still, Left, Right])),
        ("no {thing} there", Absent),
    ]),
};

/// The families asked of a source, each with its share.
fn families(source: Source) -> &'static [(usize, &'static Family)] {
    match source {
        Source::Davis | Source::YoutubeVos => &[
            (5, &DIRECTION),
            (3, &SIDEWAYS),
            (2, &APPROACH),
            (3, &SPIN),
            (3, &HEADING),
            (1, &TO_THE_LEFT),
            (1, &TO_THE_RIGHT),
            (1, &AT_REST),
        ],
        Source::Ego4d => &[
            (6, &IN_THE_SCENE),
            (3, &CAMERA),
            (2, &SPIN),
            (1, &TO_THE_LEFT),
            (1, &TO_THE_RIGHT),
            (1, &AT_REST),
        ],
        Source::Synthetic => &[(5, &DIRECTION_OR_NONE), (2, &ROTATION_OR_NONE)],
    }
}

/// How many questions a video has, each number as often as it stands here: close to VLM4D's.
fn numbers_of_questions(source: Source) -> &'static [usize] {
    match source {
        Source::Synthetic => &[1, 1, 1, 1, 1, 1, 1, 1, 2],
        _ => &[1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 5, 5],
    }
}

/// Cards dealt in random order; a new round begins when all are dealt.
struct Deck {
    cards: Vec<usize>,
    left: Vec<usize>,
}

impl Deck {
    fn new(cards: impl IntoIterator<Item = usize>) -> Self {
        Self { cards: cards.into_iter().collect(), left: Vec::new() }
    }

    fn deal(&mut self, rng: &mut ChaCha8Rng) -> usize {
        if self.left.is_empty() {
            self.left.clone_from(&self.cards);
            self.left.shuffle(rng);
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
        let number = self.numbers.deal(stage.rng());
        let mut has_crowd = number > MAX_QUESTIONS_BESIDE_CROWD;
        let mut questions = Vec::with_capacity(number);
        while questions.len() < number {
            let index = self.order.deal(stage.rng());
            let family = self.families[index].1;
            let has_room = match family.pool {
                Pool::Thing(_) => true,
                Pool::Camera(_) => stage.camera_is_open(),
                Pool::Count { .. } => !has_crowd,
            };
            if !has_room {
                continue;
            }
            let Some(kind) = stage.take_kind(family.fits) else { continue };
            has_crowd |= matches!(family.pool, Pool::Count { .. });
            let gold = self.golds[index].deal(stage.rng());
            let letter = self.letters.deal(stage.rng());
            questions.push(family.ask(kind, gold, letter, stage));
        }
        questions
    }
}

impl Pool {
    fn len(&self) -> usize {
        match self {
            Self::Thing(answers) => answers.len(),
            Self::Camera(answers) => answers.len(),
            Self::Count { .. } => MAX_COUNT + 1,
        }
    }
}

impl Family {
    /// Asks about a thing of `kind`; `gold` is the true answer's place in the pool, `letter` its
    /// place among the choices.
    fn ask(&self, kind: &'static Kind, gold: usize, letter: usize, stage: &mut Stage) -> Question {
        let colour = self.set(kind, gold, stage);
        let name = |text: &str| {
            let named = |noun: &str| colour.map_or(noun.to_owned(), |c| format!("{c} {noun}"));
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

    /// Makes the answer true on the stage. Out: the colour that the question names, if any.
    fn set(&self, kind: &'static Kind, gold: usize, stage: &mut Stage) -> Option<&'static str> {
        match &self.pool {
            Pool::Thing(answers) => set_thing(kind, answers[gold].1, stage),
            Pool::Camera(answers) => {
                stage.move_camera(answers[gold].1);
                None
            }
            Pool::Count { counted, others } => {
                set_crowd(kind, gold, *counted, others, stage);
                None
            }
        }
    }
}

fn set_thing(kind: &'static Kind, truth: Truth, stage: &mut Stage) -> Option<&'static str> {
    let colour = stage.take_colour();
    match truth {
        Absent => {}
        Moves(motions) => {
            let motion = pick(motions, stage.rng());
            stage.add(kind, colour, motion, None);
        }
        Heads(way) => {
            let motion = pick(&[Left, Right], stage.rng());
            stage.add(kind, colour, motion, Some(way * motion.direction()[0]));
        }
    }
    if !stage.rng().random_bool(COLOUR_NAMED) {
        return None;
    }
    if stage.rng().random_bool(DOUBLED) {
        stage.allow_double(kind);
    }
    Some(colour.name)
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
        stage.add(kind, colour, motion, None);
    }
}
