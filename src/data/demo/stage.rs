//! A scene in the making: things are added to a [`Stage`], then placed so that all can be seen.

use std::f32::consts::FRAC_PI_2;
use std::ops::Range;

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::figures::{COLOURS, Colour, KINDS, Kind, Rgb};
use super::scene::{Actor, Backdrop, Camera, Motion, Pose, Scene, Texture, Vec2, View};

/// The smallest radius of a thing: 20 pixels across in a frame 84 pixels high.
const MIN_RADIUS: f32 = 0.125;
/// The radius of a thing that is near.
const NEAR_RADIUS: f32 = 0.29;
/// How much larger than the smallest a thing that keeps its distance may be, in an easy scene and
/// in a crowded one.
const SIZES: Range<f32> = 1.0..1.7;
const SIZES_IN_CROWD: Range<f32> = 1.0..1.2;
/// How far a thing moves, as a share of the frame's side: at least a third.
const TRAVEL: Range<f32> = 0.42..0.58;
/// The same where the camera moves too: both together still fit the frame.
const EGO_TRAVEL: Range<f32> = 0.34..0.39;
/// How far a thing jumps at most, as a share of the frame's side.
const JUMP: f32 = 0.6;
/// How far a thing turns, in radians: about a quarter turn, of which the first frame and the last tell
/// the way.
const SWEEP: Range<f32> = 1.3..1.9;
/// How much larger a camera that moves forward sees the scene at the end.
const ZOOM: f32 = 1.5;
/// How many things a frame holds at ease.
const EASY_TO_SEE: usize = 4;
/// Layouts tried for a scene, and places for each thing in it; the best are kept.
const LAYOUTS: usize = 8;
const PLACEMENTS: usize = 100;
/// Moments at which a placement is judged.
const MOMENTS: usize = 9;

/// Where a video comes from in VLM4D, which decides its look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Davis,
    Ego4d,
    YoutubeVos,
    Synthetic,
}

/// How a video looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Clean, the camera fixed.
    Clean,
    /// As filmed, from a fixed place.
    Filmed,
    /// As filmed by someone who moves.
    FilmedInMotion,
}

impl Source {
    /// How its videos look.
    pub(super) fn look(self) -> Look {
        match self {
            Self::Davis | Self::YoutubeVos => Look::Filmed,
            Self::Ego4d => Look::FilmedInMotion,
            Self::Synthetic => Look::Clean,
        }
    }
}

/// What things do that nobody asks about the motion of. The last two take much room.
const ANY: [Motion; 9] = [
    Motion::Still,
    Motion::Left,
    Motion::Right,
    Motion::Up,
    Motion::Down,
    Motion::Clockwise,
    Motion::CounterClockwise,
    Motion::Towards,
    Motion::Away,
];
/// What a camera can do.
const CAMERA: [Motion; 7] = [
    Motion::Still,
    Motion::Left,
    Motion::Right,
    Motion::Up,
    Motion::Down,
    Motion::Towards,
    Motion::Away,
];
const TEXTURES: [Texture; 4] = [Texture::Plain, Texture::Stripes, Texture::Dots, Texture::Checks];

/// What is to be added to a stage; what is left out is up to chance.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) kind: &'static Kind,
    pub(super) colour: Colour,
    pub(super) motion: Motion,
    /// The side that its front looks to.
    pub(super) facing: Option<f32>,
}

/// A thing added, not placed yet.
struct Planned {
    actor: Actor,
    /// Whether its size may still be chosen.
    sizable: bool,
}

/// A scene in the making: things are added, then placed.
pub(super) struct Stage<'a> {
    rng: &'a mut ChaCha8Rng,
    /// Whether it looks like filmed, and whether whoever films moves.
    real: bool,
    ego: bool,
    aspect: f32,
    /// How far camera and things move where both do: as far as each other, so that what follows
    /// the camera stands still in the frame.
    ego_travel: f32,
    kinds: Vec<&'static Kind>,
    colours: Vec<Colour>,
    parts: Vec<Planned>,
    doubles: Vec<&'static Kind>,
    /// How the camera moves, once that is settled.
    camera: Option<Motion>,
    /// Whether things jump: what lies between the first frame and the last is not shown.
    jumps: bool,
}

impl<'a> Stage<'a> {
    /// An empty stage; `aspect` is the frame's width over its height.
    pub(super) fn new(look: Look, aspect: f32, rng: &'a mut ChaCha8Rng) -> Self {
        let mut kinds: Vec<_> = KINDS.iter().collect();
        kinds.shuffle(rng);
        let mut colours = COLOURS.to_vec();
        colours.shuffle(rng);
        Self {
            real: look != Look::Clean,
            ego: look == Look::FilmedInMotion,
            aspect,
            ego_travel: rng.random_range(EGO_TRAVEL),
            kinds,
            colours,
            parts: Vec::new(),
            doubles: Vec::new(),
            camera: None,
            jumps: false,
            rng,
        }
    }

    /// The stage's random numbers.
    pub(super) fn rng(&mut self) -> &mut ChaCha8Rng {
        self.rng
    }

