//! Paints a scene at one moment: an RGB frame, anti-aliased.

use super::figures::{Ink, Rgb, Shape};
use super::scene::{Actor, Backdrop, Pose, Scene, Texture, Vec2, View, mix};

/// Corners of an ellipse.
const CORNERS: usize = 28;
/// Sub-rows per pixel row; along a row the coverage is exact.
const SUB_ROWS: usize = 4;
/// How far the dark rim reaches beyond a thing, relative to its radius.
const RIM: f32 = 1.09;
const BLACK: Rgb = [0.07; 3];
const WHITE: Rgb = [0.96; 3];

/// An image whose channels lie in 0..=1, row by row.
struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<Rgb>,
}

/// How much brighter, as a share, a lamp's colour is at the side that it lights than at the other. A
/// red lamp on the left, a blue one on the right and a green one below light the backdrop: it tells
/// where in the frame a patch is, which a small vision tower, whose positions are relative, was not
/// seen to find out from the frame's border.
const LAMP: f32 = 0.5;

/// Paints `scene` at time `t` (0 at the first frame, 1 at the last).
///
/// `size`: width and height in pixels. Out: `height × width × 3` bytes, RGB.
pub(super) fn paint(scene: &Scene, t: f32, size: [usize; 2]) -> Vec<u8> {
    let view = scene.camera.view(t);
    let mut canvas = Canvas::backdrop(&scene.backdrop, view, size);
    for actor in &scene.actors {
        canvas.actor(actor, actor.pose(t, view));
    }
    let light = 1.0 + scene.light[0] * (std::f32::consts::TAU * (t + scene.light[1])).sin();
    let frame = scene.seed ^ t.to_bits();
    let grain = |i: usize| (hash(frame, i as u32, 0) - 0.5) * 2.0 * scene.grain;
    let channels = canvas.pixels.iter().flatten().enumerate();
    channels.map(|(i, channel)| ((channel * light + grain(i)) * 255.0).round() as u8).collect()
}

impl Canvas {
    fn backdrop(backdrop: &Backdrop, view: View, [width, height]: [usize; 2]) -> Self {
        let mut pixels = Vec::with_capacity(width * height);
        for row in 0..height {
            for column in 0..width {
                let x = (column as f32 + 0.5 - width as f32 / 2.0) / height as f32;
                let y = (row as f32 + 0.5) / height as f32 - 0.5;
                let [r, g, b] =
                    backdrop.at([x / view.zoom + view.centre[0], y / view.zoom + view.centre[1]]);
                let [right, below] = [x * height as f32 / width as f32, y];
                pixels.push([
                    r * (1.0 - LAMP * (right + 0.5 * below)),
                    g * (1.0 + LAMP * below),
                    b * (1.0 + LAMP * (right - 0.5 * below)),
                ]);
            }
        }
        Self { width, height, pixels }
    }

    fn actor(&mut self, actor: &Actor, pose: Pose) {
        let rim = Pose { radius: pose.radius * RIM, ..pose };
        for (_, shape) in actor.kind.parts {
            self.fill(&self.outline(shape, actor.facing, rim), |_| BLACK);
        }
        for (ink, shape) in actor.kind.parts {
            let outline = self.outline(shape, actor.facing, pose);
            let [dx, dy] = self.pixel(pose.centre);
            let scale = 1.0 / (pose.radius * self.height as f32);
            let body = actor.colour.rgb;
            match ink {
                Ink::Body => self.fill(&outline, |[x, y]| {
                    let local = rotate([(x - dx) * scale, (y - dy) * scale], -pose.angle);
                    shade(body, actor.texture.at(local))
                }),
                Ink::Shade => self.fill(&outline, |_| shade(body, 0.62)),
                Ink::Tint => self.fill(&outline, |_| body.map(|c| mix(c, 1.0, 0.45))),
                Ink::Black => self.fill(&outline, |_| BLACK),
                Ink::White => self.fill(&outline, |_| WHITE),
            }
        }
    }

    /// A part's corners in pixels.
    fn outline(&self, shape: &Shape, facing: f32, pose: Pose) -> Vec<Vec2> {
        let corner = |[x, y]: Vec2| {
            let [x, y] = rotate([x * facing, y], pose.angle);
            self.pixel([pose.centre[0] + pose.radius * x, pose.centre[1] + pose.radius * y])
        };
        match *shape {
            Shape::Polygon(corners) => corners.iter().copied().map(corner).collect(),
            Shape::Ellipse([x, y, rx, ry]) => (0..CORNERS)
                .map(|i| {
                    let (sin, cos) = (std::f32::consts::TAU * i as f32 / CORNERS as f32).sin_cos();
                    corner([x + rx * cos, y + ry * sin])
                })
                .collect(),
        }
    }

    /// A point of the frame in pixels.
    fn pixel(&self, [x, y]: Vec2) -> Vec2 {
        let height = self.height as f32;
        [x * height + self.width as f32 / 2.0, (y + 0.5) * height]
    }

