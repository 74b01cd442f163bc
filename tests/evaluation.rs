//! What is asked, what the model is shown with it, and what is made of the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::json;
use vlm4d_train::data::entry::{self, Entry};
use vlm4d_train::data::medium::Medium;
use vlm4d_train::data::variant::Variant;
use vlm4d_train::data::vlm4d::{Format, PromptStyle};
use vlm4d_train::eval::metrics::{metrics, paired};
use vlm4d_train::eval::predict::{Ask, Prediction};
use vlm4d_train::eval::rounds::{Round, rounds};
use vlm4d_train::eval::view::View;
use vlm4d_train::recipe::{Control, Recipe};
use vlm4d_train::report::controls;

/// Entries of a made-up question file: `videos` per source, `questions` on each.
fn entries(dir: &Path, sources: &[(&str, usize)], questions: usize) -> Vec<Entry> {
    let mut items = Vec::new();
    for (source, videos) in sources {
        for video in 0..*videos {
            for question in 0..questions {
                items.push(json!({
                    "id": format!("{source}_{video}_{question}"),
                    "video": format!("videos_real/{source}/{video}.mp4"),
                    "question": "Where to?",
                    "choices": {"A": "left", "B": "right", "C": "up", "D": "left"},
                    "answer": "left",
                }));
            }
        }
    }
    std::fs::write(dir.join("real_mc.json"), json!(items).to_string()).unwrap();
    entry::read(dir, &["real".into()]).unwrap().0
}

fn folder(medium: &Medium) -> &Path {
    medium.files()[0].parent().unwrap()
}

#[test]
fn a_wrong_video_is_another_one_of_the_same_source() {
    let dir = tempfile::tempdir().unwrap();
    let entries = entries(dir.path(), &[("davis", 5), ("ego4d", 2), ("own", 1)], 2);
    for seed in 0..50 {
        let view = View::of(Control::WrongVideo, entries.iter(), seed).unwrap();
        let mut stand_ins: BTreeMap<Medium, BTreeSet<Medium>> = BTreeMap::new();
        for entry in &entries {
            let shown = view.shown(entry);
            assert_eq!(shown.len(), 1);
            assert_ne!(shown[0].medium, entry.media[0], "seed {seed}");
            if entry.source != "own" {
                assert_eq!(folder(&shown[0].medium), folder(&entry.media[0]));
            }
            let others = stand_ins.entry(entry.media[0].clone()).or_default();
            others.insert(shown[0].medium.clone());
        }
        // One and the same for all questions on a video, and no two videos share one.
        assert!(stand_ins.values().all(|others| others.len() == 1));
        let davis = |v: &&Medium| folder(v).ends_with("videos_real/davis");
        let used: BTreeSet<_> =
            stand_ins.iter().filter(|(v, _)| davis(v)).flat_map(|(_, others)| others).collect();
        assert_eq!(used.len(), 5);
        assert_eq!(view, View::of(Control::WrongVideo, entries.iter(), seed).unwrap());
    }
    let one: Vec<Entry> = entries.into_iter().filter(|e| e.source == "own").collect();
    let error = View::of(Control::WrongVideo, one.iter(), 1).unwrap_err();
    assert!(error.to_string().contains("too few other videos for `real/own_0_0`"), "{error}");
}

#[test]
fn a_wrong_video_is_none_of_the_questions_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut entries = entries(dir.path(), &[("davis", 3), ("ego4d", 2)], 1);
    // Each shows the next one's video too: all are tied together.
    let videos: Vec<Medium> = entries.iter().map(|e| e.media[0].clone()).collect();
    let next = videos.iter().cycle().skip(1).cloned();
    entries.iter_mut().zip(next).for_each(|(entry, video)| entry.media.push(video));
    for seed in 0..50 {
        let view = View::of(Control::WrongVideo, entries.iter(), seed).unwrap();
        for entry in &entries {
            let shown: BTreeSet<Medium> =
                view.shown(entry).into_iter().map(|shown| shown.medium).collect();
            assert_eq!(shown.len(), 2, "seed {seed}");
            assert!(entry.media.iter().all(|own| !shown.contains(own)), "seed {seed}");
        }
    }
}

#[test]
fn controls_show_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let entry = &entries(dir.path(), &[("davis", 2)], 1)[0];
    let of = |control| View::of(control, [entry].into_iter(), 7).unwrap();
    assert!(of(Control::NoVideo).shown(entry).is_empty());
    assert!(!of(Control::NoVideo).has_video());
    assert_eq!(of(Control::Reversed).shown(entry)[0].variant, Variant::Reversed);
    assert_eq!(of(Control::Shuffled).shown(entry)[0].variant, Variant::Shuffled(7));
    assert_eq!(View::PLAIN.shown(entry)[0].variant, Variant::Plain);
}

