//! No video crosses a split, and the shares come out, for every seed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use vlm4d_train::data::entry::{self, Entry};
use vlm4d_train::data::medium::Medium;
use vlm4d_train::data::split::{By, Split, read, split};

use crate::support::real_files;

const SEEDS: u64 = 200;

/// A set shaped like VLM4D's: three real sources with up to nine questions on a
/// video, one synthetic with one or two, a few frequent answers and many rare.
fn generated(seed: u64) -> Vec<Entry> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut items = Vec::new();
    for (subset, source, videos, most) in [
        ("real", "davis", 210, 9),
        ("real", "ego4d", 300, 4),
        ("real", "youtube-vos", 90, 7),
        ("synthetic", "synthetic", 400, 2),
    ] {
        for v in 0..videos {
            let n: usize = if rng.random_bool(0.5) { 1 } else { rng.random_range(1..=most) };
            for _ in 0..n {
                let frequent = ["left", "right", "0", "1"][rng.random_range(0..4)].to_owned();
                let gold = if rng.random_bool(0.8) { frequent } else { format!("rare {v}") };
                items.push(Entry {
                    id: format!("{subset}/validation_{}", items.len()),
                    subset: subset.into(),
                    source: source.into(),
                    media: vec![Medium::video(format!("videos/{source}/{v}.mp4"))],
                    gold,
                    ..Entry::default()
                });
            }
        }
    }
    items
}

fn of<'a>(items: &'a [Entry], subset: &str) -> Vec<&'a Entry> {
    items.iter().filter(|i| i.subset == subset).collect()
}

fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}

/// Each question is in one part, in the file's order; by video, so is each video.
fn check_partition(items: &[&Entry], split: &Split, context: &str) {
    let parts = [&split.train, &split.val, &split.test];
    let mut part_of: HashMap<&str, usize> = HashMap::new();
    for (part, ids) in parts.iter().enumerate() {
        for id in *ids {
            assert_eq!(part_of.insert(id, part), None, "{context}: {id} in two parts");
        }
    }
    let mut in_order = [0; 3];
    let mut videos: HashMap<&OsStr, usize> = HashMap::new();
    for item in items {
        let part = part_of[&*item.id];
        assert_eq!(parts[part][in_order[part]], item.id, "{context}: not in the file's order");
        in_order[part] += 1;
        for file in item.media.iter().flat_map(Medium::files) {
            let unit = videos.entry(file.as_os_str()).or_insert(part);
            assert!(split.by == By::Question || *unit == part, "{context}: {} crosses", item.id);
        }
    }
    assert_eq!(part_of.len(), items.len(), "{context}: more questions than there are");
}

/// What must hold of any question set of VLM4D's size, for every seed.
fn check_every_seed(items: impl Fn(u64) -> Vec<Entry>) {
    let mut worst: f64 = 0.0;
    for seed in 0..SEEDS {
        let items = items(seed);
        // by question the shares are exact whatever the seed: a few seeds will do
        let ways = if seed % 10 == 0 { &[By::Video, By::Question][..] } else { &[By::Video] };
        for &by in ways {
            let both = split(&items, seed, 0.2, 0.0, by).unwrap();
            let with_val = split(&items, seed, 0.2, 0.1, by).unwrap();
            for (subset, drawn) in &both {
                let context = format!("seed {seed}, {by:?}, {subset}");
                let own = of(&items, subset);
                check_partition(&own, drawn, &context);
                check_partition(&own, &with_val[subset], &context);
                // validation is taken from train
                assert_eq!(drawn.test, with_val[subset].test, "{context}");
                for (ids, wanted) in [(&drawn.test, 0.2), (&with_val[subset].val, 0.1)] {
                    let off = (ratio(ids.len(), own.len()) - wanted).abs();
                    worst = worst.max(off);
                    assert!(off < 0.01, "{context}: {} instead of {wanted}", off + wanted);
                }
                assert!(drawn.val.is_empty(), "{context}");
                // a subset alone is split as beside the other
                let own: Vec<Entry> = own.into_iter().cloned().collect();
                assert_eq!(split(&own, seed, 0.2, 0.0, by).unwrap()[subset], *drawn, "{context}");
            }
        }
    }
    println!("shares over {SEEDS} seeds: at most {:.2} points off", 100.0 * worst);
}

#[test]
fn generated_sets_split_well_for_every_seed() {
    check_every_seed(generated);
}

