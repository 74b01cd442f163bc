//! Accuracies, intervals and tests against values known beforehand.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use vlm4d_train::eval::stats::{self, Outcome, Pair};
use vlm4d_train::report::accuracy::percent;

fn outcome(video: &str, correct: bool) -> Outcome<'_> {
    Outcome {
        subset: "real",
        source: "davis",
        group: "exo",
        answer: "number",
        video,
        cluster: video,
        chance: None,
        correct,
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-12
}

#[test]
fn mcnemar_equals_values_computed_by_hand() {
    // 2 · (1 + 6) / 2⁶, 2 · 1 / 2⁵, 2 · (1 + 10 + 45) / 2¹⁰; a tie and no change at all give 1.
    for (b, c, p) in [(5, 1, 0.218_75), (0, 5, 0.0625), (8, 2, 0.109_375), (4, 4, 1.0), (0, 0, 1.0)]
    {
        assert!(close(stats::mcnemar(b, c), p), "{b} {c}: {}", stats::mcnemar(b, c));
        assert!(close(stats::mcnemar(c, b), p), "not symmetric at {b} {c}");
    }
    // Far beyond what 2ⁿ holds in an f64: 3,000 coins, 1,500 ± 50 is 1.8 standard deviations.
    let p = stats::mcnemar(1_550, 1_450);
    assert!((p - 0.0706).abs() < 0.001, "{p}");
}

#[test]
fn counts_and_accuracy_are_exact() {
    let outcomes: Vec<_> =
        [("a", true), ("a", true), ("b", false), ("c", true)].map(|(v, c)| outcome(v, c)).into();
    let m = stats::metric(&outcomes, 0);
    assert_eq!((m.n, m.correct, m.n_videos, m.small), (4, 3, 3, true));
    assert!(close(m.accuracy, 0.75));
    assert!(m.ci95[0] <= 0.75 && 0.75 <= m.ci95[1]);
}

#[test]
fn nothing_asked_is_nothing_known() {
    let m = stats::metric(&[], 0);
    assert_eq!((m.n, m.correct, m.ci95), (0, 0, [0.0, 1.0]));
    assert!(close(m.accuracy, 0.0));
    let p = stats::paired(&[], 0);
    assert_eq!((p.n, p.ci95), (0, [-1.0, 1.0]));
    assert!(close(p.p, 1.0) && close(p.difference, 0.0));
    assert_eq!(m.chance, None);
}

/// Resamples of twelve wrong answers are all wrong; that is no certainty. 0.2646: the bound of
/// Clopper and Pearson for 0 of 12.
#[test]
fn all_alike_is_not_certain() {
    let names: Vec<String> = (0..12).map(|i| format!("v{i}")).collect();
    let wrong: Vec<_> = names.iter().map(|name| outcome(name, false)).collect();
    let right: Vec<_> = names.iter().map(|name| outcome(name, true)).collect();
    let [none, all] = [wrong, right].map(|outcomes| stats::metric(&outcomes, 0).ci95);
    assert!(close(none[0], 0.0) && (none[1] - 0.2646).abs() < 1e-4, "{none:?}");
    assert!(close(all[1], 1.0) && (all[0] - 0.7354).abs() < 1e-4, "{all:?}");
}

#[test]
fn one_sided_intervals_are_told_by_their_ends() {
    let told = |right: usize| {
        let names: Vec<String> = (0..40).map(|i| i.to_string()).collect();
        let outcomes = names.iter().enumerate().map(|(i, name)| outcome(name, i < right));
        percent(&stats::metric(&outcomes.collect::<Vec<_>>(), 1))
    };
    assert_eq!(told(0), "0.0 [0.0, 8.8] (n 40)");
    assert_eq!(told(40), "100.0 [91.2, 100.0] (n 40)");
    assert!(told(20).starts_with("50.0 ±"), "{}", told(20));
}

#[test]
fn equal_seeds_give_equal_numbers_in_any_order() {
    let names: Vec<String> = (0..50).map(|i| format!("v{i}")).collect();
    let mut outcomes: Vec<_> =
        (0..200).map(|i| outcome(&names[i % 50], (i * i + i / 7) % 3 == 0)).collect();
    let first = stats::metric(&outcomes, 7);
    outcomes.reverse();
    assert_eq!(first, stats::metric(&outcomes, 7));
    assert!((8..16).any(|seed| stats::metric(&outcomes, seed).ci95 != first.ci95));
}

/// Ten questions per video that all fall alike carry the information of one: the interval must be
/// as wide as with one question per video.
#[test]
fn the_interval_resamples_videos_not_questions() {
    let names: Vec<String> = (0..100).map(|i| format!("v{i:03}")).collect();
    let one: Vec<_> = (0..100).map(|i| outcome(&names[i], i % 2 == 0)).collect();
    let ten: Vec<_> = (0..1_000).map(|i| outcome(&names[i % 100], i % 2 == 0)).collect();
    assert_eq!(stats::metric(&one, 1).ci95, stats::metric(&ten, 1).ci95);
}

