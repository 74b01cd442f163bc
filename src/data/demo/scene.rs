//! A scene: what stands in it, how it moves, and how the camera moves.
//!
//! Lengths are in frame heights, the origin is the frame's middle, `x` runs to the right and `y`
//! down; time runs from 0 at the first frame to 1 at the last one.

use super::figures::{Colour, Kind, Rgb};

/// A point or an offset.
pub(super) type Vec2 = [f32; 2];

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
    pub(super) fn approach(self) -> f32 {
        match self {
            Self::Towards => 1.0,
            Self::Away => -1.0,
            _ => 0.0,
        }
    }

    /// 1 for clockwise, -1 for counter-clockwise (`y` runs down).
    pub(super) fn turn(self) -> f32 {
        match self {
            Self::Clockwise => 1.0,
            Self::CounterClockwise => -1.0,
            _ => 0.0,
        }
    }

    /// The motion that undoes it.
    pub(super) fn opposite(self) -> Self {
        match self {
            Self::Still => Self::Still,
            Self::Left => Self::Right,
            Self::Right => Self::Left,
            Self::Up => Self::Down,
            Self::Down => Self::Up,
            Self::Towards => Self::Away,
            Self::Away => Self::Towards,
            Self::Clockwise => Self::CounterClockwise,
            Self::CounterClockwise => Self::Clockwise,
        }
    }
}

/// The texture of a body.
#[derive(Clone, Copy, Debug)]
pub(super) enum Texture {
    Plain,
    Stripes,
    Dots,
    Checks,
}

/// A thing in the scene.
#[derive(Debug)]
pub(super) struct Actor {
    pub(super) kind: &'static Kind,
    pub(super) colour: Colour,
    pub(super) texture: Texture,
    /// 1 where the front looks right, -1 where it looks left.
    pub(super) facing: f32,
    /// Where the middle of its path lies.
    pub(super) place: Vec2,
    /// The offset between its path's ends.
    pub(super) path: Vec2,
    /// Its radius at the first and the last frame.
    pub(super) radius: [f32; 2],
    /// Its angle at the first and the last frame, in radians clockwise.
    pub(super) angle: [f32; 2],
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
    pub(super) path: Vec2,
    pub(super) zoom: [f32; 2],
    pub(super) shake: f32,
    pub(super) phase: f32,
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
    /// Patches of three tones, fixed to the scene; `scale` says how many to a frame height, across
    /// and down.
    Ground { tones: [Rgb; 3], scale: Vec2, seed: u32 },
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

impl Actor {
    /// Its radius at time `t`.
    fn radius_at(&self, t: f32) -> f32 {
        // Equal ratios in equal times, as of a thing that nears at a steady pace.
        self.radius[0] * (self.radius[1] / self.radius[0]).powf(t)
    }

    /// Where it is at time `t`, as `view` sees it.
    pub(super) fn pose(&self, t: f32, view: View) -> Pose {
        let along = |axis: usize| {
            view.zoom * (self.place[axis] + self.path[axis] * (t - 0.5) - view.centre[axis])
        };
        Pose {
            centre: [along(0), along(1)],
            radius: view.zoom * self.radius_at(t),
            angle: mix(self.angle[0], self.angle[1], t),
        }
    }
}

impl Camera {
    fn zoom_at(&self, t: f32) -> f32 {
        self.zoom[0] * (self.zoom[1] / self.zoom[0]).powf(t)
    }

    /// What it sees at time `t`.
    pub(super) fn view(&self, t: f32) -> View {
        let wave = |rate: f32| self.shake * (std::f32::consts::TAU * (rate * t + self.phase)).sin();
        View {
            centre: [
                self.path[0] * (t - 0.5) + wave(3.1) + 0.5 * wave(7.3),
                self.path[1] * (t - 0.5) + wave(4.3) + 0.5 * wave(6.1),
            ],
            zoom: self.zoom_at(t),
        }
    }
}

/// `a` at 0, `b` at 1.
pub(super) fn mix(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}
