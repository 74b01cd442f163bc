//! In the videos is what the answers say.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use video_rs::Frame;

use super::{frames, items, rendered};

/// The colours' names with their hues in degrees.
pub(super) const HUES: [(&str, f64); 7] = [
    ("red", 358.0),
    ("orange", 31.0),
    ("yellow", 55.0),
    ("green", 132.0),
    ("blue", 226.0),
    ("purple", 275.0),
    ("pink", 329.0),
];

/// The name of a pixel's colour; none for a pale or dark one.
fn colour_name(pixel: [f64; 3]) -> Option<&'static str> {
    let [r, g, b] = pixel;
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    let chroma = most - least;
    if most < 90.0 {
        return None;
    }
    let hue = if most == r {
        (g - b) / chroma
    } else if most == g {
        2.0 + (b - r) / chroma
    } else {
        4.0 + (r - g) / chroma
    };
    let distance = |other: f64| {
        let d = (hue * 60.0 - other).rem_euclid(360.0);
        d.min(360.0 - d)
    };
    let (name, _) = HUES.iter().min_by(|a, b| distance(a.1).total_cmp(&distance(b.1)))?;
    // Pink is the palest; the lit backdrop is paler than the others.
    let share = if *name == "pink" { 0.5 } else { 0.6 };
    (chroma >= share * most).then_some(*name)
}

/// The `[x, y]` of the pixels of a colour.
pub(super) fn pixels_of(frame: &Frame, colour: &str) -> Vec<[f64; 2]> {
    let (height, width, _) = frame.dim();
    let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    places
        .filter(|&(x, y)| {
            colour_name([0, 1, 2].map(|c| f64::from(frame[[y, x, c]]))) == Some(colour)
        })
        .map(|(x, y)| [x as f64, y as f64])
        .collect()
}

pub(super) fn centroid(pixels: &[[f64; 2]]) -> [f64; 2] {
    [0, 1].map(|axis| pixels.iter().map(|p| p[axis]).sum::<f64>() / pixels.len() as f64)
}

/// The colour that a question names.
pub(super) fn named_colour(question: &str) -> Option<&'static str> {
    HUES.iter().map(|(name, _)| *name).find(|name| question.contains(&format!("the {name} ")))
}

/// Degrees by which `from`, turned clockwise around its centroid, covers `to` best.
fn turn_between(from: &[[f64; 2]], to: &[[f64; 2]]) -> f64 {
    let (from_centre, to_centre) = (centroid(from), centroid(to));
    let there: BTreeSet<_> = to.iter().map(|[x, y]| (*x as i64, *y as i64)).collect();
    let covered = |degrees: f64| {
        let (sin, cos) = degrees.to_radians().sin_cos();
        let turned = |[x, y]: &[f64; 2]| {
            let [x, y] = [x - from_centre[0], y - from_centre[1]];
            let [x, y] = [x * cos - y * sin + to_centre[0], x * sin + y * cos + to_centre[1]];
            (x.round() as i64, y.round() as i64)
        };
        from.iter().filter(|pixel| there.contains(&turned(pixel))).count()
    };
    (-6..=6).map(|step| f64::from(step) * 10.0).max_by_key(|degrees| covered(*degrees)).unwrap()
}

/// Median turn between frames 4 apart, of 12.
fn turn(frames: &[Frame], colour: &str) -> f64 {
    let pixels: Vec<_> = frames.iter().map(|frame| pixels_of(frame, colour)).collect();
    let mut turns: Vec<_> = (0..8).map(|i| turn_between(&pixels[i], &pixels[i + 4])).collect();
    turns.sort_by(f64::total_cmp);
    turns[4]
}

#[test]
fn synthetic_things_move_as_answered() {
    let mut checked: BTreeMap<String, usize> = BTreeMap::new();
    for item in items(rendered(), "synthetic") {
        let Some(colour) = named_colour(&item.question) else { continue };
        let answer = item.answer.as_str().unwrap();
        if answer.starts_with("no ") {
            continue;
        }
        let frames = frames(&rendered().join(item.path()));
        let [first, last] = [&frames[0], &frames[11]].map(|frame| pixels_of(frame, colour));
        assert!(first.len() > 60 && last.len() > 60, "{colour} is not seen: {item:?}");
        let (from, to) = (centroid(&first), centroid(&last));
        let [dx, dy] = [to[0] - from[0], to[1] - from[1]];
        let growth = last.len() as f64 / first.len() as f64;
        let holds = match answer {
            "left" => dx < -112.0 / 3.0 && dy.abs() < 5.0,
            "right" => dx > 112.0 / 3.0 && dy.abs() < 5.0,
            "up" => dy < -84.0 / 3.0 && dx.abs() < 5.0,
            "down" => dy > 84.0 / 3.0 && dx.abs() < 5.0,
            "towards the camera" => growth > 3.0,
            "away from the camera" => growth < 1.0 / 3.0,
            "not moving" => dx.abs() + dy.abs() < 1.0 && (0.9..1.1).contains(&growth),
            // Its colour is its shell's, which is round.
            _ if item.question.contains("snail rotat") => continue,
            "clockwise" => turn(&frames, colour) > 10.0,
            "counter-clockwise" => turn(&frames, colour) < -10.0,
            "not rotating" => turn(&frames, colour).abs() < 10.0,
            other => panic!("{other} is no answer known here"),
        };
        assert!(holds, "dx {dx} dy {dy} growth {growth} {item:?}");
        *checked.entry(answer.to_owned()).or_default() += 1;
    }
    assert!(checked.len() >= 9, "too few answers were met: {checked:?}");
}

