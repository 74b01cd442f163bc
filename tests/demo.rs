//! The demo set: VLM4D's layout, the same bytes from the same seed, nothing to be learnt from the
//! text, and in the videos what the answers say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;
use video_rs::{Decoder, Frame};
use vlm4d_train::data::demo::{DemoOptions, DemoSummary, render};

const HUB: &str = "https://huggingface.co/datasets/shijiezhou/VLM4D/resolve/main/";

fn small() -> DemoOptions {
    DemoOptions { real_videos: 24, synthetic_videos: 48, size: (112, 84), ..DemoOptions::default() }
}

/// A rendered set, made once for all tests.
fn rendered() -> &'static Path {
    static SET: OnceLock<TempDir> = OnceLock::new();
    let folder = SET.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        render(&folder.path().join("demo"), &small(), |_, _| ()).unwrap();
        folder
    });
    Box::leak(folder.path().join("demo").into_boxed_path())
}

/// A question as the file has it.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    id: String,
    video: String,
    question_type: String,
    question: String,
    choices: BTreeMap<String, Value>,
    answer: Value,
}

impl Item {
    fn path(&self) -> &str {
        self.video.strip_prefix(HUB).unwrap()
    }

    fn letter(&self) -> &str {
        self.choices.iter().find(|(_, choice)| **choice == self.answer).unwrap().0
    }
}

fn items(set: &Path, subset: &str) -> Vec<Item> {
    let text = fs::read_to_string(set.join(format!("QA/{subset}_mc.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_owned();
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}

#[test]
fn layout_and_schema_are_vlm4ds() {
    let set = rendered();
    let mut asked = BTreeSet::new();
    for subset in ["real", "synthetic"] {
        for (index, item) in items(set, subset).iter().enumerate() {
            assert_eq!(item.id, format!("validation_{}", index + 1));
            assert_eq!(item.question_type, "multiple-choice");
            assert!(item.path().starts_with(&format!("videos_{subset}/")), "{item:?}");
            assert_eq!(item.choices.keys().collect::<Vec<_>>(), ["A", "B", "C", "D"]);
            let texts: BTreeSet<_> = item.choices.values().map(Value::to_string).collect();
            assert_eq!(texts.len(), 4, "{item:?}");
            assert!(item.choices.values().any(|choice| *choice == item.answer), "{item:?}");
            let counts = item.question.starts_with("How many");
            assert!(item.choices.values().all(|choice| choice.is_u64() == counts), "{item:?}");
            assert!(!format!("{item:?}").contains("{thing"), "{item:?}");
            asked.insert(PathBuf::from(item.path()));
        }
    }
    let videos: BTreeSet<_> = files(set)
        .into_keys()
        .filter(|path| path.extension().is_some_and(|e| e == "mp4"))
        .collect();
    assert_eq!(videos, asked);
    let of = |folder: &str| videos.iter().filter(|video| video.starts_with(folder)).count();
    let folders =
        ["videos_real/davis", "videos_real/ego4d", "videos_real/youtube-vos", "videos_synthetic"];
    assert_eq!(folders.map(of), [8, 12, 4, 48]);
}

#[test]
fn videos_have_the_asked_length() {
    for item in &items(rendered(), "real")[..4] {
        let path = rendered().join(item.path());
        let decoder = Decoder::new(path.as_path()).unwrap();
        assert_eq!(decoder.frames().unwrap(), 24);
        assert!((decoder.duration().unwrap().as_secs_f64() - 3.0).abs() < 0.001);
        let frames = frames(&path);
        assert_eq!(frames.len(), 24);
        assert_eq!(frames[0].dim(), (84, 112, 3));
    }
}

#[test]
fn same_options_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let options = DemoOptions { real_videos: 4, synthetic_videos: 3, ..small() };
    let set = |name: &str, options: &DemoOptions| {
        let out = folder.path().join(name);
        let mut told = Vec::new();
        let summary = render(&out, options, |done, total| told.push((done, total))).unwrap();
        assert_eq!(told, (1..=7).map(|done| (done, 7)).collect::<Vec<_>>());
        let questions = items(&out, "real").len() + items(&out, "synthetic").len();
        assert_eq!(summary, DemoSummary { videos: 7, questions });
        files(&out)
    };
    let first = set("first", &options);
    assert_eq!(first.len(), 9);
    assert!(first == set("second", &options), "two renderings differ");
    assert!(first != set("third", &DemoOptions { seed: 43, ..options }), "the seed is not used");
}

#[test]
fn a_folder_in_use_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    let options = DemoOptions { real_videos: 1, synthetic_videos: 0, ..small() };
    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine.txt"), "mine").unwrap();
    let error = render(&out, &options, |_, _| ()).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("demo: the folder is not empty"), "{error}");
    assert_eq!(files(folder.path()).len(), 1);

    fs::remove_file(out.join("mine.txt")).unwrap();
    render(&out, &options, |_, _| ()).unwrap();
    let beside: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(beside.len(), 1, "{beside:?}");

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(render(&file, &options, |_, _| ()).unwrap_err().exit_code(), 2);
}

#[test]
fn options_that_make_no_video_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for options in [
        DemoOptions { size: (113, 84), ..small() },
        DemoOptions { seconds: 0.1, ..small() },
        DemoOptions { seconds: f64::NAN, ..small() },
        DemoOptions { fps: 0, ..small() },
        DemoOptions { real_videos: 0, synthetic_videos: 0, ..small() },
    ] {
        let error = render(&folder.path().join("demo"), &options, |_, _| ()).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn the_text_tells_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    let many = DemoOptions { real_videos: 500, synthetic_videos: 500, ..small() };
    let tiny = DemoOptions { size: (56, 56), seconds: 0.5, ..many };
    render(&out, &tiny, |_, _| ()).unwrap();
    for subset in ["real", "synthetic"] {
        let items = items(&out, subset);
        for letter in ["A", "B", "C", "D"] {
            let share = share(&items.iter().collect::<Vec<_>>(), |item| item.letter() == letter);
            assert!((share - 0.25).abs() < 0.01, "{subset} {letter}: {share}");
        }
        let [learn, test] =
            [0, 1].map(|half| items.iter().skip(half).step_by(2).collect::<Vec<_>>());
        let accuracy = accuracy_from_text(&learn, &test);
        assert!(accuracy < 0.33, "{subset}: {accuracy} from the text alone");
    }
}

