//! What a judge is told, and what it may answer. Own wording; the criterion is MMVU's, from which
//! VLM4D's judge descends: an answer need not match word for word, but must be equivalent beyond
//! doubt.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Case, Ruling};

/// The task and its criterion.
pub const CRITERION: &str = "\
You grade answers to questions about what moves in a short video, and how. You are given a \
question, its right answer, and a response. You do not see the video; take the right answer as \
given.\n\
First find the answer that the response commits to in the end. Its reasoning does not count.\n\
That answer is correct only if it means the same as the right answer, beyond doubt. It need not \
use the same words: articles, spelling, number words, units, word order and further detail that \
fits may differ. It is wrong if it names another direction, place, count, thing or event, if it \
leaves out a part of the right answer that changes its meaning, if it names several answers where \
the right one is one, if it is vaguer than the right answer, or if it hedges, refuses or gives \
none. In doubt it is wrong.";

/// The form of the answer of a judge behind an endpoint.
pub const FORM: &str = "\
Answer with one JSON object and nothing else: {\"extracted_answer\": the answer that the response \
commits to, in its own words, or \"\" where there is none, \"correct\": true or false}";

/// The case, for either judge.
pub fn case(case: &Case) -> String {
    let Case { question, gold, response } = case;
    format!(
        "Question: {question}\nRight answer: {gold}\nResponse:\n<response>\n{response}\n</response>"
    )
}

/// `response_format` of a request.
pub fn schema() -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "verdict", "strict": true, "schema": {
        "type": "object",
        "properties": {
            "extracted_answer": {"type": "string"},
            "correct": {"type": "boolean"},
        },
        "required": ["extracted_answer", "correct"],
        "additionalProperties": false,
    }}})
}

/// The ruling in a judge's answer: one JSON object, which may stand in other text. Nothing where
/// there is none, or where several contradict each other.
pub fn ruling(text: &str) -> Option<Ruling> {
    #[derive(Deserialize)]
    struct Verdict {
        extracted_answer: Option<Value>,
        correct: bool,
    }
    let mut found: Vec<Ruling> = Vec::new();
    let mut from = 0;
    while let Some(start) = text[from..].find('{').map(|at| from + at) {
        let mut objects = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Verdict>();
        if let Some(Ok(verdict)) = objects.next() {
            // An endpoint that takes no schema may give a count as a number.
            let extracted = verdict.extracted_answer.map(|answer| match answer {
                Value::String(text) => text.trim().to_owned(),
                other => other.to_string(),
            });
            let extracted = extracted.filter(|text| !text.is_empty());
            // No answer is no right answer.
            let correct = verdict.correct && extracted.is_some();
            found.push(Ruling { extracted, correct });
            from = start + objects.byte_offset();
        } else {
            from = start + 1;
        }
    }
    let first = found.first()?.clone();
    found.iter().all(|other| other.correct == first.correct).then_some(first)
}
