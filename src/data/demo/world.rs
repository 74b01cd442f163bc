//! A scene: what stands in it, how it moves, and how the camera moves.
//!
//! Lengths are in frame heights, the origin is the frame's middle, `x` runs to the right and `y`
//! down; time runs from 0 at the first frame to 1 at the last one.

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::figures::{COLOURS, Colour, KINDS, Kind, Rgb};

/// A point or an offset.
pub(super) type Vec2 = [f32; 2];

/// The smallest radius of a thing: 20 pixels across in a frame 84 pixels high.
const MIN_RADIUS: f32 = 0.125;
/// The radius of a thing that is near.
const NEAR_RADIUS: f32 = 0.29;
/// How far a thing moves, as a share of the frame's side: at least a third.
const TRAVEL: std::ops::Range<f32> = 0.42..0.58;
/// The same where the camera moves too: both together still fit the frame.
const EGO_TRAVEL: std::ops::Range<f32> = 0.34..0.39;
/// How far a thing turns, in radians: past a half turn, yet under a quarter turn between two of
/// four sampled frames.
const SWEEP: std::ops::Range<f32> = 3.2..4.4;
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

/// How a thing, or the camera, moves relative to the scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Motion {
    Still,
    Left,
    Right,
    Up,
    Down,
    /// Of a thing: nearer to the camera. Of the camera: forward.
    Towards,
    /// Of a thing: farther from the camera. Of the camera: backward.
    Away,
    Clockwise,
    CounterClockwise,
}

impl Motion {
    /// What the things that nobody asks about do.
    pub(super) const EXTRA: [Self; 7] = [
        Self::Still,
        Self::Left,
        Self::Right,
        Self::Up,
        Self::Down,
        Self::Clockwise,
        Self::CounterClockwise,
    ];
    /// What a camera can do.
    const CAMERA: [Self; 7] =
        [Self::Still, Self::Left, Self::Right, Self::Up, Self::Down, Self::Towards, Self::Away];

    /// Its direction in the frame's plane.
    pub(super) fn direction(self) -> Vec2 {
        match self {
            Self::Left => [-1.0, 0.0],
            Self::Right => [1.0, 0.0],
            Self::Up => [0.0, -1.0],
            Self::Down => [0.0, 1.0],
            _ => [0.0, 0.0],
        }
    }

    /// 1 for nearer, -1 for farther.
    fn approach(self) -> f32 {
        match self {
            Self::Towards => 1.0,
            Self::Away => -1.0,
            _ => 0.0,
        }
    }

    /// 1 for clockwise, -1 for counter-clockwise (`y` runs down).
    fn turn(self) -> f32 {
        match self {
            Self::Clockwise => 1.0,
            Self::CounterClockwise => -1.0,
            _ => 0.0,
        }
    }
}

/// The pattern on a body.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pattern {
    Plain,
    Stripes,
    Dots,
}

/// A thing in the scene.
#[derive(Debug)]
pub(super) struct Actor {
    pub(super) kind: &'static Kind,
    pub(super) colour: Colour,
    pub(super) pattern: Pattern,
    /// 1 where the front looks right, -1 where it looks left.
    pub(super) facing: f32,
    /// Where the middle of its path lies.
    place: Vec2,
    /// The offset between its path's ends.
    path: Vec2,
    /// Its radius at the first and the last frame.
    radius: [f32; 2],
    /// Its angle at the first and the last frame, in radians clockwise.
    angle: [f32; 2],
}

/// Where a thing is at one moment, in the frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pose {
    pub(super) centre: Vec2,
    pub(super) radius: f32,
    pub(super) angle: f32,
}

/// The camera's path.
#[derive(Debug)]
pub(super) struct Camera {
    path: Vec2,
    zoom: [f32; 2],
    shake: f32,
    phase: f32,
}

/// What the camera sees at one moment: `frame = zoom × (scene - centre)`.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) centre: Vec2,
    pub(super) zoom: f32,
}

/// What stands behind the things.
#[derive(Debug)]
pub(super) enum Backdrop {
    /// A colour that runs into another along a direction.
    Gradient { from: Rgb, to: Rgb, along: Vec2 },
    /// Patches of three tones, fixed to the scene.
    Ground { tones: [Rgb; 3], seed: u32 },
}

/// A scene, complete but for its seed's noise.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) actors: Vec<Actor>,
    pub(super) camera: Camera,
    pub(super) backdrop: Backdrop,
    /// How much the light swings around 1, and where the swing starts.
    pub(super) light: [f32; 2],
    /// The noise on each channel.
    pub(super) grain: f32,
    pub(super) seed: u32,
}

