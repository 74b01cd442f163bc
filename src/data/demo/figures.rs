//! What things look like: every kind of thing as coloured polygons and ellipses.
//!
//! Coordinates: the unit disc around the thing's middle, `x` to the right, `y` down; a thing
//! with a front looks to the right.

/// An RGB colour, each channel in 0..=1.
pub(super) type Rgb = [f32; 3];

/// A named body colour. Hues lie apart, so that lossy video keeps them distinct.
#[derive(Clone, Copy, Debug)]
pub(super) struct Colour {
    pub(super) name: &'static str,
    pub(super) rgb: Rgb,
}

const fn colour(name: &'static str, rgb: Rgb) -> Colour {
    Colour { name, rgb }
}

/// The body colours. No backdrop comes near their saturation.
pub(super) const COLOURS: [Colour; 7] = [
    colour("red", [0.88, 0.10, 0.12]),
    colour("orange", [1.00, 0.52, 0.00]),
    colour("yellow", [0.98, 0.90, 0.08]),
    colour("green", [0.08, 0.66, 0.20]),
    colour("blue", [0.10, 0.30, 0.92]),
    colour("purple", [0.52, 0.14, 0.80]),
    colour("pink", [1.00, 0.42, 0.72]),
];

/// What a part is painted with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ink {
    /// The body colour with the thing's texture.
    Body,
    /// The body colour, darkened.
    Shade,
    /// The body colour, lightened.
    Tint,
    Black,
    White,
}

/// The outline of a part.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// Corners in order.
    Polygon(&'static [[f32; 2]]),
    /// `[centre x, centre y, radius x, radius y]`.
    Ellipse([f32; 4]),
}

use Ink::{Black, Body, Shade, Tint, White};
use Shape::{Ellipse, Polygon};

/// A kind of thing. Later parts cover earlier ones.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) noun: &'static str,
    pub(super) plural: &'static str,
    /// Seen from its side, so that forwards and backwards mean something.
    pub(super) has_front: bool,
    /// No turn short of a full one maps it onto itself, so that turning shows.
    pub(super) lopsided: bool,
    pub(super) parts: &'static [(Ink, Shape)],
}

impl Kind {
    const fn facing(noun: &'static str, plural: &'static str, parts: &'static [Part]) -> Self {
        Self { noun, plural, has_front: true, lopsided: true, parts }
    }

    const fn upright(noun: &'static str, plural: &'static str, parts: &'static [Part]) -> Self {
        Self { noun, plural, has_front: false, lopsided: true, parts }
    }

    const fn even(noun: &'static str, plural: &'static str, parts: &'static [Part]) -> Self {
        Self { noun, plural, has_front: false, lopsided: false, parts }
    }
}

type Part = (Ink, Shape);

