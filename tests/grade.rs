//! The rules against phrasings of every kind, and against VLM4D's released, hand-verified
//! judgements where a copy of them is named by `VLM4D_QA`.

use std::fs;
use std::path::{Path, PathBuf};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use vlm4d_train::error::Kind;
use vlm4d_train::eval::grade::{self, Questions};

use crate::support::real_files;

const DIRECTIONS: [&str; 4] = ["left", "not moving", "right", "no truck there"];
const MIXED: [&str; 4] = ["left", "left and towards the camera", "A car.", "towards the camera"];
const COUNTS: [&str; 4] = ["3", "0", "1", "2"];
const PLACES: [&str; 4] = ["above", "both", "left", "none"];

fn mc(response: &str, choices: [&str; 4]) -> Option<String> {
    grade::grade_mc(response, &choices.map(String::from), &[0]).extracted
}

#[test]
fn a_letter_is_found_in_whatever_form_it_is_given() {
    for response in [
        "C",
        "c",
        " C \n",
        "C.",
        "(C)",
        "(c)",
        "c)",
        "[C]",
        "C:",
        "C: right",
        "C. right",
        "C) right",
        "c: right",
        "**C**",
        "**C: right**",
        "`C`",
        "'C'",
        "“C”",
        "$C$",
        "$C",
        "\\boxed{C}",
        "$\\boxed{\\text{C}}$",
        "\\(\\boxed{C}\\)",
        "<answer>C</answer>",
        "<answer> C: right",
        "C right",
        "Option C",
        "option c",
        "Option (C), right.",
        "Answer: C",
        "answer: c",
        "Answer: (C) right",
        "The answer is C.",
        "The correct answer is **C**.",
        "The correct option is C: right.",
        "The best choice is (C).",
        "Final answer: C",
        "Final Answer: $C$",
        "Final answer: right",
        "Therefore, the final answer is: C",
        "Therefore, the final answer is: 'C'",
        "Therefore, the final answer is: 'C: right'.",
        "Therefore, the final answer is: $(C)$",
        "The final answer is:\n\nC: right",
        "Thus, the final answer must be:\nC",
        "**Final Answer**: C",
        "### Final answer\nC",
        "C\n\nThe truck passes the house.",
        "C because the truck passes the house.",
        "Let me think.\nIt passes the house.\nC: right",
        "I choose C.",
        "It must be (C).",
        "C is correct.",
        "(C) is the correct answer.",
        "right",
        "Right.",
        "the right",
        "The truck is moving to the right.",
        "Option A is wrong. Option C is correct.",
        "答案：C",
        "答案是C。",
        "C：right",
        "Final answer: C之后",
        "The answer is C, because A is wrong.",
        "Looking at A and B, both fail. The answer is C.",
        "<think>The answer is A. Or B?</think>\n\nC",
        "The answer is A, or is it?\n</think>\nC: right",
        "<thinking>\nFinal answer: B\n</thinking>\nFinal answer: C",
        "{\"answer\": \"C\"}",
        "{\"reasoning\": \"It passes A and B.\", \"answer\": \"C\"}",
        "```json\n{\n  \"explanation\": \"The answer was not easy.\",\n  \"final_answer\": \"C: right\"\n}\n```",
        "<final_answer>C</final_answer>",
        "\\boxed{\\text{\\textbf{C}}}",
        "$\\mathbf{C}$",
        "__C__",
        "_(C)_",
        "[[C]]",
        "【C】",
        "Ｃ",
        "（Ｃ）",
        "选项C",
        "故选C。",
        "我选择：C",
        "正确答案应该是C．",
        "The answer is most likely C.",
        "The correct option is probably (C).",
        "Correct answer -> C",
        "Answer → C",
        "C - right",
        "C – right",
        "Choice: C",
        "Ans: C",
        "My answer: c) right",
        "Answer: C\n\nWhy: the truck passes the house, so the answer is not A.",
    ] {
        assert_eq!(mc(response, DIRECTIONS).as_deref(), Some("C"), "{response:?}");
    }
}

