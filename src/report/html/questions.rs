//! Predictions before and after → what the browser of questions shows, as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::strip::{Strip, frames_per_video, strip};
use crate::data::video::Frames;
use crate::data::vlm4d::Format;
use crate::error::{Error, Result};
use crate::eval::metrics::matched;
use crate::eval::predict::Prediction;

#[derive(Serialize)]
struct Page<'a> {
    questions: Vec<Row<'a>>,
    videos: Vec<Video>,
}

/// A question in one format.
#[derive(Serialize)]
struct Row<'a> {
    id: &'a str,
    subset: &'a str,
    source: &'a str,
    group: &'a str,
    format: Format,
    question: &'a str,
    choices: &'a [String],
    gold: &'a str,
    video: usize,
    /// `fixed`, `broken`, `right` or `wrong`.
    outcome: &'static str,
    before: Answer<'a>,
    after: Answer<'a>,
}

#[derive(Serialize)]
struct Answer<'a> {
    response: &'a str,
    extracted: Option<&'a str>,
    correct: bool,
    /// Probability of each letter at the first position of the answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    letters: Vec<f32>,
}

#[derive(Serialize)]
struct Video {
    name: String,
    /// Where the file lies, seen from the page; none of a list of frames, nor where the question has
    /// no video.
    href: Option<String>,
    strip: Option<Strip>,
}

/// Where the page gets a video's frames from, and how it links to its file.
pub struct Media<'a> {
    /// The frames of a video, by its name in the predictions.
    pub frames: &'a dyn Fn(&str) -> Result<Frames>,
    /// The link to a video's file, if it has one.
    pub href: &'a dyn Fn(&str) -> Option<String>,
    /// Told after each video, with how many are done.
    pub progress: &'a dyn Fn(usize),
}

/// How a question went before and after.
fn outcome(before: bool, after: bool) -> &'static str {
    match (before, after) {
        (false, true) => "fixed",
        (true, false) => "broken",
        (true, true) => "right",
        (false, false) => "wrong",
    }
}

/// The JSON for the page, safe to stand in a `<script>`, and the videos whose frames could not be
/// had.
///
/// # Errors
/// Never on predictions that were read.
pub fn json(
    before: &[Prediction],
    after: &[Prediction],
    media: &Media,
) -> Result<(String, Vec<String>)> {
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut names: Vec<(&str, bool)> = Vec::new();
    let mut questions = Vec::new();
    for (early, late) in matched(before, after) {
        let video = *places.entry(&*late.video).or_insert_with(|| {
            names.push((&late.video, late.n_video_tokens > 0));
            names.len() - 1
        });
        questions.push(question(early, late, video));
    }
    let most = frames_per_video(names.len());
    let (mut videos, mut missing) = (Vec::new(), Vec::new());
    for (i, (name, has_video)) in names.into_iter().enumerate() {
        let frames = || (media.frames)(name).and_then(|frames| strip(&frames, most)).ok();
        let strip = if has_video { frames() } else { None };
        if has_video && strip.is_none() {
            missing.push(name.to_owned());
        }
        let href = has_video.then(|| (media.href)(name)).flatten();
        videos.push(Video { name: name.to_owned(), href, strip });
        (media.progress)(i + 1);
    }
    let json = serde_json::to_string(&Page { questions, videos });
    let json = json.map_err(|e| Error::run(e.to_string()))?;
    // `</script>` in a response would end the script.
    Ok((json.replace('<', "\\u003c"), missing))
}

fn question<'a>(early: &'a Prediction, late: &'a Prediction, video: usize) -> Row<'a> {
    Row {
        id: &late.id,
        subset: &late.subset,
        source: &late.source,
        group: &late.group,
        format: late.format,
        question: &late.question,
        choices: &late.choices,
        gold: &late.gold,
        video,
        outcome: outcome(early.correct, late.correct),
        before: answer(early),
        after: answer(late),
    }
}

fn answer(p: &Prediction) -> Answer<'_> {
    let letters = p.letter_logprobs.iter().flat_map(BTreeMap::values);
    Answer {
        response: &p.response,
        extracted: p.extracted.as_deref(),
        correct: p.correct,
        letters: letters.map(|l| (l.exp() * 1e4).round() / 1e4).collect(),
    }
}