#[test]
fn the_real_set_splits_well_for_every_seed() {
    let Some(folder) = real_files("the_real_set_splits_well_for_every_seed") else { return };
    let (items, _) = entry::read(&folder, &["real".into(), "synthetic".into()]).unwrap();
    check_every_seed(|_| items.clone());
    let real = &split(&items, 42, 0.2, 0.0, By::Video).unwrap()["real"];
    println!("real at seed 42: train {} test {}", real.train.len(), real.test.len());
}

/// By question, each answer of each source gives its share to within one.
#[test]
fn sources_and_answers_are_stratified() {
    for seed in 0..SEEDS {
        let items = generated(seed);
        let drawn = &split(&items, seed, 0.2, 0.0, By::Question).unwrap()["real"];
        let test: BTreeSet<&str> = drawn.test.iter().map(String::as_str).collect();
        let mut strata: BTreeMap<(&str, &str), (usize, usize)> = BTreeMap::new();
        let own = of(&items, "real");
        for item in &own {
            let stratum = strata.entry((&item.source, &item.gold)).or_default();
            stratum.0 += 1;
            stratum.1 += usize::from(test.contains(&*item.id));
        }
        let rate = ratio(drawn.test.len(), own.len());
        for (stratum, (n, taken)) in strata {
            let off = (rate - ratio(taken, n)).abs();
            assert!(off < ratio(1, n), "seed {seed}: {stratum:?} gives {taken} of {n}");
        }
    }
}

/// Small and large videos, first and last, are all tested equally often.
#[test]
fn every_video_has_the_same_chance() {
    let items = generated(0);
    let mut taken: BTreeMap<&str, u32> =
        items.iter().map(|i| (i.media[0].files()[0].to_str().unwrap(), 0)).collect();
    let video: BTreeMap<&str, &str> =
        items.iter().map(|i| (&*i.id, i.media[0].files()[0].to_str().unwrap())).collect();
    let n = 400;
    for seed in 0..n {
        for drawn in split(&items, seed, 0.2, 0.0, By::Video).unwrap().values() {
            let videos: BTreeSet<&str> = drawn.test.iter().map(|id| video[&**id]).collect();
            for v in videos {
                *taken.get_mut(v).unwrap() += 1;
            }
        }
    }
    // 80 expected, standard deviation 8, 1,000 videos: 5 deviations are not to be seen
    for (video, taken) in taken {
        assert!((40..=120).contains(&taken), "{video} was taken {taken} times of {n}");
    }
}

/// Neither like nor unlike videos are tied to each other: almost each seed draws
/// another set.
#[test]
fn seeds_draw_different_sets() {
    let like: Vec<Entry> =
        small(50, 1).into_iter().map(|i| Entry { gold: "left".into(), ..i }).collect();
    let unlike: Vec<Entry> =
        small(50, 1).into_iter().map(|i| Entry { gold: i.id.clone(), ..i }).collect();
    for items in [like, unlike] {
        let draw = |seed| split(&items, seed, 0.2, 0.0, By::Video).unwrap()["demo"].test.clone();
        let sets: BTreeSet<Vec<String>> = (0..SEEDS).map(draw).collect();
        assert!(sets.len() > 190, "{SEEDS} seeds draw {} sets", sets.len());
    }
}

#[test]
fn the_input_order_and_other_seeds() {
    let items = generated(1);
    let drawn = split(&items, 42, 0.2, 0.1, By::Video).unwrap();
    let mut turned = items.clone();
    turned.reverse();
    for (subset, other) in split(&turned, 42, 0.2, 0.1, By::Video).unwrap() {
        let sorted = |ids: &[String]| ids.iter().cloned().collect::<BTreeSet<_>>();
        assert_eq!(sorted(&drawn[&subset].test), sorted(&other.test));
        assert_eq!(sorted(&drawn[&subset].val), sorted(&other.val));
    }
    let other = split(&items, 43, 0.2, 0.1, By::Video).unwrap();
    assert_ne!(drawn["real"].test, other["real"].test);
}

/// Fixed here so that no later version draws other test questions unnoticed.
#[test]
fn the_drawn_questions_are_the_same_on_every_machine() {
    let items: Vec<Entry> = small(20, 2);
    let drawn = &split(&items, 42, 0.2, 0.1, By::Video).unwrap()["demo"];
    assert_eq!(
        drawn.test,
        ["04", "05", "16", "17", "18", "19", "34", "35"].map(|n| format!("demo/{n}"))
    );
    assert_eq!(drawn.val, ["02", "03", "10", "11"].map(|n| format!("demo/{n}")));
    let shape = serde_json::to_value(drawn).unwrap();
    assert_eq!((&shape["seed"], &shape["by"]), (&42.into(), &"video".into()));
    let keys: Vec<&String> = shape.as_object().unwrap().keys().collect();
    assert_eq!(keys.len(), 5);
    assert_eq!(serde_json::from_value::<Split>(shape.clone()).unwrap(), *drawn);
}