/// Videos that are all tied together carry the information of one, however each is answered.
#[test]
fn the_interval_resamples_tied_videos_together() {
    let names: Vec<String> = (0..100).map(|i| format!("v{i:03}")).collect();
    let of = |cluster: fn(usize) -> usize| -> Vec<Outcome> {
        let tied = |i: usize| Outcome {
            cluster: &names[cluster(i)],
            ..outcome(&names[i], (i / 2).is_multiple_of(2))
        };
        (0..100).map(tied).collect()
    };
    let [free, twos, all] =
        [of(|i| i), of(|i| i - i % 2), of(|_| 0)].map(|outcomes| stats::metric(&outcomes, 1));
    let width = |m: &stats::Metric| m.ci95[1] - m.ci95[0];
    // Two that fall alike count as one: wider by √2.
    assert!((width(&twos) / width(&free) - 2f64.sqrt()).abs() < 0.15, "{twos:?} {free:?}");
    assert_eq!(all.ci95, [0.0, 1.0]);
    assert_eq!(
        [&free, &twos, &all].map(|m| (m.n_videos, m.small)),
        [(100, false), (100, false), (100, true)]
    );
    // A run that does not know of the ties adds nothing where another one tells them.
    let both = [of(|i| i - i % 2), of(|i| i)].concat();
    assert_eq!(stats::metric(&both, 1).ci95, twos.ci95);
}

/// 400 simulated test sets of 120 videos: videos differ in difficulty, so that questions on one
/// video fall together. The true accuracy is 0.4 by construction.
#[test]
fn the_interval_covers_the_truth_in_about_95_percent_of_cases() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let names: Vec<String> = (0..120).map(|i| format!("v{i}")).collect();
    let (sets, mut covered) = (400, 0);
    for set in 0..sets {
        let mut outcomes = Vec::new();
        for name in &names {
            let p = if rng.random_bool(0.5) { 0.1 } else { 0.7 };
            for _ in 0..rng.random_range(1..6) {
                outcomes.push(outcome(name, rng.random_bool(p)));
            }
        }
        let [low, high] = stats::metric(&outcomes, set).ci95;
        covered += i32::from(low <= 0.4 && 0.4 <= high);
    }
    // 95% of 400 is 380; three standard deviations are 13.
    assert!((367..=393).contains(&covered), "covered {covered} of {sets}");
}

#[test]
fn paired_counts_what_changed() {
    let names: Vec<String> = (0..40).map(|i| format!("v{i}")).collect();
    // 10 fixed, 2 broken, 8 right and 20 wrong both times.
    let pairs: Vec<_> = (0..40)
        .map(|i| Pair {
            video: &names[i],
            cluster: &names[i],
            before: (10..20).contains(&i),
            after: !(10..12).contains(&i) && i < 20,
        })
        .collect();
    let p = stats::paired(&pairs, 5);
    assert_eq!((p.n, p.fixed, p.broken), (40, 10, 2));
    assert!(close(p.difference, 0.2));
    // 2 · (1 + 12 + 66) / 2¹²
    assert!(close(p.p, 158.0 / 4096.0));
    assert!(0.0 < p.ci95[0] && p.ci95[0] < 0.2 && 0.2 < p.ci95[1]);
    let back: Vec<_> =
        pairs.iter().map(|p| Pair { before: p.after, after: p.before, ..*p }).collect();
    assert!(close(stats::paired(&back, 5).difference, -0.2));
}

#[test]
fn groups_add_up_and_small_ones_are_flagged() {
    let names: Vec<String> = (0..40).map(|i| format!("v{i}")).collect();
    let outcomes: Vec<_> = (0..40)
        .map(|i| Outcome {
            source: if i < 30 { "davis" } else { "ego4d" },
            group: if i < 30 { "exo" } else { "ego" },
            answer: if i < 30 { "direction" } else { "number" },
            ..outcome(&names[i], i % 4 == 0)
        })
        .collect();
    let all = stats::breakdown(&outcomes, 0);
    assert_eq!((all.overall.n, all.overall.correct), (40, 10));
    assert_eq!(all.subset["real"], all.overall);
    assert_eq!((all.source["davis"].n, all.source["davis"].correct), (30, 8));
    assert_eq!((all.group["ego"].n, all.group["ego"].correct), (10, 2));
    assert_eq!(all.answer["number"], all.group["ego"]);
    assert!(all.group["ego"].small && !all.group["exo"].small && !all.overall.small);
    let json = serde_json::to_value(&all).unwrap();
    assert_eq!(json["group"]["exo"]["n"], 30);
    let names: Vec<_> = all.parts().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["real", "ego", "exo", "davis", "ego4d", "direction", "number"]);
    assert!(json["ci95"][1].as_f64().unwrap() > 0.25);
}

#[test]
fn chance_counts_every_gold_choice() {
    // Three of four choices wrong, twice; two identical choices that are both gold.
    let guesses = [(1, 4), (1, 4), (2, 4)].map(|(gold, choices)| Some(stats::share(gold, choices)));
    let mut asked = guesses.map(|chance| Outcome { chance, ..outcome("a", true) });
    assert!(close(stats::metric(&asked, 0).chance.unwrap(), 1.0 / 3.0));
    // Freeform questions cannot be guessed.
    asked[1].chance = None;
    assert_eq!(stats::metric(&asked, 0).chance, None);
}