    /// Takes a kind that no one else on this stage has; none where no fitting one is left.
    pub(super) fn take_kind(&mut self, fits: impl Fn(&Kind) -> bool) -> Option<&'static Kind> {
        let index = self.kinds.iter().position(|kind| fits(kind))?;
        Some(self.kinds.swap_remove(index))
    }

    /// A colour that no one on this stage has, as long as there are any.
    pub(super) fn take_colour(&mut self) -> Colour {
        self.colours.pop().unwrap_or_else(|| pick(&COLOURS, self.rng))
    }

    /// Whether the camera's motion is still open.
    pub(super) fn camera_is_open(&self) -> bool {
        self.camera.is_none()
    }

    /// Settles how the camera moves.
    pub(super) fn move_camera(&mut self, motion: Motion) {
        self.camera = Some(motion);
    }

    /// Adds a thing anywhere, looking to either side.
    pub(super) fn add(&mut self, kind: &'static Kind, colour: Colour, motion: Motion) {
        self.add_part(Part { kind, colour, motion, facing: None });
    }

    /// Adds a thing.
    pub(super) fn add_part(&mut self, part: Part) {
        let Part { kind, colour, motion, facing } = part;
        let travel = if self.ego { self.ego_travel } else { self.rng.random_range(TRAVEL) };
        let [dx, dy] = motion.direction();
        let tilt = self.rng.random_range(-0.12..0.12);
        let sweep = motion.turn() * self.rng.random_range(SWEEP);
        let facing = facing.unwrap_or(pick(&[1.0, -1.0], self.rng));
        let actor = Actor {
            kind,
            colour,
            texture: pick(&TEXTURES, self.rng),
            facing,
            place: [0.0; 2],
            path: [dx * travel * self.aspect, dy * travel],
            radius: match motion.approach() {
                a if a > 0.0 => [MIN_RADIUS, NEAR_RADIUS],
                a if a < 0.0 => [NEAR_RADIUS, MIN_RADIUS],
                _ => [MIN_RADIUS; 2],
            },
            angle: [tilt, tilt + sweep],
        };
        self.parts.push(Planned { actor, sizable: motion.approach() == 0.0 });
    }

    /// Adds a thing that jumps: in the last frame most are elsewhere than in the first, half of another
    /// size and some tipped over.
    pub(super) fn add_jumping(&mut self, kind: &'static Kind, colour: Colour) {
        self.jumps = true;
        self.add(kind, colour, Motion::Still);
        let path = [self.aspect, 1.0].map(|side| side * self.rng.random_range(-JUMP..JUMP));
        let [moves, swells, tips] = [0.75, 0.5, 0.35].map(|often| self.rng.random_bool(often));
        let radius = [(); 2].map(|()| self.rng.random_range(MIN_RADIUS..NEAR_RADIUS));
        let quarters = [(); 2].map(|()| self.rng.random_range(0..4) as f32);
        let Some(Planned { actor, sizable }) = self.parts.last_mut() else { return };
        if moves {
            actor.path = path;
        }
        if swells {
            *sizable = false;
            actor.radius = radius;
        }
        if tips {
            actor.angle = [0, 1].map(|end| actor.angle[end] + quarters[end] * FRAC_PI_2);
        }
    }

    /// A motion for a thing that nobody asks about the motion of.
    pub(super) fn any_motion(&mut self) -> Motion {
        let has_room = self.parts.len() < EASY_TO_SEE - 1;
        pick(if has_room { &ANY } else { &ANY[..7] }, self.rng)
    }

    /// Allows for a thing of `kind` that nobody asks about, in another colour.
    pub(super) fn allow_double(&mut self, kind: &'static Kind) {
        self.doubles.push(kind);
    }

    /// Adds up to two things that nobody asks about, at least one to an empty stage.
    pub(super) fn add_extras(&mut self) {
        let least = usize::from(self.parts.is_empty());
        let room = EASY_TO_SEE.saturating_sub(self.parts.len()).min(2);
        for _ in 0..self.rng.random_range(least..=room) {
            let motion = self.any_motion();
            let shows = |kind: &Kind| motion.turn() == 0.0 || kind.lopsided;
            let double = self.doubles.pop_if(|kind| shows(kind));
            if let Some(kind) = double.or_else(|| self.take_kind(shows)) {
                let colour = self.take_colour();
                self.add(kind, colour, motion);
            }
        }
    }

    /// Places everything and hands out the scene.
    pub(super) fn build(mut self) -> Scene {
        let camera = self.camera();
        self.choose_sizes();
        self.place_all(&camera);
        let real = self.real;
        Scene {
            actors: self.parts.into_iter().map(|part| part.actor).collect(),
            camera,
            backdrop: if real { ground(self.rng) } else { gradient(self.rng) },
            light: [
                if real { self.rng.random_range(0.02..0.12) } else { 0.0 },
                self.rng.random_range(0.0..1.0),
            ],
            grain: if real { self.rng.random_range(0.01..0.04) } else { 0.0 },
            seed: self.rng.random(),
        }
    }

    fn camera(&mut self) -> Camera {
        let any = pick(&CAMERA, self.rng);
        let motion = if self.ego { self.camera.unwrap_or(any) } else { Motion::Still };
        let [dx, dy] = motion.direction();
        Camera {
            path: [dx * self.ego_travel * self.aspect, dy * self.ego_travel],
            zoom: match motion.approach() {
                a if a > 0.0 => [1.0, ZOOM],
                a if a < 0.0 => [ZOOM, 1.0],
                _ => [1.0; 2],
            },
            shake: match (self.real, self.ego) {
                (false, _) => 0.0,
                (true, true) => 0.014,
                (true, false) => 0.006,
            },
            phase: self.rng.random_range(0.0..1.0),
        }
    }

    fn choose_sizes(&mut self) {
        let crowded = self.ego || self.parts.len() > EASY_TO_SEE - 1;
        for part in self.parts.iter_mut().filter(|part| part.sizable) {
            let size = self.rng.random_range(if crowded { SIZES_IN_CROWD } else { SIZES });
            part.actor.radius = [MIN_RADIUS * size; 2];
        }
    }

    /// Places the things one after another, several times over; the best layout stays.
    fn place_all(&mut self, camera: &Camera) {
        let steps = if self.jumps { 1 } else { MOMENTS - 1 };
        let moments: Vec<_> = (0..=steps)
            .map(|step| {
                let t = step as f32 / steps as f32;
                (t, camera.view(t))
            })
            .collect();
        let mut best = (f32::NEG_INFINITY, Vec::new());
        for _ in 0..LAYOUTS {
            let mut worst = f32::INFINITY;
            for index in 0..self.parts.len() {
                worst = worst.min(self.place_best(index, &moments));
            }
            if worst > best.0 {
                best = (worst, self.parts.iter().map(|part| part.actor.place).collect());
            }
        }
        for (part, place) in self.parts.iter_mut().zip(best.1) {
            part.actor.place = place;
        }
    }

    /// Places a thing where, among random places, it stays farthest from those before
    /// it and inside the frame. Out: its clearance.
    fn place_best(&mut self, index: usize, moments: &[(f32, View)]) -> f32 {
        let half = [self.aspect / 2.0, 0.5];
        let (others, rest) = self.parts.split_at_mut(index);
        let actor = &mut rest[0].actor;
        let mut best = (f32::NEG_INFINITY, actor.place);
        for _ in 0..PLACEMENTS {
            actor.place = half.map(|half| half * self.rng.random_range(-1.0..1.0));
            let others = others.iter().map(|part| &part.actor);
            let clearance = clearance(actor, &others, moments, half);
            if clearance > best.0 {
                best = (clearance, actor.place);
            }
        }
        actor.place = best.1;
        best.0
    }
}