/// A scene in the making: things are added, then placed.
pub(super) struct Stage<'a> {
    rng: &'a mut ChaCha8Rng,
    source: Source,
    aspect: f32,
    kinds: Vec<&'static Kind>,
    colours: Vec<Colour>,
    actors: Vec<Actor>,
    doubles: Vec<&'static Kind>,
    /// How the camera moves, once that is settled.
    camera: Option<Motion>,
}

impl<'a> Stage<'a> {
    /// An empty stage; `aspect` is the frame's width over its height.
    pub(super) fn new(source: Source, aspect: f32, rng: &'a mut ChaCha8Rng) -> Self {
        let mut kinds: Vec<_> = KINDS.iter().collect();
        kinds.shuffle(rng);
        Self {
            rng,
            source,
            aspect,
            kinds,
            colours: Vec::new(),
            actors: Vec::new(),
            doubles: Vec::new(),
            camera: None,
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
        if self.colours.is_empty() {
            self.colours = COLOURS.to_vec();
            self.colours.shuffle(self.rng);
        }
        self.colours.pop().unwrap_or(COLOURS[0])
    }

    /// Whether the camera's motion is still open.
    pub(super) fn camera_is_open(&self) -> bool {
        self.camera.is_none()
    }

    /// Settles how the camera moves.
    pub(super) fn move_camera(&mut self, motion: Motion) {
        self.camera = Some(motion);
    }

    /// Adds a thing; it looks to either side unless `facing` says to which.
    pub(super) fn add(
        &mut self,
        kind: &'static Kind,
        colour: Colour,
        motion: Motion,
        facing: Option<f32>,
    ) {
        let ego = self.source == Source::Ego4d;
        let travel = self.rng.random_range(if ego { EGO_TRAVEL } else { TRAVEL });
        let [dx, dy] = motion.direction();
        let size = self.rng.random_range(MIN_RADIUS..MIN_RADIUS * 1.25);
        let tilt = self.rng.random_range(-0.12..0.12);
        let sweep = motion.turn() * self.rng.random_range(SWEEP);
        let facing = facing.unwrap_or(pick(&[1.0, -1.0], self.rng));
        self.actors.push(Actor {
            kind,
            colour,
            pattern: pick(&[Pattern::Plain, Pattern::Stripes, Pattern::Dots], self.rng),
            facing,
            place: [0.0; 2],
            path: [dx * travel * self.aspect, dy * travel],
            radius: match motion.approach() {
                a if a > 0.0 => [MIN_RADIUS, NEAR_RADIUS],
                a if a < 0.0 => [NEAR_RADIUS, MIN_RADIUS],
                _ => [size; 2],
            },
            angle: [tilt, tilt + sweep],
        });
    }

    /// Allows for a thing of `kind` that nobody asks about, in another colour.
    pub(super) fn allow_double(&mut self, kind: &'static Kind) {
        self.doubles.push(kind);
    }

    /// Adds up to two things that nobody asks about, at least one to an empty stage.
    pub(super) fn add_extras(&mut self) {
        let least = usize::from(self.actors.is_empty());
        let room = EASY_TO_SEE.saturating_sub(self.actors.len()).min(2);
        for _ in 0..self.rng.random_range(least..=room) {
            let motion = pick(&Motion::EXTRA, self.rng);
            let shows = |kind: &Kind| motion.turn() == 0.0 || kind.lopsided;
            let double = self.doubles.pop_if(|kind| shows(kind));
            if let Some(kind) = double.or_else(|| self.take_kind(shows)) {
                let colour = self.take_colour();
                self.add(kind, colour, motion, None);
            }
        }
    }

    /// Places everything and hands out the scene.
    pub(super) fn build(mut self) -> Scene {
        let camera = self.camera();
        self.place_actors(&camera);
        let real = self.source != Source::Synthetic;
        Scene {
            actors: self.actors,
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
        let ego = self.source == Source::Ego4d;
        let any = pick(&Motion::CAMERA, self.rng);
        let motion = if ego { self.camera.unwrap_or(any) } else { Motion::Still };
        let travel = self.rng.random_range(EGO_TRAVEL);
        let [dx, dy] = motion.direction();
        Camera {
            path: [dx * travel * self.aspect, dy * travel],
            zoom: match motion.approach() {
                a if a > 0.0 => [1.0, ZOOM],
                a if a < 0.0 => [ZOOM, 1.0],
                _ => [1.0; 2],
            },
            shake: match self.source {
                Source::Synthetic => 0.0,
                Source::Ego4d => 0.014,
                _ => 0.006,
            },
            phase: self.rng.random_range(0.0..1.0),
        }
    }

    /// Places the things one after another, several times over; the best layout stays.
    fn place_actors(&mut self, camera: &Camera) {
        let moments: [_; MOMENTS] = std::array::from_fn(|i| {
            let t = i as f32 / (MOMENTS - 1) as f32;
            (t, camera.view(t))
        });
        let mut best = (f32::NEG_INFINITY, Vec::new());
        for _ in 0..LAYOUTS {
            let mut worst = f32::INFINITY;
            for index in 0..self.actors.len() {
                worst = worst.min(self.place_best(index, &moments));
            }
            if worst > best.0 {
                best = (worst, self.actors.iter().map(|actor| actor.place).collect());
            }
        }
        for (actor, place) in self.actors.iter_mut().zip(best.1) {
            actor.place = place;
        }
    }

    /// Places a thing where, among random places, it stays farthest from those before it and
    /// inside the frame. Out: its clearance.
    fn place_best(&mut self, index: usize, moments: &[(f32, View)]) -> f32 {
        let half = [self.aspect / 2.0, 0.5];
        let (others, rest) = self.actors.split_at_mut(index);
        let actor = &mut rest[0];
        let mut best = (f32::NEG_INFINITY, actor.place);
        for _ in 0..PLACEMENTS {
            actor.place = half.map(|h| self.rng.random_range(-h..h));
            let clearance = clearance(actor, others, moments, half);
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
fn clearance(actor: &Actor, others: &[Actor], moments: &[(f32, View)], half: Vec2) -> f32 {
    // Past this gap, more room makes a place no better.
    const AMPLE: f32 = 0.05;
    let mut least = AMPLE;
    for &(t, view) in moments {
        let Pose { centre: [x, y], radius, .. } = actor.pose(t, view);
        least = least.min(half[0] - radius - x.abs()).min(half[1] - radius - y.abs());
        for other in others {
            let other = other.pose(t, view);
            let gap = (x - other.centre[0]).hypot(y - other.centre[1]) - radius - other.radius;
            least = least.min(gap);
        }
    }
    least
}

impl Actor {
    /// Where it is at time `t`, as `view` sees it.
    pub(super) fn pose(&self, t: f32, view: View) -> Pose {
        let along = |axis: usize| {
            view.zoom * (self.place[axis] + self.path[axis] * (t - 0.5) - view.centre[axis])
        };
        // Equal ratios in equal times, as of a thing that nears at a steady pace.
        let radius = self.radius[0] * (self.radius[1] / self.radius[0]).powf(t);
        Pose {
            centre: [along(0), along(1)],
            radius: view.zoom * radius,
            angle: mix(self.angle[0], self.angle[1], t),
        }
    }
}

impl Camera {
    /// What it sees at time `t`.
    pub(super) fn view(&self, t: f32) -> View {
        let wave = |rate: f32| self.shake * (std::f32::consts::TAU * (rate * t + self.phase)).sin();
        View {
            centre: [
                self.path[0] * (t - 0.5) + wave(3.1) + 0.5 * wave(7.3),
                self.path[1] * (t - 0.5) + wave(4.3) + 0.5 * wave(6.1),
            ],
            zoom: self.zoom[0] * (self.zoom[1] / self.zoom[0]).powf(t),
        }
    }
}

/// `a` at 0, `b` at 1.
pub(super) fn mix(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

/// One of `options`, of which there is at least one, each with equal chance.
pub(super) fn pick<T: Copy>(options: &[T], rng: &mut ChaCha8Rng) -> T {
    options[rng.random_range(0..options.len())]
}

/// A muted colour around a grey of the given range.
fn muted(rng: &mut ChaCha8Rng, grey: std::ops::Range<f32>) -> Rgb {
    let grey = rng.random_range(grey);
    [0; 3].map(|_| (grey + rng.random_range(-0.06..0.06)).clamp(0.0, 1.0))
}

fn gradient(rng: &mut ChaCha8Rng) -> Backdrop {
    let from = muted(rng, 0.55..0.9);
    let to = if rng.random_bool(0.3) { from } else { muted(rng, 0.35..0.9) };
    let angle: f32 = rng.random_range(0.0..std::f32::consts::TAU);
    Backdrop::Gradient { from, to, along: [angle.cos(), angle.sin()] }
}

fn ground(rng: &mut ChaCha8Rng) -> Backdrop {
    let tones = [muted(rng, 0.2..0.35), muted(rng, 0.42..0.58), muted(rng, 0.65..0.8)];
    Backdrop::Ground { tones, seed: rng.random() }
}