#[test]
fn the_last_conclusion_counts() {
    for (response, letter) in [
        ("The answer is A. No, wait: it turns. The answer is C.", "C"),
        ("Final answer: B\nTherefore, the final answer is: $B$", "B"),
        ("A: left is wrong.\nB: not moving is wrong.\nTherefore, the final answer is: D", "D"),
        ("Final answer: A. I hope that this answer is of help on the right way.", "A"),
        ("The truck drives to the right. Therefore, the final answer is:", "C"),
        ("It drives to the right.\t\r\n***\n. Therefore, the final answer is:\t", "C"),
        ("I choose A.", "A"),
        ("I think it's A!", "A"),
        ("The correct one is A.", "A"),
        ("So it must be A", "A"),
        ("The truck turns.\nTherefore A", "A"),
        ("A seems right.", "A"),
        ("A would be my choice.", "A"),
        ("In conclusion, A is the right choice.", "A"),
        ("I think option (A) is most likely right.", "A"),
        ("C. A is wrong.", "C"),
        ("C. A seems wrong.", "C"),
        ("A truck appears on the right.", "C"),
        // What stands below a conclusion does not undo it.
        ("The final answer is: A\nB: right", "A"),
    ] {
        assert_eq!(mc(response, DIRECTIONS).as_deref(), Some(letter), "{response:?}");
    }
}

#[test]
fn no_answer_and_two_answers_are_none() {
    for response in [
        "",
        "  \n",
        "E",
        "H",
        "Z: right",
        "CB",
        "AB",
        "A or C",
        "A/C",
        "A, C",
        "A and C",
        "(A) or (C)",
        "A: left or C: right",
        "Final answer: A or B or C.",
        "Option A and option C",
        "It is between A and C.",
        "I doubt that C is right.",
        "A\nC",
        "Therefore, the final answer is: N/A",
        "Therefore, the final answer is: $UNKNOWN",
        "Therefore, the final answer is: $NOT A, B, C, D$",
        "The final answer is uncertain.",
        "I cannot determine the direction.",
        "I'm not sure.",
        "Sorry, I can't see any video.",
        "I cannot tell whether it moves left.",
        "It is not moving to the left.",
        "left or right",
        "It moves left, then right.",
        "A: left\nB: not moving\nC: right\nD: no truck there",
        "A: left\nB: not moving",
        "Answer:\nA: left\nB: not moving\nC: right\nD: no truck there",
        "The options are left, not moving, right, and no truck there.",
        "C: left",
        "C (left)",
        "Final answer: $C$ (not moving)",
        "A truck passes by.",
        "The answer is 'left' or 'right'.",
        "Option A is incorrect.",
        "A seems wrong.",
        "B would be incorrect.",
        "B appears to be wrong.",
        "B can be ruled out.",
        "must be only one of the options (A or B or C or D). Think step by step before answering.",
        "<think>The answer is C",
        "<think>C</think>",
        "{\"answer\": null}",
        "{\"answer\": [\"A\", \"C\"]}",
        "选项A或选项C",
        "我无法确定。",
    ] {
        assert_eq!(mc(response, DIRECTIONS), None, "{response:?}");
    }
}

#[test]
fn articles_longer_choices_and_numbers_are_told_apart() {
    for (response, choices, letter) in [
        ("left", MIXED, Some("A")),
        ("It moves left and towards the camera.", MIXED, Some("B")),
        ("B: left and towards the camera", MIXED, Some("B")),
        ("A: left and towards the camera", MIXED, None),
        ("A car", MIXED, Some("C")),
        ("a car", MIXED, Some("C")),
        ("C: A car.", MIXED, Some("C")),
        ("Toward the camera.", MIXED, Some("D")),
        ("A left", MIXED, Some("A")),
        ("2", COUNTS, Some("D")),
        ("Final answer: D (2)", COUNTS, Some("D")),
        ("Final answer: C: 1.", COUNTS, Some("C")),
        ("C: 1 plane going to the right", COUNTS, Some("C")),
        ("Final answer: A: 0", COUNTS, None),
        ("12", COUNTS, None),
        ("between 1 and 2", COUNTS, None),
        ("It is above.", PLACES, Some("A")),
        ("None", PLACES, Some("D")),
        ("None of the above", PLACES, None),
        ("The direction of car A is right.", DIRECTIONS, Some("C")),
        ("Without a doubt, the car is moving to the left.", DIRECTIONS, Some("A")),
        ("None of the cars turn; the car moves left.", DIRECTIONS, Some("A")),
        ("A is my final answer\n", DIRECTIONS, Some("A")),
        ("Both A and C are possible.", PLACES, None),
    ] {
        assert_eq!(mc(response, choices).as_deref(), letter, "{response:?}");
    }
}