/// The least gap between `actor` and the frame's border or another thing, over the clip; negative
/// where they overlap.
fn clearance<'a>(
    actor: &Actor,
    others: &(impl Iterator<Item = &'a Actor> + Clone),
    moments: &[(f32, View)],
    half: Vec2,
) -> f32 {
    // Past this gap, more room makes a place no better.
    const AMPLE: f32 = 0.05;
    let mut least = AMPLE;
    for &(t, view) in moments {
        let Pose { centre: [x, y], radius, .. } = actor.pose(t, view);
        least = least.min(half[0] - radius - x.abs()).min(half[1] - radius - y.abs());
        for other in others.clone() {
            let other = other.pose(t, view);
            let gap = (x - other.centre[0]).hypot(y - other.centre[1]) - radius - other.radius;
            least = least.min(gap);
        }
    }
    least
}

/// One of `options`, of which there is at least one, each with equal chance.
pub(super) fn pick<T: Copy>(options: &[T], rng: &mut ChaCha8Rng) -> T {
    options[rng.random_range(0..options.len())]
}

/// A muted colour around a grey of the given range.
fn muted(rng: &mut ChaCha8Rng, grey: Range<f32>) -> Rgb {
    let grey = rng.random_range(grey);
    [0; 3].map(|_| (grey + rng.random_range(-0.02..0.02)).clamp(0.0, 1.0))
}

fn gradient(rng: &mut ChaCha8Rng) -> Backdrop {
    let from = muted(rng, 0.55..0.9);
    let to = if rng.random_bool(0.3) { from } else { muted(rng, 0.35..0.9) };
    let angle: f32 = rng.random_range(0.0..std::f32::consts::TAU);
    Backdrop::Gradient { from, to, along: [angle.cos(), angle.sin()] }
}

/// Ground from round patches to streaks across or down.
fn ground(rng: &mut ChaCha8Rng) -> Backdrop {
    let tones = [muted(rng, 0.2..0.35), muted(rng, 0.42..0.58), muted(rng, 0.65..0.8)];
    let (size, stretch) = (rng.random_range(3.5..6.0), rng.random_range(0.5..2.0_f32));
    Backdrop::Ground {
        tones,
        scale: [size * stretch.sqrt(), size / stretch.sqrt()],
        seed: rng.random(),
    }
}