#[test]
fn images_stay_under_every_control() {
    let dir = tempfile::tempdir().unwrap();
    let mut entries = entries(dir.path(), &[("davis", 2)], 1);
    let image = Medium::image("a.png");
    entries.iter_mut().for_each(|entry| entry.media.insert(0, image.clone()));
    let shown = |control| {
        let view = View::of(control, entries.iter(), 7).unwrap();
        view.shown(&entries[0]).into_iter().map(|shown| shown.medium).collect::<Vec<_>>()
    };
    assert_eq!(shown(Control::NoVideo), entries[0].media[..1]);
    assert_eq!(shown(Control::WrongVideo), [image, entries[1].media[1].clone()]);
    assert_eq!(shown(Control::Reversed), entries[0].media);
    let reversed = View::of(Control::Reversed, entries.iter(), 7).unwrap().shown(&entries[0]);
    let variants: Vec<Variant> = reversed.iter().map(|shown| shown.variant).collect();
    assert_eq!(variants, [Variant::Plain, Variant::Reversed]);
    assert_eq!(entries[0].video(), entries[0].media[1].to_string());
}

#[test]
fn rotations_move_the_choices_and_the_gold_ones_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let entries = entries(dir.path(), &[("davis", 1)], 1);
    let asks = Ask::rotations(&entries);
    assert_eq!(asks.iter().map(|ask| ask.rotation).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(asks[0].entry.choices, ["right", "up", "left", "left"]);
    assert_eq!(asks[2].entry.choices, ["left", "left", "right", "up"]);
    for ask in &asks {
        let choices = &ask.entry.choices;
        let gold: Vec<usize> = (0..4).filter(|i| choices[*i] == "left").collect();
        assert_eq!(ask.entry.gold_choices, gold);
        // What the model reads is rotated too.
        let shown = format!("{:?}", ask.entry.prompt(Format::Mc, PromptStyle::Do, true));
        assert!(shown.contains(&format!("A: {}\\nB: {}", choices[0], choices[1])), "{shown}");
    }
}

fn recipe(eval: &str) -> Recipe {
    let text = format!("[model]\npath = \"m\"\n[data]\npath = \"d\"\n[eval]\n{eval}");
    Recipe::from_text(&text, "r.toml").unwrap()
}

#[test]
fn rounds_follow_the_recipe() {
    let dir = tempfile::tempdir().unwrap();
    let all = entries(dir.path(), &[("davis", 8)], 1);
    let (test, train) = all.split_at(3);
    let names = |eval: &str| -> Vec<String> {
        rounds(&recipe(eval), test, train).unwrap().iter().map(Round::file).collect()
    };
    assert_eq!(names(""), ["predictions.jsonl", "predictions_no_video.jsonl"]);
    let every = "controls = [\"reversed\", \"wrong_video\", \"shuffled\"]\ncircular = true\ntrain_share = 0.5";
    let found = rounds(&recipe(every), test, train).unwrap();
    let counts: Vec<(String, usize)> = found.iter().map(|r| (r.file(), r.asks.len())).collect();
    let want = [
        ("predictions.jsonl", 6),
        ("predictions_reversed.jsonl", 6),
        ("predictions_wrong_video.jsonl", 6),
        ("predictions_shuffled.jsonl", 6),
        ("predictions_circular.jsonl", 9),
        // Half of five, rounded up, in both formats.
        ("predictions_train.jsonl", 6),
    ];
    assert_eq!(counts, want.map(|(file, n)| (file.to_owned(), n)));
    let train_ids: BTreeSet<&String> = train.iter().map(|e| &e.id).collect();
    assert!(found[5].asks.iter().all(|ask| train_ids.contains(&ask.entry.id)));
    assert_eq!(names("controls = []\nformats = [\"ff\"]\ncircular = false").len(), 1);
}

#[test]
fn recipes_that_ask_for_the_impossible_are_refused() {
    for (eval, wanted) in [
        ("scoring = \"logprob\"\nprompt = \"cot\"", "r.toml:6:1: `scoring` is \"logprob\" with"),
        (
            "controls = [\"no_video\", \"no_video\"]",
            "`controls` is a list that names something twice",
        ),
        ("controls = [\"no_vido\"]", "did you mean `no_video`?"),
        ("train_share = 1.5", "r.toml:6:1: `train_share` is 1.5"),
        ("batch_size = 0", "`batch_size` is 0"),
    ] {
        let text = format!("[model]\npath = \"m\"\n[data]\npath = \"d\"\n[eval]\n{eval}");
        let error = Recipe::from_text(&text, "r.toml").unwrap_err();
        assert!(error.to_string().contains(wanted), "no `{wanted}` in\n{error}");
    }
}

pub fn prediction(id: &str, rotation: Option<usize>, correct: bool) -> Prediction {
    Prediction {
        id: id.into(),
        subset: "real".into(),
        source: "davis".into(),
        group: "exo-centric".into(),
        video: format!("{id}.mp4"),
        cluster: None,
        shown: None,
        format: Format::Mc,
        prompt: PromptStyle::Do,
        rotation,
        question: "?".into(),
        choices: ["a", "b", "c", "d"].map(String::from).into(),
        gold: "a".into(),
        response: "A".into(),
        extracted: Some("A".into()),
        correct,
        grader: "rules".into(),
        letter_logprobs: None,
        n_video_tokens: 4,
    }
}

