//! The forms of VLM4D's questions about motion.
//!
//! The wordings are our own. `{thing}` and `{things}` stand for the name of what is asked about.

use super::figures::Kind;
use super::scene::Motion::{
    self, Away, Clockwise, CounterClockwise, Down, Left, Right, Still, Towards, Up,
};
use super::stage::Source;

use Truth::{Absent, Appears, Heads, Moves};

/// What makes an answer about a thing true.
#[derive(Clone, Copy)]
pub(super) enum Truth {
    /// The thing moves in one of these ways.
    Moves(&'static [Motion]),
    /// It moves to the side that it looks to (1) or to the other one (-1).
    Heads(f32),
    /// It moves so in the frame, by its own motion or the camera's.
    Appears(Motion),
    /// It is not in the video.
    Absent,
}

/// The pool that a family's choices come from.
pub(super) enum Pool {
    Thing(&'static [(&'static str, Truth)]),
    Camera(&'static [(&'static str, Motion)]),
    /// How many things of one kind move as `counted`; the rest moves as one of `others`.
    Count {
        counted: Motion,
        others: [Motion; 2],
    },
}

/// A form of question.
pub(super) struct Family {
    /// Which kinds of things it can be asked of.
    pub(super) fits: fn(&Kind) -> bool,
    pub(super) wordings: &'static [&'static str],
    pub(super) pool: Pool,
}

/// The most that a question counts to.
pub(super) const MAX_COUNT: usize = 4;

impl Pool {
    /// How many answers there are to choose from.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Thing(answers) => answers.len(),
            Self::Camera(answers) => answers.len(),
            Self::Count { .. } => MAX_COUNT + 1,
        }
    }

    /// Whether it fills the scene with things of one kind.
    pub(super) fn is_crowd(&self) -> bool {
        matches!(self, Self::Count { .. })
    }

    /// Whether it settles how the camera moves.
    pub(super) fn is_camera(&self) -> bool {
        match self {
            Self::Thing(answers) => answers.iter().any(|(_, truth)| matches!(truth, Appears(_))),
            Self::Camera(_) => true,
            Self::Count { .. } => false,
        }
    }
}

/// The families asked of a source, each with its share.
pub(super) fn families(source: Source) -> &'static [(usize, &'static Family)] {
    match source {
        Source::Davis | Source::YoutubeVos => &[
            (7, &DIRECTION),
            (5, &SIDEWAYS),
            (3, &APPROACH),
            (1, &SPIN),
            (1, &HEADING),
            (1, &TO_THE_LEFT),
            (1, &TO_THE_RIGHT),
            (1, &AT_REST),
        ],
        Source::Ego4d => &[
            (9, &IN_THE_FRAME),
            (3, &IN_THE_SCENE),
            (2, &CAMERA),
            (1, &SPIN),
            (1, &TO_THE_LEFT_IN_THE_SCENE),
            (1, &TO_THE_RIGHT_IN_THE_SCENE),
            (1, &AT_REST_IN_THE_SCENE),
        ],
        Source::Synthetic => &[(9, &DIRECTION_OR_NONE), (1, &ROTATION_OR_NONE)],
    }
}

/// The texts that answers of motion's families have, told of a thing of `kind`.
pub(super) fn phrases(kind: &Kind) -> Vec<String> {
    let mut phrases: Vec<String> = [Source::Davis, Source::Ego4d, Source::Synthetic]
        .into_iter()
        .flat_map(families)
        .flat_map(|(_, family)| match family.pool {
            Pool::Thing(answers) => answers.iter().map(|(text, _)| *text).collect(),
            Pool::Camera(answers) => answers.iter().map(|(text, _)| *text).collect(),
            Pool::Count { .. } => Vec::new(),
        })
        .map(|text| text.replace("{things}", kind.plural).replace("{thing}", kind.noun))
        .collect();
    phrases.sort();
    phrases.dedup();
    phrases
}

/// How many questions a video has, each number as often as it stands here. As in VLM4D, those of
/// davis have the most.
pub(super) fn numbers_of_questions(source: Source) -> &'static [usize] {
    match source {
        Source::Synthetic => &[1, 1, 1, 1, 1, 1, 1, 1, 2],
        Source::Davis => &[1, 2, 2, 2, 3, 3, 3, 4, 4, 5],
        Source::Ego4d | Source::YoutubeVos => &[1, 1, 1, 1, 1, 1, 2, 2, 2, 3],
    }
}

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

const TO_THE_LEFT: Family = how_many(&["How many {things} are moving to the left?"], Left);
const TO_THE_RIGHT: Family = how_many(&["How many {things} are moving to the right?"], Right);
const AT_REST: Family = how_many(&["How many {things} are not moving?"], Still);

// Where the camera moves: things may stand still in the picture that move, or move that do not.
const TO_THE_LEFT_IN_THE_SCENE: Family =
    how_many(&["Setting aside the camera's own motion, how many {things} move to the left?"], Left);
const TO_THE_RIGHT_IN_THE_SCENE: Family = how_many(
    &["Setting aside the camera's own motion, how many {things} move to the right?"],
    Right,
);
const AT_REST_IN_THE_SCENE: Family =
    how_many(&["Setting aside the camera's own motion, how many {things} do not move?"], Still);

const fn how_many(wordings: &'static [&'static str], counted: Motion) -> Family {
    let others = match counted {
        Left => [Right, Still],
        Right => [Left, Still],
        _ => [Left, Right],
    };
    Family { fits: |_| true, wordings, pool: Pool::Count { counted, others } }
}

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

const IN_THE_FRAME: Family = Family {
    fits: |_| true,
    wordings: &[
        "From the camera perspective, which way does the {thing} move across the picture?",
        "Within the picture alone, which way is the {thing} moving?",
    ],
    pool: Pool::Thing(&[
        ("left", Appears(Left)),
        ("right", Appears(Right)),
        ("upwards", Appears(Up)),
        ("downwards", Appears(Down)),
        ("not moving", Appears(Still)),
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