fn share(items: &[&Item], is: impl Fn(&Item) -> bool) -> f64 {
    items.iter().filter(|item| is(item)).count() as f64 / items.len() as f64
}

/// Accuracy on `test` of guessing the choice that was true most often, among the times it was
/// offered, in the questions of `learn` that begin and end alike.
fn accuracy_from_text(learn: &[&Item], test: &[&Item]) -> f64 {
    let keys = |item: &Item| {
        let words: Vec<_> = item.question.split(' ').collect();
        let form = format!("{} … {}", words[..2].join(" "), words[words.len() - 1]);
        item.choices
            .iter()
            .map(|(letter, choice)| {
                let text = choice.to_string();
                let named = text.starts_with("\"there are no ") || text.starts_with("\"no ");
                let text = if named { "none".to_owned() } else { text };
                (letter.clone(), (form.clone(), text))
            })
            .collect::<Vec<_>>()
    };
    let mut seen: BTreeMap<(String, String), [f64; 2]> = BTreeMap::new();
    for item in learn {
        for (letter, key) in keys(item) {
            let [gold, offered] = seen.entry(key).or_default();
            *gold += f64::from(u8::from(letter == item.letter()));
            *offered += 1.0;
        }
    }
    let rate =
        |key: &(String, String)| seen.get(key).map_or(0.25, |[gold, offered]| gold / offered);
    share(test, |item| {
        let choices = keys(item);
        let best = choices.iter().max_by(|a, b| rate(&a.1).total_cmp(&rate(&b.1)));
        best.unwrap().0 == item.letter()
    })
}

fn frames(path: &Path) -> Vec<Frame> {
    let mut decoder = Decoder::new(path).unwrap();
    let frames = decoder.decode_iter().map_while(Result::ok);
    frames.map(|(_, frame)| frame).collect()
}

/// The colours' names with their hues in degrees.
const HUES: [(&str, f64); 7] = [
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
    if most < 90.0 || chroma < 0.5 * most {
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
    HUES.iter().min_by(|a, b| distance(a.1).total_cmp(&distance(b.1))).map(|(name, _)| *name)
}

/// The `[x, y]` of the pixels of a colour.
fn pixels_of(frame: &Frame, colour: &str) -> Vec<[f64; 2]> {
    let (height, width, _) = frame.dim();
    let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    places
        .filter(|&(x, y)| {
            colour_name([0, 1, 2].map(|c| f64::from(frame[[y, x, c]]))) == Some(colour)
        })
        .map(|(x, y)| [x as f64, y as f64])
        .collect()
}

fn centroid(pixels: &[[f64; 2]]) -> [f64; 2] {
    [0, 1].map(|axis| pixels.iter().map(|p| p[axis]).sum::<f64>() / pixels.len() as f64)
}

/// The colour that a question names.
fn named_colour(question: &str) -> Option<&'static str> {
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

/// Median turn between frames 4 apart, of 23.
fn turn(frames: &[Frame], colour: &str) -> f64 {
    let pixels: Vec<_> = frames.iter().map(|frame| pixels_of(frame, colour)).collect();
    let mut turns: Vec<_> =
        (0..5).map(|i| turn_between(&pixels[4 * i], &pixels[4 * i + 3])).collect();
    turns.sort_by(f64::total_cmp);
    turns[2]
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
        let [first, last] = [&frames[0], &frames[23]].map(|frame| pixels_of(frame, colour));
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

/// How far the scene's backdrop moves in the frame, by matching brightness between frames.
fn backdrop_shift(frames: &[Frame]) -> [f64; 2] {
    const REACH: i64 = 12;
    let (height, width, _) = frames[0].dim();
    let (height, width) = (height as i64, width as i64);
    let mut total = [0.0; 2];
    for pair in [0, 4, 8, 12, 16, 20, 23].windows(2) {
        let [from, to] = [&frames[pair[0]], &frames[pair[1]]];
        let at = |frame: &Frame, x: i64, y: i64| i64::from(frame[[y as usize, x as usize, 1]]);
        // The median resists the things that move on their own.
        let cost = |dx: i64, dy: i64| {
            let places = (REACH..height - REACH)
                .step_by(3)
                .flat_map(|y| (REACH..width - REACH).step_by(3).map(move |x| (x, y)));
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
            let camera = backdrop_shift(&frames).map(|shift| -shift);
            assert!(moves(answer, camera), "camera {camera:?} {item:?}");
            of_camera.insert(answer.to_owned());
        } else if !item.question.contains("spinning") && !crowded(item.path()) {
            let Some(colour) = named_colour(&item.question) else { continue };
            let frames = frames();
            let shift = backdrop_shift(&frames);
            let [first, last] = [&frames[0], &frames[23]].map(|f| centroid(&pixels_of(f, colour)));
            let thing = [0, 1].map(|axis| last[axis] - first[axis] - shift[axis]);
            assert!(moves(answer, thing), "thing {thing:?} scene {shift:?} {item:?}");
            of_things.insert(answer.to_owned());
        }
    }
    assert!(of_camera.len() >= 2 && of_things.len() >= 2, "{of_camera:?} {of_things:?}");
}