fn small(videos: usize, each: usize) -> Vec<Entry> {
    let item = |i: usize| Entry {
        id: format!("demo/{i:02}"),
        subset: "demo".into(),
        source: "demo".into(),
        media: vec![Medium::video(format!("{}.mp4", i / each))],
        gold: ["left", "right"][i % 2].into(),
        ..Entry::default()
    };
    (0..videos * each).map(item).collect()
}

#[test]
fn small_sets_have_every_part_or_are_refused() {
    let cases = [(3, 0.01, 0.01), (3, 0.2, 0.1), (6, 0.2, 0.1), (2, 0.01, 0.0), (2, 0.9, 0.0)];
    for (videos, test, val) in cases {
        for seed in 0..SEEDS {
            let drawn = &split(&small(videos, 3), seed, test, val, By::Video).unwrap()["demo"];
            let filled = [&drawn.train, &drawn.val, &drawn.test].map(|part| !part.is_empty());
            assert_eq!(
                filled,
                [true, val > 0.0, true],
                "{videos} videos, {test}, {val}, seed {seed}"
            );
        }
    }
    let error = split(&small(2, 3), 0, 0.2, 0.2, By::Video).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("subset `demo` has 2 video(s)"), "{error}");
    let whole = &split(&small(1, 3), 0, 0.0, 0.0, By::Video).unwrap()["demo"];
    assert_eq!((whole.train.len(), whole.test.len()), (3, 0));
    for (test, val) in [(1.0, 0.0), (-0.1, 0.0), (0.5, 0.5), (f64::NAN, 0.0)] {
        assert!(split(&small(6, 1), 0, test, val, By::Video).is_err(), "{test} {val}");
    }
}

/// Here the videos hang together by fours, each with the next.
#[test]
fn questions_on_several_videos_keep_these_together() {
    let mut items = small(40, 1);
    for (i, item) in items.iter_mut().enumerate().filter(|(i, _)| i % 4 < 3) {
        item.media.push(Medium::video(format!("{}.mp4", i + 1)));
    }
    let mut turned = items.clone();
    turned.iter_mut().for_each(|item| item.media.reverse());
    for seed in 0..SEEDS {
        let drawn = &split(&items, seed, 0.2, 0.1, By::Video).unwrap()["demo"];
        check_partition(&of(&items, "demo"), drawn, &format!("seed {seed}"));
        assert_eq!((drawn.test.len(), drawn.val.len()), (8, 4), "seed {seed}");
        assert_eq!(split(&turned, seed, 0.2, 0.1, By::Video).unwrap()["demo"], *drawn);
    }
}

/// What ties most questions together is trained on, whatever is drawn.
#[test]
fn a_chain_through_most_questions_stays_in_training() {
    let mut items = small(20, 1);
    for (i, item) in items.iter_mut().enumerate().take(14) {
        item.media.push(Medium::video(format!("{}.mp4", i + 1)));
    }
    for seed in 0..SEEDS {
        let drawn = &split(&items, seed, 0.2, 0.2, By::Video).unwrap()["demo"];
        check_partition(&of(&items, "demo"), drawn, &format!("seed {seed}"));
        assert!(drawn.train.len() >= 15, "seed {seed}: {drawn:?}");
    }
}

#[test]
fn a_video_in_two_subsets_may_not_cross() {
    let mut items = small(10, 1);
    items.extend(small(10, 1).into_iter().map(|item| Entry {
        id: format!("other/{}", item.id),
        subset: "other".into(),
        // so that the other subset is drawn in another order
        gold: item.media[0].to_string(),
        // and beside the shared video one of its own
        media: [vec![Medium::video(format!("own/{}", item.id))], item.media].concat(),
        ..item
    }));
    let crossing = (0..SEEDS).filter_map(|seed| split(&items, seed, 0.2, 0.0, By::Video).err());
    let errors: Vec<String> = crossing.map(|e| e.to_string()).collect();
    assert!(errors.len() > 100, "only {} of {SEEDS} splits refused", errors.len());
    assert!(errors[0].contains(": is in "), "{}", errors[0]);
    assert!(split(&items, 0, 0.2, 0.0, By::Question).is_ok());
}