#[test]
fn either_of_two_identical_choices_counts() {
    let choices = ["1", "2", "4", "4"].map(String::from);
    for response in ["C", "D", "4", "The final answer is: 4"] {
        assert!(grade::grade_mc(response, &choices, &[2, 3]).correct, "{response}");
    }
    assert!(!grade::grade_mc("A", &choices, &[2, 3]).correct);
}

/// Gold answer, responses that are right, responses that are wrong. Gold answers are of VLM4D's
/// kinds.
const FREEFORM: &[(&str, &[&str], &[&str])] = &[
    (
        "left",
        &[
            "left",
            "Left.",
            "to the left",
            "towards the left",
            "Leftwards",
            "leftward",
            "the left",
            "The left side",
            "To his left.",
            "The bus is moving to the left.",
            "It turned left.",
            "Therefore, the final answer is: 'Answer: left'",
            "**Answer:** Left",
            "It could be right.\nFinal answer is: left",
            "\\boxed{left}",
            "Left\nTo the left.",
            "moving left",
            "With the left hand",
            "The 2 men are running to the left.",
            "<think>It may be right.</think> left",
            "{\"answer\": \"left\"}",
            "_left_",
            "right to left",
            "It moves from the right to the left.",
            "It moves from the right side of the frame to the left side.",
            "Left. It enters from the right.",
            "The direction that the bus is moving towards is left.",
            "It appears to be moving left, not right.",
            "to the left rather than to the right",
        ],
        &[
            "right",
            "",
            "left and right",
            "left or right",
            "It could be moving in either direction, left",
            "left to right",
            "left then right",
            "not left",
            "It isn't moving left.",
            "left and towards the camera",
            "up",
            "no",
            "I cannot tell, left perhaps",
            "neither left nor right",
            "upper left",
            "bottom-left",
            "from the left",
            "The bus enters from the left side of the frame.",
            "The bus is parked on the left side.",
            "The bus on the left is not moving right.",
            "not moving",
            "The car left the frame.",
            "Answer: left\nFinal answer: right",
            "It is moving",
            "A",
        ],
    ),
    (
        "To the right.",
        &["right", "Right", "rightwards", "towards the right side", "the right hand side"],
        &["left", "to the right and up", "right now it rests", "away"],
    ),
    (
        "right hand",
        &[
            "right hand",
            "with his right hand",
            "right",
            "He picks it up with his right hand.",
            "The man uses the right hand.",
        ],
        &["left hand", "both hands", "the right and the left hand", "hand"],
    ),
    (
        "not moving",
        &[
            "not moving",
            "Stationary.",
            "It is stationary",
            "still",
            "It stands still.",
            "The truck doesn't move.",
            "does not move",
            "did not move",
            "isn’t moving",
            "staying in place",
            "motionless",
            "It remains in the same place.",
            "No movement",
            "The truck is not moving at all.",
            "It does not appear to be moving.",
            "It is not moving towards any specific direction.",
            "It is not moving to the left or to the right.",
            "not moving towards or away from the camera",
            "Static.",
            "The truck is parked.",
        ],
        &[
            "moving",
            "still moving",
            "left",
            "not moving left",
            "not moving fast",
            "not moving in the same direction as the smoke",
            "It moves past a parked car.",
            "Static camera, the truck moves.",
            "not spinning",
            "no",
            "not",
        ],
    ),
    ("staying in place", &["not moving", "stays in place", "stationary"], &["place", "forward"]),
    (
        "not spinning",
        &[
            "not spinning",
            "not rotating",
            "It doesn't rotate.",
            "no rotation",
            "isn't spinning",
            "not spinning in either direction",
            "not spinning clockwise or counter-clockwise",
            "Neither clockwise nor counter-clockwise.",
        ],
        &["spinning", "clockwise", "not moving", "not spinning clockwise", "not spinning fast"],
    ),
    (
        "clockwise",
        &[
            "Clockwise",
            "clock-wise",
            "It rotates clockwise.",
            "In a clockwise direction.",
            "Clockwise when viewed from above.",
        ],
        &["counter-clockwise", "counterclockwise", "anticlockwise", "not clockwise", "left"],
    ),
    (
        "anti-clockwise",
        &["counter-clockwise", "Counterclockwise.", "anticlockwise", "counter clockwise"],
        &["clockwise", "clockwise, then anticlockwise", "both"],
    ),
    (
        "towards the camera",
        &[
            "toward the camera",
            "towards camera",
            "It moves towards the viewer.",
            "closer to the camera",
            "coming closer to the camera",
            "approaching the camera",
            "towards",
            "coming closer",
            "It is moving forward, towards the camera.",
            "towards the camera, not away from it",
        ],
        &[
            "away from the camera",
            "towards the left",
            "towards the house",
            "forward, towards the house",
            "left",
            "towards and then away from the camera",
            "to the left and towards the camera",
        ],
    ),
    (
        "away from the camera",
        &["away", "further away from the camera", "farther away", "going away from the viewer"],
        &["towards the camera", "away from the dog", "not away from the camera"],
    ),
    (
        "coming closer",
        &["closer", "getting closer", "It comes closer.", "coming nearer", "closer to the camera"],
        &["further away", "closer to the wall", "not coming closer"],
    ),
    ("going further away", &["further away", "moving away", "going farther away"], &["closer"]),
    ("Towards the baker.", &["toward the baker"], &["towards the camera", "away from the baker"]),
    ("forwards", &["forward", "Moving forward."], &["backwards", "forward and backward", "left"]),
    ("backwards", &["backward", "It is driving backwards."], &["forwards", "back and forth"]),
    ("Upward", &["up", "upwards", "It moved up."], &["down", "up and down", "picks up"]),
    ("pick up", &["picking up", "picked up"], &["up", "put down"]),
    ("uphill", &["Uphill.", "riding uphill", "up the hill"], &["downhill", "up"]),
    (
        "moving straight and not turning",
        &[
            "straight",
            "It is going straight.",
            "not turning",
            "moving straight, not turning",
            "not turning left or right",
            "turning neither left nor right",
            "Neither, it is moving straight.",
        ],
        &["turning left", "not turning left", "not moving"],
    ),
    (
        "Yes",
        &[
            "yes",
            "Yes.",
            "Yes, it is.",
            "Yeah",
            "The answer is yes.",
            "Yes, to the left.",
            "In the video, yes.",
            "### Final answer\n\nYes",
        ],
        &[
            "no",
            "No, yes is wrong",
            "yes or no",
            "yes and no",
            "Yes, no",
            "Yes/no",
            "maybe",
            "left",
            "Not yes",
        ],
    ),
    (
        "No",
        &["no", "No.", "No, it stays.", "Nope", "No, it moves right."],
        &["yes", "No, yes", "there are no cars", "no dragon there"],
    ),
    (
        "there are no buses in the video",
        &[
            "no bus",
            "There is no bus.",
            "There are no buses.",
            "No, there is no bus in the video.",
            "There isn't a bus",
            "No bus is visible.",
            "The video does not show any buses.",
            "there's no bus",
            "no bus there",
            "There is no bus, only a car.",
            "The bus is not visible.",
            "There aren't any buses in the scene.",
            "no buses present",
            "There does not appear to be a bus in the provided video.",
            "The bus does not appear in the video.",
            "No bus can be seen in the footage.",
            "I cannot see any bus.",
            "There is no bus in the video, so its direction cannot be determined.",
        ],
        &[
            "bus",
            "there are no cars",
            "no",
            "There is a bus",
            "left",
            "not moving",
            "no bus driver there",
            "The bus does not appear to be moving.",
            "There is no clear view of the bus, so its direction cannot be determined.",
            "There is no bus moving to the left.",
        ],
    ),
    (
        "no dragon there",
        &["There is no dragon", "no dragons", "I don't see a dragon."],
        &["no griffin there", "dragon", "None", "The dragon is not moving."],
    ),
    ("no robot car there", &["The robot car is not present in the video."], &["no car there"]),
    (
        "3",
        &[
            "3",
            "three",
            "Three times.",
            "3 times",
            "The ball bounces 3 times.",
            "It turns left 3 times.",
            "Three (3)",
            "3. The ball bounces 3 times.",
        ],
        &[
            "2",
            "13",
            "3 or 4",
            "3 and 4",
            "not 3",
            "1.3",
            "at least 3",
            "at least thrice",
            "3 at most",
            "3+",
            "over 3",
            "up to 3",
            "a maximum of 3",
            "about three",
            "thirteen",
            "33",
        ],
    ),
    ("0", &["zero", "0", "0 times", "None.", "never"], &["1", "10", "no", "nothing at all, 1"]),
    (
        "1",
        &[
            "once",
            "one",
            "1 time",
            "Exactly one",
            "Only one.",
            "only 1",
            "Only one car is moving.",
            "It turns around once.",
        ],
        &["twice", "more than once", "11", "two", "neither one or two"],
    ),
    ("Once", &["1", "one time"], &["2"]),
    (
        "2 logs",
        &["two logs", "2", "He moves two logs."],
        &["3 logs", "logs", "2 stones and 3 logs"],
    ),
    ("3 times", &["3", "three times"], &["2 times"]),
    ("20", &["twenty", "20"], &["2", "twenty-one", "12"]),
    (
        "right to left",
        &["from right to left", "From the right to the left.", "It moves from right to left."],
        &["left to right", "right and left", "left", "to the left"],
    ),
    (
        "both left and right",
        &["left and right", "right and left", "both right and left", "left & right"],
        &["left", "left then right", "left or right", "left/right", "neither"],
    ),
    ("Left then right", &["left, then right"], &["right then left", "left and right", "left"]),
    (
        "left and towards the camera",
        &["towards the camera and to the left", "to the left, toward the camera"],
        &["left", "towards the camera", "right and towards the camera", "left and away"],
    ),
    (
        "3 with their right hand and 0 with their left hand.",
        &["3 with the right hand and 0 with the left hand"],
        &[
            "0 with the right hand and 3 with the left hand",
            "3",
            "3 with the left and 0 with the right",
        ],
    ),
    (
        "21",
        &["twenty-one", "twenty–one", "Twenty one.", "There are twenty-one cars."],
        &["twenty", "one", "twenty, one", "twenty-two", "twenty-first", "thirty-one"],
    ),
    (
        "30",
        &["thirty", "Thirty cars.", "30"],
        &[
            "thirty-first",
            "thirty-odd",
            "thirty odd",
            "about thirty",
            "thirty thousand",
            "half of thirty",
            "3",
        ],
    ),
    (
        "100",
        &["a hundred", "one hundred", "There are a hundred cars."],
        &["several hundred", "hundreds", "a hundred thousand", "a hundred and five", "two hundred"],
    ),
    ("200", &["two hundred"], &["two", "a hundred", "two thousand"]),
    (
        "2",
        &["two", "Two odd cars."],
        &["two hundred", "two dozen", "2 thousand", "two hundreds", "two thousands", "two dozens"],
    ),
    ("A ninety degree turn", &["a ninety-degree turn"], &["a turn", "a sixty-degree turn"]),
    ("sixty-year-old man", &["A sixty year old man."], &["sixty-one-year-old man", "an old man"]),
    ("twenty-foot truck", &["twenty foot truck", "a 20-foot truck"], &["a truck"]),
    (
        "Upper left.",
        &["upper left", "the upper-left corner", "top left"],
        &["left", "lower left", "upper right"],
    ),
    ("In front", &["in front of it"], &["behind", "in front and behind"]),
    (
        "A car.",
        &[
            "car",
            "the car",
            "It is a car.",
            "Based on the video, it is a car.",
            "Sure! A car.",
            "Sure! Based on the video, it is a car.",
            "I think, based on the video, it is a car.",
            "I think, a car.",
            "A car, I believe.",
        ],
        &[
            "a bus",
            "a car and a bus",
            "a car & a bus",
            "not a car",
            "cars or buses",
            "A car, a bus",
            "A dog, a cat, a car",
            "A car. A bus.",
        ],
    ),
    (
        "White",
        &["The van is white", "white"],
        &["black", "black and white", "White/black", "not white"],
    ),
    ("Jumped", &["jumping", "He jumped.", "Jumped, he jumped"], &["fell", "did not jump"]),
    ("diving in", &["diving in", "He dives in."], &["Diving in, landing", "landing"]),
    ("not pedalling", &["not pedalling", "He isn't pedalling."], &["pedalling"]),
    // A choice that the question's text spells out.
    ("A", &["A", "A.", "(A)", "A: a car", "The answer is A"], &["a car", "B", "A or B", ""]),
    ("B", &["B", "B. left"], &["A", "left", "A, B"]),
    (
        "It bounces off the rim",
        &["bounces off the rim", "The ball bounced off the rim."],
        &["rim", "in"],
    ),
];

