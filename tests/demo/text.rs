//! Nothing can be learnt from the questions' text alone.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;
use vlm4d_train::data::demo::{DemoOptions, render};

use super::{Item, SUBSETS, items};

#[test]
fn the_text_tells_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    let many = DemoOptions {
        real_videos: 800,
        synthetic_videos: 800,
        size: (56, 56),
        seconds: 1.0,
        ..DemoOptions::default()
    };
    render(&out, &many, |_, _| ()).unwrap();
    for subset in SUBSETS {
        let items = items(&out, subset);
        for letter in ["A", "B", "C", "D"] {
            let share = share(&items.iter().collect::<Vec<_>>(), |item| item.letter() == letter);
            assert!((share - 0.25).abs() < 0.01, "{subset} {letter}: {share}");
        }
        check_balance(&items);
        // The first half of the videos to learn from, the second to guess on: as a run splits.
        let (learn, test) = items.split_at(items.len() / 2);
        let [learn, test] = [learn, test].map(|half| half.iter().collect::<Vec<_>>());
        let limit = 0.25 + 4.0 * (0.25 * 0.75 / test.len() as f64).sqrt();
        let by_choice = accuracy_of_likeliest_choice(&learn, &test);
        let by_words = accuracy_from_words(&learn, &test);
        println!("{subset} {} questions: {by_choice:.3} {by_words:.3}", test.len());
        assert!(by_choice < limit, "{subset}: {by_choice} by the likeliest choice, {limit}");
        assert!(by_words < limit, "{subset}: {by_words} by all words, {limit}");
    }
}

fn share(items: &[&Item], is: impl Fn(&Item) -> bool) -> f64 {
    items.iter().filter(|item| is(item)).count() as f64 / items.len() as f64
}

/// The form of a question: the wording without what it is about.
fn form(item: &Item) -> String {
    let words: Vec<_> = item.question.split(' ').collect();
    format!("{} … {}", words[..2].join(" "), words[words.len() - 1])
}

/// A choice's text; what says that there is no such thing is one text.
fn shown(choice: &Value) -> String {
    let text = choice.to_string();
    let none = text.starts_with("\"there are no ") || text.starts_with("\"no ");
    if none { "none".to_owned() } else { text }
}

/// Within a question's form, an answer is true as often as one in four times that it is offered.
fn check_balance(items: &[Item]) {
    let mut seen: BTreeMap<(String, String), [usize; 2]> = BTreeMap::new();
    for item in items {
        for choice in item.choices.values() {
            let [gold, offered] = seen.entry((form(item), shown(choice))).or_default();
            *gold += usize::from(*choice == item.answer);
            *offered += 1;
        }
    }
    for (key, [gold, offered]) in seen {
        let share = gold as f64 / offered as f64;
        let spread = (0.25 * 0.75 / offered as f64).sqrt();
        assert!((share - 0.25).abs() < 4.0 * spread, "{key:?}: {gold} of {offered}");
    }
}

/// Accuracy on `test` of guessing the choice that was true most often, among the times it was
/// offered, in the questions of `learn` of the same form.
fn accuracy_of_likeliest_choice(learn: &[&Item], test: &[&Item]) -> f64 {
    let mut seen: BTreeMap<(String, String), [f64; 2]> = BTreeMap::new();
    for item in learn {
        for choice in item.choices.values() {
            let [gold, offered] = seen.entry((form(item), shown(choice))).or_default();
            *gold += f64::from(u8::from(*choice == item.answer));
            *offered += 1.0;
        }
    }
    let rate = |item: &Item, choice: &Value| {
        let key = (form(item), shown(choice));
        seen.get(&key).map_or(0.25, |[gold, offered]| gold / offered)
    };
    share(test, |item| {
        let rates = item.choices.values().map(|choice| rate(item, choice));
        let best = item.choices.keys().zip(rates).max_by(|a, b| a.1.total_cmp(&b.1));
        best.unwrap().0 == item.letter()
    })
}

/// Accuracy on `test` of a softmax over the choices, trained on `learn`: each choice is scored by
/// its text, its letter, and its text beside each word of the question and each other choice.
fn accuracy_from_words(learn: &[&Item], test: &[&Item]) -> f64 {
    let mut weights: HashMap<u64, f64> = HashMap::new();
    let features = |item: &Item| -> Vec<Vec<u64>> {
        let scored = |(letter, choice): (&String, &Value)| {
            let text = shown(choice);
            let words = item.question.split(' ').map(|word| format!("word {word}"));
            let others = item.choices.values().map(|other| format!("other {}", shown(other)));
            let beside = words.chain(others).chain([String::new(), format!("letter {letter}")]);
            let hashed = |beside: String| {
                let mut hash = DefaultHasher::new();
                (&text, beside).hash(&mut hash);
                hash.finish()
            };
            beside.map(hashed).collect()
        };
        item.choices.iter().map(scored).collect()
    };
    let score = |weights: &HashMap<u64, f64>, keys: &[u64]| -> f64 {
        keys.iter().filter_map(|key| weights.get(key)).sum()
    };
    for _ in 0..8 {
        for item in learn {
            let features = features(item);
            let odds: Vec<f64> = features.iter().map(|keys| score(&weights, keys).exp()).collect();
            let total: f64 = odds.iter().sum();
            for ((choice, keys), odds) in item.choices.values().zip(&features).zip(&odds) {
                let gold = f64::from(u8::from(*choice == item.answer));
                for key in keys {
                    *weights.entry(*key).or_default() += 0.05 * (gold - odds / total);
                }
            }
        }
    }
    share(test, |item| {
        let scores = features(item).into_iter().map(|keys| score(&weights, &keys));
        let best = item.choices.keys().zip(scores).max_by(|a, b| a.1.total_cmp(&b.1));
        best.unwrap().0 == item.letter()
    })
}