#[test]
fn circular_accuracy_wants_every_rotation_right() {
    let plain = [("x", true), ("y", true), ("z", false)].map(|(id, c)| prediction(id, None, c));
    let mut rotated = Vec::new();
    for (id, right) in [("x", [true, true, true]), ("y", [true, false, true]), ("z", [true; 3])] {
        rotated.extend((0..3).map(|i| prediction(id, Some(i + 1), right[i])));
    }
    let blind: Vec<Prediction> =
        plain.iter().map(|p| prediction(&p.id, None, p.id == "z")).collect();
    let others = BTreeMap::from([
        ("circular".to_owned(), rotated),
        ("no_video".to_owned(), blind),
        ("train".to_owned(), vec![prediction("t", None, true)]),
    ]);
    let all = metrics(&plain, &others, 1);
    let mc = &all.formats[&Format::Mc];
    assert_eq!((mc.breakdown.overall.correct, mc.breakdown.overall.n), (2, 3));
    let circular = mc.circular.as_ref().unwrap();
    assert_eq!((circular.overall.correct, circular.overall.n), (1, 3));
    let third = 1.0 / 3.0;
    assert_eq!(circular.rotations, [2.0 * third, 1.0, 2.0 * third, 1.0]);
    // Two gained and one lost by seeing the video.
    let gain = all.controls["no_video"][&Format::Mc].gain.unwrap();
    assert_eq!((gain.n, gain.fixed, gain.broken), (3, 2, 1));
    assert!((gain.difference - third).abs() < 1e-12);
    // Other questions: nothing to pair.
    assert!(all.controls["train"][&Format::Mc].gain.is_none());
    assert!(!all.controls.contains_key("circular"));
}

#[test]
fn what_the_video_is_worth_is_told_of_questions_that_have_one() {
    let of = |all: &[(&str, bool)]| -> Vec<Prediction> {
        all.iter().map(|(id, correct)| prediction(id, None, *correct)).collect()
    };
    let plain = of(&[("x", true), ("y", false), ("z", true), ("words alone", true)]);
    let blind = of(&[("x", false), ("y", false), ("z", true)]);
    let all = metrics(&plain, &BTreeMap::from([("no_video".to_owned(), blind)]), 1);
    let worth = controls::worth(&[("after", all)], Format::Mc).unwrap();
    assert!(
        worth.contains("after +33.3 [") && worth.contains("(66.7 with it, 33.3 without)"),
        "{worth}"
    );
}

#[test]
fn several_graders_are_all_named() {
    let mut all = vec![prediction("x", None, true), prediction("y", None, true)];
    assert_eq!(metrics(&all, &BTreeMap::new(), 1).formats[&Format::Mc].grader, "rules");
    all[1].grader = "openai/m".into();
    let grader = &metrics(&all, &BTreeMap::new(), 1).formats[&Format::Mc].grader;
    assert_eq!(grader, "openai/m (1), rules (1)");
}

#[test]
fn intervals_of_predictions_are_over_videos() {
    let of = |each: usize| {
        let [before, after] = [4, 2].map(|one_in| -> Vec<Prediction> {
            let asked = |i: usize| Prediction {
                video: format!("{:02}.mp4", i % 40),
                ..prediction(&i.to_string(), None, (i % 40).is_multiple_of(one_in))
            };
            (0..40 * each).map(asked).collect()
        });
        let all = metrics(&after, &BTreeMap::new(), 1);
        let own = all.formats[&Format::Mc].breakdown.overall.ci95;
        (own, paired(&before, &after, Format::Mc, 1).ci95)
    };
    assert_eq!(of(1), of(10));
}

#[test]
fn predictions_on_tied_videos_are_resampled_together() {
    let asked = |cluster: Option<&str>, one_in: usize| -> Vec<Prediction> {
        let asked = |i: usize| Prediction {
            cluster: cluster.map(str::to_owned),
            ..prediction(&i.to_string(), None, i.is_multiple_of(one_in))
        };
        (0..40).map(asked).collect()
    };
    let interval = |predictions: &[Prediction]| {
        metrics(predictions, &BTreeMap::new(), 1).formats[&Format::Mc].breakdown.overall.ci95
    };
    let change = |[a, b]: [Option<&str>; 2]| paired(&asked(a, 4), &asked(b, 2), Format::Mc, 1).ci95;
    let tied = Some("0.mp4");
    assert_eq!(interval(&asked(tied, 2)), [0.0, 1.0]);
    assert_eq!(change([tied; 2]), [0.25 - 0.975, 1.0]);
    // A prediction of before does not tell its cluster: by itself its video is one.
    let old = asked(None, 2);
    let line = serde_json::to_string(&old[0]).unwrap();
    assert!(!line.contains("cluster"), "{line}");
    assert_eq!(serde_json::from_str::<Prediction>(&line).unwrap(), old[0]);
    assert!(interval(&old)[0] > 0.3 && change([None; 2])[0] > 0.1);
    assert_eq!([change([None, tied]), change([tied, None])], [change([tied; 2]); 2]);
}