#[test]
fn freeform_answers_count_if_unambiguously_equivalent() {
    let mut wrong = Vec::new();
    for (gold, good, bad) in FREEFORM {
        for (response, expected) in
            good.iter().map(|r| (r, true)).chain(bad.iter().map(|r| (r, false)))
        {
            let verdict = grade::grade_ff("", response, gold);
            if verdict.correct != expected {
                wrong.push(format!("{gold:?} {response:?} → {verdict:?}"));
            }
        }
        assert!(grade::grade_ff("", gold, gold).correct, "{gold:?} against itself");
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn what_was_asked_decides_on_a_side_to_come_from_and_on_none() {
    let towards = "What direction is the ball moving towards from the camera's perspective?";
    let from = "Which direction did that ball come from?";
    let side = "From which side does he take the book?";
    let cars = "How many cars are moving to the left?";
    let branch = "Which side of a branch does he cut first?";
    let hair = "Which way did he move to switch the side they were cutting hair from?";
    for (question, gold, response, expected) in [
        (towards, "left", "from right to left", true),
        (from, "left", "from right to left", false),
        (from, "right", "from right to left", true),
        (towards, "left", "It comes from the left.", false),
        (from, "left", "It comes from the left.", true),
        (side, "left", "from the left side", true),
        ("How does it enter?", "from the left", "From the left side.", true),
        (cars, "0", "There are no cars moving to the left.", true),
        (cars, "0", "None of the cars", true),
        (cars, "0", "There are not many cars moving to the left.", false),
        (cars, "0", "There is no way to tell.", false),
        (cars, "0", "The video does not show it.", false),
        (cars, "0", "The video does not show how many.", false),
        (cars, "0", "No other cars", false),
        (cars, "1", "None of the cars", false),
        (cars, "1", "One car is moving to the left, one to the right.", false),
        ("How many of the people are not moving?", "0", "No people are moving.", false),
        (branch, "left", "He cuts the branch from the left side first.", true),
        ("With which hand does he shoot?", "right hand", "He shoots from his right hand.", true),
        (hair, "left", "from the right to the left", true),
        (hair, "left", "from the left to the right", false),
        (towards, "right", "The ball rolls from their left to the right.", true),
    ] {
        let verdict = grade::grade_ff(question, response, gold);
        assert_eq!(verdict.correct, expected, "{question:?} {response:?} → {verdict:?}");
    }
}

#[test]
fn what_is_said_of_something_else_changes_nothing() {
    for (gold, response, expected) in [
        ("left", "The camera is static, and the car is moving to the left.", true),
        ("left", "The car is moving to the left. The background appears static.", true),
        ("left", "It is moving to the left while the other cars are parked.", true),
        ("clockwise", "It is spinning clockwise, while the background remains static.", true),
        ("not moving", "The camera is static.", false),
        ("not moving", "The car is moving past a truck that is parked.", false),
        ("not moving", "The yellow robot car is parked.", true),
        ("left", "The car moves left rather than right.", true),
        ("left", "The car moves right rather than left.", false),
        ("left", "The car moves hard to the left.", true),
        ("Down.", "The box was put down.", true),
        ("there are no buses in the video", "The bus's direction is not visible.", false),
        (
            "there are no buses in the video",
            "The image does not show the direction of the bus, so it cannot be determined.",
            false,
        ),
    ] {
        let verdict = grade::grade_ff("", response, gold);
        assert_eq!(verdict.correct, expected, "{response:?} for {gold:?} → {verdict:?}");
    }
}

#[test]
fn a_freeform_response_without_an_answer_extracts_none() {
    for response in ["", " \n", "...", "Final answer:"] {
        let verdict = grade::grade_ff("", response, "left");
        assert_eq!((verdict.extracted, verdict.correct), (None, false), "{response:?}");
    }
    assert_eq!(grade::grade_ff("", "To the Left.", "left").extracted.as_deref(), Some("left"));
}

/// Scraps of answers in any order: nothing panics or hangs, and no verdict is right without an
/// extracted answer.
#[test]
fn any_response_gets_a_verdict() {
    const SCRAPS: [&str; 24] = [
        "A",
        "b",
        "(C)",
        "left",
        "not",
        "final answer is:",
        "Answer:",
        "\n",
        "\t",
        "\r",
        ".",
        "'",
        "é",
        "左",
        "答案是",
        "\\boxed{",
        "}",
        "<answer>",
        "to",
        "from",
        "no",
        "3",
        "💔",
        "İ",
    ];
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..3_000 {
        let mut response = String::new();
        for _ in 0..rng.random_range(0..10) {
            response.push_str(SCRAPS[rng.random_range(0..SCRAPS.len())]);
            response.push_str(["", " "][rng.random_range(0..2)]);
        }
        let mc = grade::grade_mc(&response, &DIRECTIONS.map(String::from), &[0]);
        let ff = grade::grade_ff("", &response, "left");
        assert!(mc.extracted.is_some() || !mc.correct, "{response:?}");
        assert!(ff.extracted.is_some() || !ff.correct, "{response:?}");
    }
}

fn write(folder: &Path, name: &str, value: &serde_json::Value) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, value.to_string()).unwrap();
    path
}

