//! Mirroring of questions: the rule word by word, and on the real questions.

use std::collections::{BTreeMap, BTreeSet};

use vlm4d_train::data::entry::{self, Entry};
use vlm4d_train::data::mirror::{Why, mirror};
use vlm4d_train::data::variant::Variant;

use crate::support::real_files;

fn one(text: &str) -> Result<String, Why> {
    mirror(&[text]).map(|mut texts| texts.remove(0))
}

#[test]
fn sides_and_turns_change_places() {
    for (text, mirrored) in [
        ("left", "right"),
        ("Right. ", "Left. "),
        ("LEFT then right", "RIGHT then left"),
        ("To the left-most, leftwards", "To the right-most, rightwards"),
        ("turn_left", "turn_right"),
        ("with his left hand, to the robot's right", "with his right hand, to the robot's left"),
        ("clockwise", "counter-clockwise"),
        ("Clockwise or anticlockwise?", "Anticlockwise or clockwise?"),
        ("Counter Clockwise, Clockwise", "Clockwise, Counter Clockwise"),
        ("ANTI-CLOCKWISE or CLOCKWISE", "CLOCKWISE or ANTI-CLOCKWISE"),
        ("towards the camera, up and away", "towards the camera, up and away"),
        ("an upright bright bird, otherwise", "an upright bright bird, otherwise"),
        ("is left of the box", "is right of the box"),
        ("right then left", "left then right"),
        ("was left or right?", "was right or left?"),
        ("Is it turning left? The dog", "Is it turning right? The dog"),
        ("the left one over there", "the right one over there"),
        ("moving to the right on the ice", "moving to the left on the ice"),
        ("0", "0"),
        ("", ""),
    ] {
        assert_eq!(one(text).as_deref(), Ok(mirrored), "{text}");
        assert_eq!(one(mirrored).as_deref(), Ok(text), "{mirrored}");
    }
    // the question's own spelling, wherever in it
    let texts = mirror(&["clockwise or not?", "Clockwise", "anti-clockwise"]).unwrap();
    assert_eq!(texts, ["anti-clockwise or not?", "Anti-clockwise", "clockwise"]);
}

#[test]
fn what_mirroring_would_make_false_is_left_alone() {
    for (text, why) in [
        ("The shuttlecock never left the ground", Why::Sense),
        ("How many cars are left?", Why::Sense),
        ("He has left", Why::Sense),
        ("what is left over", Why::Sense),
        ("the dog that was left behind", Why::Sense),
        ("They left a bag", Why::Sense),
        ("right away", Why::Sense),
        ("It stands right behind the car", Why::Sense),
        ("at a right angle", Why::Sense),
        ("the right answer", Why::Sense),
        ("Is the driver all right?", Why::Sense),
        ("moving left in the video", Why::Sense),
        ("leftovers on the plate", Why::Spelling),
        ("spinning clckswise", Why::Spelling),
        ("a counter-clockswise turn", Why::Spelling),
        ("Counter clockwise or anti-clockwise", Why::Spelling),
        ("What does the sign on the left say?", Why::Text),
        ("The number of the left kart", Why::Text),
        ("towards 3 o'clock", Why::Text),
        ("East or left", Why::Side),
        ("to starboard", Why::Side),
        ("in the left mirror", Why::Camera),
        ("nach links, über die Straße", Why::Language),
        ("向左", Why::Language),
    ] {
        assert_eq!(one(text), Err(why), "{text}");
    }
    // one such text holds for all of a question's
    assert_eq!(mirror(&["left", "North"]), Err(Why::Side));
}

#[test]
fn the_real_questions_are_mirrored_by_the_rule() {
    let Some(folder) = real_files("the_real_questions_are_mirrored_by_the_rule") else { return };
    let (questions, _) = entry::read(&folder, &["real".into(), "synthetic".into()]).unwrap();
    let mut left_alone: BTreeMap<Why, Vec<&str>> = BTreeMap::new();
    let (mut mirrored, mut same) = (0, 0);
    for q in &questions {
        match q.mirrored() {
            Err(why) => left_alone.entry(why).or_default().push(&q.id),
            Ok(m) => {
                mirrored += 1;
                let plain = |m: Entry| Entry { variant: Variant::Plain, ..m };
                assert_eq!(m.mirrored().map(plain).as_ref(), Ok(q), "mirrored twice");
                assert_eq!(m.gold_choices, q.gold_choices);
                let distinct = |choices: &[String]| choices.iter().collect::<BTreeSet<_>>().len();
                assert_eq!(distinct(&m.choices), distinct(&q.choices), "{}", q.id);
                assert!(m.gold_choices.iter().all(|i| m.choices[*i] == m.gold), "{}", q.id);
                let sides = |q: &Entry| {
                    let text = format!("{} {}", q.question, q.choices.join(" ")).to_lowercase();
                    ["left", "right"].map(|side| text.matches(side).count())
                };
                let ([l, r], [ml, mr]) = (sides(q), sides(&m));
                assert_eq!((l, r), (mr, ml), "{}", q.id);
                same += usize::from(plain(m) == *q);
            }
        }
    }
    let ids =
        |why: Why| left_alone[&why].iter().map(|id| id.strip_prefix("real/validation_").unwrap());
    let ids = |why: Why| ids(why).collect::<Vec<_>>();
    assert_eq!(ids(Why::Text), ["382", "1043", "1251"]);
    assert_eq!(ids(Why::Camera), ["1142"]);
    assert_eq!(ids(Why::Side), ["934", "950", "1188"]);
    assert_eq!(ids(Why::Sense), ["1168"]);
    assert_eq!(ids(Why::Spelling), ["174", "233", "291"]);
    assert_eq!((mirrored, left_alone.len()), (1_805, 5));
    println!("{mirrored} mirrored ({same} without a word to exchange), left alone: {left_alone:?}");
}
