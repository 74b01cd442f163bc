//! What training samples become from epoch to epoch.

use serde_json::json;
use std::collections::BTreeSet;
use vlm4d_train::data::augment::{Augment, Samples, mirrorable};
use vlm4d_train::data::entry::{self, Entry};
use vlm4d_train::data::medium::Medium;
use vlm4d_train::data::mirror::Why;
use vlm4d_train::data::variant::Variant;
use vlm4d_train::data::vlm4d::Format;

const EPOCHS: usize = 20;

/// 100 questions that can be mirrored and one that cannot.
fn entries() -> Vec<Entry> {
    let item = |i: usize, question: &str| {
        json!({"id": i, "video": format!("v/{i}.mp4"), "question": question,
            "choices": {"A": "left", "B": "right", "C": "up", "D": "left"}, "answer": "left"})
    };
    let mut items: Vec<_> = (0..100).map(|i| item(i, "Which way does it turn?")).collect();
    items.push(item(100, "What does the sign say?"));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("own_mc.json"), json!(items).to_string()).unwrap();
    entry::read(folder.path(), &["own".into()]).unwrap().0
}

fn of(samples: &Samples, epoch: usize) -> Vec<&(Entry, Format)> {
    samples.epochs[epoch].iter().map(|i| &samples.distinct[*i]).collect()
}

#[test]
fn without_augmentation_all_epochs_are_the_same() {
    let entries = entries();
    let samples = Augment::default().samples(&entries, &Format::ALL, EPOCHS);
    assert_eq!(samples.epochs, [(0..2 * entries.len()).collect::<Vec<_>>()]);
    let asked: Vec<_> = samples.distinct.iter().map(|(e, f)| (e.id.clone(), *f)).collect();
    let want: Vec<_> =
        entries.iter().flat_map(|e| Format::ALL.map(|format| (e.id.clone(), format))).collect();
    assert_eq!(asked, want);
}

#[test]
fn epochs_depend_on_seed_epoch_and_id_alone() {
    let entries = entries();
    let augment = Augment { seed: 7, shuffle_choices: true, mirror: 0.5 };
    let texts = |samples: &Samples, epoch: usize| -> BTreeSet<String> {
        of(samples, epoch).iter().map(|(e, f)| format!("{:?}", (e, f))).collect()
    };
    let all = augment.samples(&entries, &Format::ALL, EPOCHS);
    // neither the number of epochs nor the other questions matter
    let fewer = augment.samples(&entries, &Format::ALL, 2);
    let half: Vec<Entry> = entries[50..].to_vec();
    let half = augment.samples(&half, &Format::ALL[..1], EPOCHS);
    for epoch in 0..2 {
        assert_eq!(texts(&all, epoch), texts(&fewer, epoch));
    }
    for epoch in 0..EPOCHS {
        assert!(texts(&half, epoch).is_subset(&texts(&all, epoch)), "epoch {epoch}");
        assert_eq!(all.epochs[epoch].len(), 2 * entries.len());
    }
    assert_ne!(texts(&all, 0), texts(&all, 1));
    let other = Augment { seed: 8, ..augment }.samples(&entries, &Format::ALL, EPOCHS);
    assert_ne!(texts(&all, 0), texts(&other, 0));
    // what is drawn for one is not drawn for the other
    let unmirrored = Augment { mirror: 0.0, ..augment }.samples(&entries, &Format::ALL, 1);
    let order = |samples: &Samples| -> Vec<Vec<usize>> {
        of(samples, 0).iter().map(|(e, _)| e.gold_choices.clone()).collect()
    };
    assert_eq!(order(&all), order(&unmirrored));
}