fn item(id: &str, response: &str, gold: &str) -> serde_json::Value {
    let choices = json!({"A": "left", "B": "right ", "C": 0, "D": "no cat there"});
    json!({"id": id, "question": "Where?", "choices": choices, "response": response,
           "ground_truth_answer": gold, "extra": [1]})
}

#[test]
fn files_are_graded_and_tabulated() {
    let folder = tempfile::tempdir().unwrap();
    let mut judged = item("v2", "B", "left");
    judged["correct"] = json!(true);
    let mut number = item("v3", "0", "");
    number["ground_truth_answer"] = json!(0);
    number["correct"] = json!(true);
    let mut silent = item("v4", "", "right");
    silent["response"] = json!(null);
    let real = write(
        folder.path(),
        "real_mc/m.json",
        &json!([item("v1", "A", "left"), judged, number, silent]),
    );
    let synthetic = write(
        folder.path(),
        "synthetic_mc/m.json",
        &json!([
            item("v1", "D", "no cat there"),
            item("v2", "Final answer: A", "left"),
            item("v3", "?", "left")
        ]),
    );
    let video = |source: &str| format!("https://host/resolve/main/videos_real/{source}/x.mp4");
    let question = |id: &str, source: &str| json!({"id": id, "video": video(source), "question": "Where?", "answer": "left"});
    write(
        folder.path(),
        "QA/real_mc.json",
        &json!([
            question("v1", "ego4d"),
            question("v2", "davis"),
            question("v3", "ego4d"),
            question("v4", "youtube-vos")
        ]),
    );
    write(folder.path(), "QA/synthetic_mc.json", &json!([]));

    let files =
        [grade::grade_file(&real, None).unwrap(), grade::grade_file(&synthetic, None).unwrap()];
    let table = grade::table(&files);
    let row: Vec<&str> = table
        .lines()
        .nth(1)
        .unwrap()
        .split("  ")
        .filter(|c| !c.is_empty())
        .map(str::trim)
        .collect();
    assert_eq!(
        row,
        ["m mc", "–", "–", "50.0 (4)", "50.0 (2)", "100.0 (1)", "66.7 (3)", "57.1 (7)"]
    );
    assert!(table.contains("agrees with `correct` on 1 of 2 (50.00%); not on v2"), "{table}");

    let questions = Questions::read(folder.path()).unwrap();
    let known = [grade::grade_file(&real, Some(&questions)).unwrap()];
    let table = grade::table(&known);
    let row: Vec<&str> = table
        .lines()
        .nth(1)
        .unwrap()
        .split("  ")
        .filter(|c| !c.is_empty())
        .map(str::trim)
        .collect();
    assert_eq!(row[1..4], ["100.0 (2)", "0.0 (2)", "50.0 (4)"]);

    let lines = grade::jsonl(&files[0]).unwrap();
    assert_eq!(lines.lines().count(), 4);
    let last: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(
        last,
        json!({"file": files[0].path, "id": "v4", "response": "", "extracted": null,
               "correct": false, "grader": "rules"})
    );
}