    /// Fills the polygon `corners` (in pixels) with the colour that `paint` gives at a pixel's
    /// middle; pixels on the border are blended by how much of them is covered.
    fn fill(&mut self, corners: &[Vec2], paint: impl Fn(Vec2) -> Rgb) {
        let rows = corners.iter().map(|c| c[1]);
        let top = rows.clone().fold(f32::INFINITY, f32::min).floor().max(0.0) as usize;
        let bottom = rows.fold(0.0, f32::max).ceil().max(0.0) as usize;
        let mut coverage = vec![0.0_f32; self.width];
        for row in top..bottom.min(self.height) {
            coverage.fill(0.0);
            for sub_row in 0..SUB_ROWS {
                let y = row as f32 + (sub_row as f32 + 0.5) / SUB_ROWS as f32;
                for [from, to] in crossings(corners, y).as_chunks::<2>().0 {
                    cover(&mut coverage, *from, *to);
                }
            }
            let pixels = &mut self.pixels[row * self.width..][..self.width];
            for (column, (pixel, covered)) in pixels.iter_mut().zip(&coverage).enumerate() {
                if *covered > 0.0 {
                    let colour = paint([column as f32 + 0.5, row as f32 + 0.5]);
                    for (channel, new) in pixel.iter_mut().zip(colour) {
                        *channel = mix(*channel, new, (covered / SUB_ROWS as f32).min(1.0));
                    }
                }
            }
        }
    }
}

/// Where the outline crosses the height `y`, from left to right: an even number of places.
fn crossings(corners: &[Vec2], y: f32) -> Vec<f32> {
    let next = corners.iter().cycle().skip(1);
    let mut places: Vec<f32> = corners
        .iter()
        .zip(next)
        .filter(|(a, b)| (a[1] <= y) != (b[1] <= y))
        .map(|(a, b)| mix(a[0], b[0], (y - a[1]) / (b[1] - a[1])))
        .collect();
    places.sort_by(f32::total_cmp);
    places
}

/// Adds the share of each pixel that lies between `from` and `to`.
fn cover(coverage: &mut [f32], from: f32, to: f32) {
    let [from, to] = [from, to].map(|x| x.clamp(0.0, coverage.len() as f32));
    let first = from.floor() as usize;
    for (column, share) in coverage.iter_mut().enumerate().take(to.ceil() as usize).skip(first) {
        *share += to.min(column as f32 + 1.0) - from.max(column as f32);
    }
}

/// Turns a point around the origin, clockwise on the screen.
fn rotate([x, y]: Vec2, angle: f32) -> Vec2 {
    let (sin, cos) = angle.sin_cos();
    [x * cos - y * sin, x * sin + y * cos]
}

fn shade(colour: Rgb, by: f32) -> Rgb {
    colour.map(|c| c * by)
}

impl Texture {
    /// How bright the body is at a point of the unit disc.
    fn at(self, [x, y]: Vec2) -> f32 {
        let near = |v: f32, step: f32| (v / step - (v / step).round()).abs() * step;
        match self {
            Self::Stripes if near(x + 0.3 * y, 0.4) < 0.09 => 0.72,
            Self::Dots if near(x, 0.42).hypot(near(y, 0.42)) < 0.11 => 0.68,
            Self::Checks
                if (x / 0.34).floor().rem_euclid(2.0) == (y / 0.34).floor().rem_euclid(2.0) =>
            {
                0.76
            }
            _ => 1.0,
        }
    }
}

impl Backdrop {
    /// Its colour at a point of the scene.
    fn at(&self, [x, y]: Vec2) -> Rgb {
        match self {
            Self::Gradient { from, to, along } => {
                let t = (0.5 + 0.7 * (x * along[0] + y * along[1])).clamp(0.0, 1.0);
                [0, 1, 2].map(|c| mix(from[c], to[c], t))
            }
            Self::Ground { tones: [low, middle, high], scale, seed } => {
                let patches = noise(*seed, x * scale[0], y * scale[1]);
                let detail = noise(seed ^ 1, x * 16.0, y * 16.0);
                let t = (2.6 * (patches - 0.5) + 0.35 * (detail - 0.5)).clamp(-0.5, 0.5) * 2.0;
                let end = if t < 0.0 { low } else { high };
                [0, 1, 2].map(|c| mix(middle[c], end[c], t.abs()))
            }
        }
    }
}

/// Smooth noise in 0..=1: random values on a grid of step 1, blended in between.
fn noise(seed: u32, x: f32, y: f32) -> f32 {
    let [fx, fy] = [x, y].map(|v| v - v.floor()).map(|f| f * f * (3.0 - 2.0 * f));
    let [ix, iy] = [x, y].map(|v| v.floor() as i32);
    let at = |dx: i32, dy: i32| hash(seed, (ix + dx).cast_unsigned(), (iy + dy).cast_unsigned());
    mix(mix(at(0, 0), at(1, 0), fx), mix(at(0, 1), at(1, 1), fx), fy)
}

/// A number in 0..1 that depends on all three arguments, by multiply-xorshift mixing.
fn hash(seed: u32, x: u32, y: u32) -> f32 {
    let mut h = seed ^ x.wrapping_mul(0x9e37_79b1) ^ y.wrapping_mul(0x85eb_ca77);
    for _ in 0..2 {
        h = (h ^ (h >> 15)).wrapping_mul(0x2c1b_3c6d);
        h = (h ^ (h >> 12)).wrapping_mul(0x297a_2d39);
    }
    (h >> 8) as f32 / (1 << 24) as f32
}