const WIDTH: i64 = 112;

/// Whether the camera moves forward or backward: the backdrop's sides move apart or together.
fn zooms(frames: &[Frame]) -> bool {
    let [left, right] =
        [0..WIDTH / 2, WIDTH / 2..WIDTH].map(|columns| backdrop_shift(frames, columns));
    (left[0] - right[0]).abs() > 6.0
}

/// How far the scene's backdrop moves in the frame between these columns, by matching brightness
/// between frames.
fn backdrop_shift(frames: &[Frame], columns: Range<i64>) -> [f64; 2] {
    const REACH: i64 = 12;
    let height = frames[0].dim().0 as i64;
    let columns = columns.start.max(REACH)..columns.end.min(WIDTH - REACH);
    let mut total = [0.0; 2];
    for pair in [0, 2, 4, 6, 8, 10, 11].windows(2) {
        let [from, to] = [&frames[pair[0]], &frames[pair[1]]];
        let at = |frame: &Frame, x: i64, y: i64| i64::from(frame[[y as usize, x as usize, 1]]);
        // The median resists the things that move on their own.
        let cost = |dx: i64, dy: i64| {
            let places = (REACH..height - REACH)
                .step_by(3)
                .flat_map(|y| columns.clone().step_by(3).map(move |x| (x, y)));
            let mut gaps: Vec<_> =
                places.map(|(x, y)| (at(from, x, y) - at(to, x + dx, y + dy)).abs()).collect();
            gaps.sort_unstable();
            gaps[..gaps.len() * 2 / 3].iter().sum::<i64>()
        };
        let shifts = (-REACH..=REACH).flat_map(|dy| (-REACH..=REACH).map(move |dx| (dx, dy)));
        let (dx, dy) = shifts.min_by_key(|&(dx, dy)| cost(dx, dy)).unwrap();
        total[0] += dx as f64;
        total[1] += dy as f64;
    }
    total
}

#[test]
fn ego_videos_keep_true_and_apparent_motion_apart() {
    let mut of_camera: BTreeSet<String> = BTreeSet::new();
    let mut of_things: BTreeSet<String> = BTreeSet::new();
    let items = items(rendered(), "real");
    let crowded = |path: &str| items.iter().filter(|item| item.path() == path).count() > 3;
    let moves = |answer: &str, [dx, dy]: [f64; 2]| match answer.to_lowercase().as_str() {
        "left" => dx < -25.0 && dy.abs() < 12.0,
        "right" => dx > 25.0 && dy.abs() < 12.0,
        "up" | "upwards" => dy < -18.0 && dx.abs() < 12.0,
        "down" | "downwards" => dy > 18.0 && dx.abs() < 12.0,
        "nowhere" | "not moving" => dx.abs() < 9.0 && dy.abs() < 9.0,
        other => panic!("{other} is no answer known here"),
    };
    for item in items.iter().filter(|item| item.path().contains("ego4d")) {
        let Some(answer) = item.answer.as_str() else { continue };
        if ["Forward", "Backward"].contains(&answer) || answer.starts_with("there are no ") {
            continue;
        }
        let frames = || frames(&rendered().join(item.path()));
        if item.question.contains("the camera move") || item.question.contains("camera go") {
            let frames = frames();
            let camera = backdrop_shift(&frames, 0..WIDTH).map(|shift| -shift);
            assert!(moves(answer, camera), "camera {camera:?} {item:?}");
            of_camera.insert(answer.to_owned());
        } else if !item.question.contains("spinning") && !crowded(item.path()) {
            let Some(colour) = named_colour(&item.question) else { continue };
            let frames = frames();
            if zooms(&frames) {
                continue;
            }
            let in_frame = item.question.contains("picture");
            let shift = if in_frame { [0.0; 2] } else { backdrop_shift(&frames, 0..WIDTH) };
            let [first, last] = [&frames[0], &frames[11]].map(|f| centroid(&pixels_of(f, colour)));
            let thing = [0, 1].map(|axis| last[axis] - first[axis] - shift[axis]);
            assert!(moves(answer, thing), "thing {thing:?} scene {shift:?} {item:?}");
            of_things.insert(answer.to_owned());
        }
    }
    assert!(of_camera.len() >= 2 && of_things.len() >= 2, "{of_camera:?} {of_things:?}");
}