#[test]
fn wrong_files_are_refused_with_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let missing = grade::grade_file(&folder.path().join("none.json"), None).unwrap_err();
    assert!(missing.to_string().contains("none.json: no such file"), "{missing}");
    let path =
        write(folder.path(), "a.json", &json!([{"question": "?", "ground_truth_answer": "x"}]));
    let error = grade::grade_file(&path, None).unwrap_err();
    assert!(
        error.to_string().contains("a.json:1:") && error.to_string().contains("`id`"),
        "{error}"
    );
    // Questions alone, or answers under another key, are nothing that was answered wrongly.
    let mut renamed = item("v8", "A", "left");
    let response = renamed.as_object_mut().unwrap().remove("response").unwrap();
    renamed["output"] = response;
    let path = write(folder.path(), "d.json", &json!([renamed]));
    let error = grade::grade_file(&path, None).unwrap_err();
    let (told, fix) = (error.what(), error.fix().unwrap());
    assert!(told.contains("d.json:1:") && told.contains("missing field `response`"), "{error}");
    assert!(fix.contains("`response`"), "{error}");
    let path = write(folder.path(), "b.json", &json!([item("v9", "A", "up")]));
    let error = grade::grade_file(&path, None).unwrap_err();
    assert!(error.to_string().contains("`v9`: the answer `up` is no choice"), "{error}");
    for choices in [json!({"A": "left", "C": "right"}), json!({"B": "left", "C": "right"})] {
        let mut gap = item("v10", "C", "right");
        gap["choices"] = choices;
        let path = write(folder.path(), "c.json", &json!([gap]));
        let error = grade::grade_file(&path, None).unwrap_err();
        assert!(
            error.to_string().contains("c.json: `v10`: the choices have the keys `"),
            "{error}"
        );
    }
    assert_eq!(error.kind(), Kind::Input);
}