/// In a file of several subsets each is checked by what it says of itself.
#[test]
fn a_given_split_by_video_may_not_cross() {
    let mut items = small(2, 2);
    items.push(Entry { id: "other/0".into(), subset: "other".into(), ..items[0].clone() });
    let part = |by, train: &[&str], test: &[&str]| {
        let [train, test] =
            [train, test].map(|ids| ids.iter().map(|id| (*id).to_owned()).collect());
        Split { seed: 0, by, train, val: vec![], test, left_out: vec![] }
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("split.json");
    let given = |by, of_other| {
        let demo = part(by, &["demo/00", "demo/02"], &["demo/01", "demo/03"]);
        let file = BTreeMap::from([("demo", demo), ("other", part(of_other, &[], &["other/0"]))]);
        std::fs::write(&path, serde_json::to_string(&file).unwrap()).unwrap();
        read(&path, &items).map(|_| ()).map_err(|e| e.to_string())
    };
    for of_other in [By::Video, By::Question] {
        let error = given(By::Video, of_other).unwrap_err();
        assert!(error.starts_with("0.mp4: is in train with `demo/00` and in test with"));
        assert_eq!(given(By::Question, of_other), Ok(()));
    }
}

#[test]
fn limits_nest_and_leave_test_and_validation_alone() {
    let limited = |drawn: &Split, most| {
        let mut drawn = drawn.clone();
        drawn.limit(most);
        drawn
    };
    for seed in 0..20 {
        for (subset, whole) in split(&generated(seed), seed, 0.2, 0.1, By::Video).unwrap() {
            let context = format!("seed {seed}, {subset}");
            let n = whole.train.len();
            assert_eq!(limited(&whole, n), whole, "{context}");
            let mut more = whole.clone();
            for most in [n - 1, n / 2, n / 4, 1] {
                let fewer = limited(&whole, most);
                assert_eq!(fewer.train.len(), most, "{context}");
                assert_eq!((&fewer.test, &fewer.val), (&whole.test, &whole.val), "{context}");
                let in_order = |ids: &Vec<String>| {
                    let of = whole.train.iter().filter(|id| ids.contains(id));
                    of.eq(ids.iter())
                };
                assert!(in_order(&fewer.train) && in_order(&fewer.left_out), "{context}");
                assert_eq!(fewer.trainable(), n, "{context}");
                assert!(fewer.train.iter().all(|id| more.train.contains(id)), "{context}");
                assert_eq!(limited(&more, most).train, fewer.train, "{context}");
                more = fewer;
            }
        }
    }
}

/// Fixed here, as the test questions are, and another seed's are others.
#[test]
fn limits_draw_the_same_questions_on_every_machine() {
    let drawn = |seed| {
        let mut drawn = split(&small(20, 2), 42, 0.2, 0.1, By::Video).unwrap().remove("demo");
        let drawn = drawn.as_mut().unwrap();
        drawn.seed = seed;
        drawn.limit(6);
        drawn.train.clone()
    };
    let want = ["20", "29", "30", "32", "36", "37"].map(|n| format!("demo/{n}"));
    assert_eq!(drawn(42), want);
    assert_ne!(drawn(43), want);
}

/// What is left out is on no side, and a question of the data.
#[test]
fn a_given_split_may_leave_questions_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("split.json");
    let given = |test: &[&str], left_out: &[&str]| {
        let file = json!({"demo": {"seed": 0, "by": "video", "train": ["demo/00"], "val": [],
            "test": test, "left_out": left_out}});
        std::fs::write(&path, file.to_string()).unwrap();
        read(&path, &small(2, 2)).map(|(_, notes)| notes).map_err(|e| e.to_string())
    };
    assert_eq!(given(&["demo/03"], &["demo/01", "demo/02"]), Ok(vec![]));
    assert_eq!(given(&["demo/03"], &["demo/01"]).unwrap().len(), 1);
    for (left_out, wanted) in [
        ("demo/00", "`demo/00` is in train and in left_out"),
        ("demo/04", "`demo/04` is no question of the data"),
    ] {
        let error = given(&["demo/03"], &[left_out]).unwrap_err();
        assert!(error.contains(wanted), "{error}");
    }
    assert!(given(&["demo/01"], &[]).unwrap_err().contains("is in train with `demo/00`"));
}