#[test]
fn mirrored_samples_are_shown_mirrored_videos() {
    let entries = entries();
    let augment = Augment { seed: 1, shuffle_choices: false, mirror: 0.3 };
    let samples = augment.samples(&entries, &Format::ALL, EPOCHS);
    let mut mirrored = 0;
    for epoch in 0..EPOCHS {
        for pair in of(&samples, epoch).chunks(2) {
            let (mc, ff) = (&pair[0].0, &pair[1].0);
            assert_eq!((mc.variant, &mc.gold), (ff.variant, &ff.gold), "one draw for a question");
            let is_mirrored = mc.variant == Variant::Mirrored;
            assert_eq!(mc.gold, if is_mirrored { "right" } else { "left" });
            assert!(mc.shown().iter().all(|shown| shown.variant == mc.variant));
            assert!(!is_mirrored || mc.id != "own/100");
            mirrored += usize::from(is_mirrored);
        }
    }
    // 600 of 2,000 expected, standard deviation 20
    assert!((500..700).contains(&mirrored), "{mirrored} of 2,000 mirrored");
    // both views of each question, in two formats, and the one that stays
    assert_eq!(samples.distinct.len(), 2 * (2 * 100 + 1));
    let (can, left_alone) = mirrorable(&entries);
    assert_eq!((can, left_alone), (100, [(Why::Text, 1)].into()));
    let always = Augment { mirror: 1.0, ..augment }.samples(&entries, &Format::ALL, 2);
    let plain = of(&always, 1).iter().filter(|(e, _)| e.variant == Variant::Plain).count();
    assert_eq!(plain, 2);
}

#[test]
fn shuffled_choices_keep_their_gold() {
    let entries = entries();
    let augment = Augment { seed: 1, shuffle_choices: true, mirror: 0.0 };
    let samples = augment.samples(&entries, &Format::ALL, EPOCHS);
    let mut at = [0_usize; 4];
    for epoch in 0..EPOCHS {
        for (entry, format) in of(&samples, epoch) {
            if *format == Format::Ff {
                assert_eq!(entry.choices, ["left", "right", "up", "left"]);
                continue;
            }
            let mut choices = entry.choices.clone();
            choices.sort();
            assert_eq!(choices, ["left", "left", "right", "up"]);
            let gold: Vec<usize> = (0..4).filter(|i| entry.choices[*i] == "left").collect();
            assert_eq!(entry.gold_choices, gold);
            let prompt = format!("{:?}", entry.training(Format::Mc));
            let letters = ["A", "B", "C", "D"].map(|l| format!("Text(\"{l}\")"));
            assert!(prompt.contains(&letters[gold[0]]), "{prompt}");
            assert!(prompt.contains(&format!("A: {}\\nB: {}", entry.choices[0], entry.choices[1])));
            at[gold[0]] += 1;
        }
    }
    // where the first of two golds among four stands: 1/2, 1/3, 1/6, never the last
    let n = 101 * EPOCHS;
    assert!(at[0].abs_diff(n / 2) < 120 && at[1].abs_diff(n / 3) < 120 && at[3] == 0, "{at:?}");
}

#[test]
fn conversations_are_mirrored_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    write("a.mp4", String::new());
    let info = json!({"talk": {"file_name": "rows.json", "formatting": "sharegpt",
        "columns": {"videos": "videos"}}});
    write("dataset_info.json", info.to_string());
    let row = |ask: &str, say: &str, videos: &[&str]| {
        json!({"videos": videos, "conversations": [{"from": "human", "value": ask},
            {"from": "gpt", "value": "Left."}, {"from": "human", "value": "Then?"},
            {"from": "gpt", "value": say}]})
    };
    let rows = json!([
        row("<video>Where to?", "To the right.", &["a.mp4"]),
        row("<video>Where to?", "The sign says left.", &["a.mp4"]),
        row("Where to?", "To the right.", &[]),
    ]);
    write("rows.json", rows.to_string());
    let (entries, _) = entry::read(folder.path(), &["talk".into()]).unwrap();
    let mirrored = entries[0].mirrored().unwrap();
    assert_eq!(mirrored.gold, "To the left.");
    assert_eq!(mirrored.shown()[0].medium, Medium::video("a.mp4"));
    assert_eq!(mirrored.shown()[0].variant, Variant::Mirrored);
    let said = format!("{:?}", mirrored.training(Format::Ff));
    assert!(said.contains("\"Right.\"") && said.contains("\"Where to?\""), "{said}");
    assert!(said.contains("Video"), "{said}");
    assert_eq!(mirrored.mirrored().unwrap().training(Format::Ff), entries[0].training(Format::Ff));
    assert_eq!(entries[1].mirrored().unwrap_err(), Why::Text);
    assert_eq!(entries[2].mirrored().unwrap_err(), Why::NoMedia);
}