#[test]
fn the_rules_agree_with_the_released_judgements() {
    let Some(data) = real_files("the_rules_agree_with_the_released_judgements") else { return };
    let questions = Questions::read(&data).unwrap();
    let mut files = Vec::new();
    for (prompt, at_least) in [("cot", 0.995), ("direct-output", 0.999)] {
        for subset in ["real", "synthetic"] {
            let folder = data.join(format!("released_outputs/{subset}_mc_{prompt}"));
            for model in ["Qwen2-VL-7B-Instruct_1fps.json", "Qwen2.5-VL-7B-Instruct_1fps.json"] {
                let file = grade::grade_file(&folder.join(model), Some(&questions)).unwrap();
                let n = if subset == "real" { 1_371 } else { 445 };
                assert_eq!(file.items.len(), n);
                let agree =
                    file.items.iter().filter(|i| i.judged == Some(i.verdict.correct)).count();
                let share =
                    f64::from(u32::try_from(agree).unwrap()) / f64::from(u32::try_from(n).unwrap());
                assert!(share >= at_least, "{}: {agree} of {n}", file.path);
                files.push(file);
            }
        }
    }
    let table = grade::table(&files);
    eprintln!("{table}");
    // Four rows, one per model and prompt, over all 1,816 questions; all columns known.
    assert_eq!(table.lines().take(5).filter(|row| row.contains("(1816)")).count(), 4);
    assert!(!table.contains('–'));
    assert!(table.contains("(449)") && table.contains("(922)") && table.contains("(45)"));
}