/// All kinds of things.
pub(super) const KINDS: [Kind; 20] = [
    Kind::facing(
        "car",
        "cars",
        &[
            (
                Body,
                Polygon(&[[-1.0, -0.05], [-0.6, -0.1], [-0.4, -0.5], [0.25, -0.5], [0.5, -0.1]]),
            ),
            (Body, Polygon(&[[-1.0, -0.1], [0.5, -0.1], [1.0, 0.05], [1.0, 0.4], [-1.0, 0.4]])),
            (White, Polygon(&[[-0.45, -0.1], [-0.3, -0.4], [-0.08, -0.4], [-0.08, -0.1]])),
            (White, Polygon(&[[0.02, -0.1], [0.02, -0.4], [0.2, -0.4], [0.38, -0.1]])),
            (Black, Ellipse([-0.55, 0.4, 0.24, 0.24])),
            (Black, Ellipse([0.55, 0.4, 0.24, 0.24])),
            (White, Ellipse([0.9, 0.12, 0.1, 0.1])),
        ],
    ),
    Kind::facing(
        "truck",
        "trucks",
        &[
            (Body, Polygon(&[[-1.0, -0.6], [0.3, -0.6], [0.3, 0.4], [-1.0, 0.4]])),
            (Shade, Polygon(&[[0.36, -0.3], [0.75, -0.3], [1.0, 0.05], [1.0, 0.4], [0.36, 0.4]])),
            (White, Polygon(&[[0.5, -0.2], [0.7, -0.2], [0.88, 0.05], [0.5, 0.05]])),
            (Black, Ellipse([-0.6, 0.42, 0.22, 0.22])),
            (Black, Ellipse([0.65, 0.42, 0.22, 0.22])),
        ],
    ),
    Kind::facing(
        "fish",
        "fish",
        &[
            (Shade, Polygon(&[[-0.4, 0.0], [-1.0, -0.5], [-0.8, 0.0], [-1.0, 0.5]])),
            (Shade, Polygon(&[[-0.2, -0.3], [0.0, -0.75], [0.4, -0.3]])),
            (Body, Ellipse([0.15, 0.0, 0.82, 0.48])),
            (Shade, Polygon(&[[0.2, 0.05], [-0.25, 0.32], [-0.1, 0.0]])),
            (White, Ellipse([0.6, -0.12, 0.16, 0.16])),
            (Black, Ellipse([0.64, -0.12, 0.08, 0.08])),
        ],
    ),
    Kind::facing(
        "bird",
        "birds",
        &[
            (Black, Polygon(&[[-0.05, 0.4], [0.05, 0.4], [0.05, 0.9], [-0.05, 0.9]])),
            (Black, Polygon(&[[0.18, 0.4], [0.28, 0.4], [0.28, 0.9], [0.18, 0.9]])),
            (Shade, Polygon(&[[-0.4, 0.0], [-1.0, -0.15], [-0.9, 0.25], [-0.4, 0.3]])),
            (Body, Ellipse([0.0, 0.15, 0.62, 0.38])),
            (Body, Ellipse([0.48, -0.3, 0.3, 0.3])),
            (Black, Polygon(&[[0.74, -0.42], [1.05, -0.26], [0.74, -0.14]])),
            (Shade, Polygon(&[[0.3, 0.0], [-0.3, 0.0], [-0.55, -0.8]])),
            (White, Ellipse([0.56, -0.38, 0.1, 0.1])),
        ],
    ),
    Kind::facing(
        "plane",
        "planes",
        &[
            (Shade, Polygon(&[[-0.6, -0.1], [-0.95, -0.65], [-0.7, -0.65], [-0.3, -0.1]])),
            (Body, Ellipse([0.0, 0.0, 1.0, 0.27])),
            (White, Ellipse([0.72, -0.06, 0.14, 0.1])),
            (Shade, Polygon(&[[-0.1, 0.05], [0.35, 0.05], [-0.3, 0.75], [-0.5, 0.75]])),
        ],
    ),
    Kind::facing(
        "snail",
        "snails",
        &[
            (Tint, Polygon(&[[-1.0, 0.6], [-0.6, 0.3], [0.4, 0.3], [0.9, 0.35], [0.75, 0.6]])),
            (Tint, Polygon(&[[0.45, 0.5], [0.6, -0.25], [0.92, -0.25], [0.9, 0.5]])),
            (Black, Polygon(&[[0.68, -0.2], [0.62, -0.65], [0.7, -0.65], [0.76, -0.2]])),
            (Black, Polygon(&[[0.82, -0.2], [0.9, -0.62], [0.98, -0.6], [0.9, -0.2]])),
            (Body, Ellipse([-0.15, -0.05, 0.58, 0.55])),
            (Shade, Ellipse([-0.1, -0.02, 0.32, 0.3])),
            (Body, Ellipse([-0.06, 0.0, 0.15, 0.14])),
        ],
    ),
    Kind::facing(
        "mouse",
        "mice",
        &[
            (Black, Polygon(&[[-0.6, 0.3], [-1.0, -0.15], [-0.92, -0.2], [-0.5, 0.15]])),
            (Body, Ellipse([-0.05, 0.15, 0.68, 0.42])),
            (Body, Polygon(&[[0.35, -0.2], [1.0, 0.3], [0.35, 0.5]])),
            (Shade, Ellipse([0.3, -0.3, 0.26, 0.28])),
            (White, Ellipse([0.62, 0.08, 0.1, 0.1])),
            (Black, Ellipse([0.98, 0.28, 0.1, 0.1])),
        ],
    ),
    Kind::upright(
        "boat",
        "boats",
        &[
            (Black, Polygon(&[[-0.05, -0.95], [0.05, -0.95], [0.05, 0.3], [-0.05, 0.3]])),
            (Tint, Polygon(&[[0.12, -0.9], [0.85, 0.15], [0.12, 0.15]])),
            (White, Polygon(&[[-0.12, -0.6], [-0.12, 0.15], [-0.6, 0.15]])),
            (Body, Polygon(&[[-1.0, 0.28], [1.0, 0.28], [0.65, 0.75], [-0.65, 0.75]])),
        ],
    ),
    Kind::upright(
        "rocket",
        "rockets",
        &[
            (Shade, Polygon(&[[-0.3, 0.2], [-0.7, 0.85], [0.7, 0.85], [0.3, 0.2]])),
            (
                Body,
                Polygon(&[[0.0, -1.0], [0.35, -0.45], [0.35, 0.7], [-0.35, 0.7], [-0.35, -0.45]]),
            ),
            (White, Ellipse([0.0, -0.2, 0.2, 0.2])),
            (Black, Polygon(&[[-0.2, 0.7], [0.2, 0.7], [0.28, 1.0], [-0.28, 1.0]])),
        ],
    ),
    Kind::upright(
        "tree",
        "trees",
        &[
            (Black, Polygon(&[[-0.13, 0.1], [0.13, 0.1], [0.18, 1.0], [-0.18, 1.0]])),
            (Body, Ellipse([-0.36, -0.05, 0.42, 0.4])),
            (Body, Ellipse([0.36, -0.05, 0.42, 0.4])),
            (Body, Ellipse([0.0, -0.5, 0.5, 0.48])),
        ],
    ),
    Kind::upright(
        "house",
        "houses",
        &[
            (Shade, Polygon(&[[0.35, -0.85], [0.6, -0.85], [0.6, -0.2], [0.35, -0.2]])),
            (Body, Polygon(&[[-0.72, -0.15], [0.72, -0.15], [0.72, 0.85], [-0.72, 0.85]])),
            (Shade, Polygon(&[[0.0, -0.9], [0.95, -0.1], [-0.95, -0.1]])),
            (Black, Polygon(&[[-0.5, 0.25], [-0.12, 0.25], [-0.12, 0.85], [-0.5, 0.85]])),
            (White, Polygon(&[[0.15, 0.15], [0.52, 0.15], [0.52, 0.48], [0.15, 0.48]])),
        ],
    ),
    Kind::upright(
        "balloon",
        "balloons",
        &[
            (Black, Polygon(&[[-0.05, 0.45], [0.05, 0.45], [0.13, 1.0], [0.03, 1.0]])),
            (Shade, Polygon(&[[0.0, 0.25], [0.2, 0.56], [-0.2, 0.56]])),
            (Body, Ellipse([0.0, -0.3, 0.62, 0.7])),
            (White, Ellipse([-0.25, -0.55, 0.12, 0.18])),
        ],
    ),
    Kind::upright(
        "mushroom",
        "mushrooms",
        &[
            (White, Polygon(&[[-0.22, 0.0], [0.22, 0.0], [0.32, 0.9], [-0.32, 0.9]])),
            (
                Body,
                Polygon(&[
                    [-0.95, 0.1],
                    [-0.85, -0.3],
                    [-0.5, -0.66],
                    [0.0, -0.8],
                    [0.5, -0.66],
                    [0.85, -0.3],
                    [0.95, 0.1],
                ]),
            ),
            (White, Ellipse([-0.4, -0.25, 0.16, 0.14])),
            (White, Ellipse([0.2, -0.45, 0.16, 0.14])),
        ],
    ),
    Kind::upright(
        "triangle",
        "triangles",
        &[(Body, Polygon(&[[0.0, -0.95], [0.7, 0.8], [-0.7, 0.8]]))],
    ),
    Kind::upright(
        "heart",
        "hearts",
        &[(
            Body,
            Polygon(&[
                [0.0, 0.95],
                [-0.75, 0.2],
                [-0.95, -0.25],
                [-0.75, -0.65],
                [-0.38, -0.75],
                [0.0, -0.4],
                [0.38, -0.75],
                [0.75, -0.65],
                [0.95, -0.25],
                [0.75, 0.2],
            ]),
        )],
    ),
    Kind::upright(
        "moon",
        "moons",
        &[(
            Body,
            Polygon(&[
                [0.35, -0.95],
                [-0.25, -0.85],
                [-0.7, -0.45],
                [-0.85, 0.0],
                [-0.7, 0.45],
                [-0.25, 0.85],
                [0.35, 0.95],
                [-0.05, 0.5],
                [-0.2, 0.0],
                [-0.05, -0.5],
            ]),
        )],
    ),
    Kind::even(
        "cross",
        "crosses",
        &[
            (Body, Polygon(&[[-0.3, -0.95], [0.3, -0.95], [0.3, 0.95], [-0.3, 0.95]])),
            (Body, Polygon(&[[-0.95, -0.3], [0.95, -0.3], [0.95, 0.3], [-0.95, 0.3]])),
        ],
    ),
    Kind::even(
        "ball",
        "balls",
        &[
            (Body, Ellipse([0.0, 0.0, 0.9, 0.9])),
            (Shade, Ellipse([0.0, 0.0, 0.3, 0.9])),
            (White, Ellipse([-0.45, -0.45, 0.14, 0.14])),
        ],
    ),
    Kind::even(
        "box",
        "boxes",
        &[
            (Body, Polygon(&[[-0.8, -0.8], [0.8, -0.8], [0.8, 0.8], [-0.8, 0.8]])),
            (Shade, Polygon(&[[-0.14, -0.8], [0.14, -0.8], [0.14, 0.8], [-0.14, 0.8]])),
            (Shade, Polygon(&[[-0.8, -0.14], [0.8, -0.14], [0.8, 0.14], [-0.8, 0.14]])),
        ],
    ),
    Kind::even(
        "star",
        "stars",
        &[(
            Body,
            Polygon(&[
                [0.0, -1.0],
                [0.26, -0.36],
                [0.95, -0.31],
                [0.43, 0.14],
                [0.59, 0.81],
                [0.0, 0.45],
                [-0.59, 0.81],
                [-0.43, 0.14],
                [-0.95, -0.31],
                [-0.26, -0.36],
            ]),
        )],
    ),
];