/// Every published answer is right as a freeform response, and none of its wrong choices is.
#[test]
fn published_choices_are_told_apart_as_freeform_answers() {
    let Some(data) = real_files("published_choices_are_told_apart_as_freeform_answers") else {
        return;
    };
    let text = |v: &serde_json::Value| v.as_str().map_or_else(|| v.to_string(), String::from);
    let mut confused = Vec::new();
    let mut pairs = 0;
    for name in ["real_mc.json", "synthetic_mc.json"] {
        let file = fs::read_to_string(data.join(name)).unwrap();
        let questions: Vec<serde_json::Value> = serde_json::from_str(&file).unwrap();
        for question in &questions {
            let (asked, gold) = (question["question"].as_str().unwrap(), text(&question["answer"]));
            assert!(grade::grade_ff(asked, &gold, &gold).correct, "{gold:?} against itself");
            for choice in question["choices"].as_object().unwrap().values().map(text) {
                pairs += 1;
                if choice != gold && grade::grade_ff(asked, &choice, &gold).correct {
                    confused
                        .push(format!("{name} {}: {choice:?} counts as {gold:?}", question["id"]));
                }
            }
        }
    }
    eprintln!("{} of {pairs} confused:\n{}", confused.len(), confused.join("\n"));
    assert!(confused.len() <= 10, "{}", confused.join("\n"));
}
