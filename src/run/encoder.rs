//! Questions → tokens, and whether the model takes them: the headers of videos and images tell that
//! before a weight is loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::questions::Questions;
use crate::data::augment::Augment;
use crate::data::chat::Chat;
use crate::data::entry::Entry;
use crate::data::medium::{Kind, Medium};
use crate::data::reader::Reader;
use crate::data::variant::Shown;
use crate::data::vlm4d::Format;
use crate::error::{Error, Result};
use crate::eval::predict::{Ask, media_tokens};
use crate::eval::rounds::Round;
use crate::features::of_many;
use crate::interrupt;
use crate::model::config::Config;
use crate::model::rope::{MediaGrid, Positions};
use crate::parallel;
use crate::recipe::Recipe;
use crate::report::terminal::Terminal;
use crate::train::gradients::Sample;

/// The grid of each video and image.
pub type Grids = BTreeMap<Medium, MediaGrid>;

/// Samples with their labels, and what each shows.
pub struct Examples {
    pub samples: Vec<Sample>,
    pub shown: Vec<Vec<Shown>>,
}

/// What turns questions into tokens.
pub struct Encoder<'a> {
    pub recipe: &'a Recipe,
    pub config: &'a Config,
    pub chat: &'a Chat,
    /// Of everything that is shown.
    pub grids: &'a Grids,
    pub terminal: &'a Terminal,
}

impl Encoder<'_> {
    /// What is learned and what is held back to validate, as samples; all prompts of the rounds and
    /// of the validation fit.
    ///
    /// # Errors
    /// The first question that cannot be encoded or does not fit.
    pub fn all(&self, questions: &Questions) -> Result<[Examples; 2]> {
        let validation = Round::plain(questions.validating(), &self.recipe.eval.formats);
        self.check_prompts(questions.rounds.iter().chain([&validation]))?;
        let held_back = held_back(self.recipe, questions.validating());
        Ok([self.samples(&questions.samples.distinct)?, self.samples(&held_back)?])
    }

    /// Questions with their answers as labels, ready for the model.
    ///
    /// # Errors
    /// The first question that cannot be encoded or does not fit.
    pub fn samples(&self, questions: &[(Entry, Format)]) -> Result<Examples> {
        let bar = self.terminal.bar("samples", questions.len());
        let example = |(entry, format): &(Entry, Format)| {
            interrupt::check("the reading of the questions")?;
            let shown = entry.shown();
            let encoded = self.chat.encode_sft(&entry.training(*format), &self.tokens(&shown));
            let encoded = encoded.map_err(|e| e.of(&entry.id))?;
            self.check(entry, &shown, &encoded.input_ids, 0)?;
            let positions = Positions::new(self.config, &encoded.input_ids, &self.grids(&shown))?;
            let (input_ids, labels) = (encoded.input_ids, encoded.labels);
            bar.one_more();
            Ok((Sample { id: entry.id.clone(), input_ids, labels, positions }, shown))
        };
        let examples = parallel::map(questions, example);
        bar.finish();
        let (samples, shown) = examples?.into_iter().unzip();
        Ok(Examples { samples, shown })
    }

    /// Checks that every prompt of `rounds` and its response fit.
    ///
    /// # Errors
    /// As [`prompt`](Self::prompt).
    fn check_prompts<'a>(&self, rounds: impl Iterator<Item = &'a Round>) -> Result<()> {
        let asks: Vec<(&Round, &Ask)> =
            rounds.flat_map(|round| round.asks.iter().map(move |ask| (round, ask))).collect();
        let bar = self.terminal.bar("prompts", asks.len());
        let checked = parallel::map(&asks, |(round, ask)| {
            let prompt = self.prompt(round, ask);
            bar.one_more();
            prompt.map(drop)
        });
        bar.finish();
        checked.map(drop)
    }

    /// The prompt of a question of `round`.
    ///
    /// # Errors
    /// Where it cannot be encoded, or does not fit with its response.
    pub fn prompt(&self, round: &Round, ask: &Ask) -> Result<Vec<u32>> {
        interrupt::check("the reading of the questions")?;
        let shown = round.view.shown(&ask.entry);
        let tokens = self.tokens(&shown);
        let input_ids = ask.encode(&round.view, self.recipe.eval.prompt, self.chat, &tokens);
        let input_ids = input_ids.map_err(|e| e.of(&ask.entry.id))?;
        self.check(&ask.entry, &shown, &input_ids, self.recipe.eval.max_new_tokens())?;
        Ok(input_ids)
    }

    /// Tokens of each of `shown`.
    pub fn tokens(&self, shown: &[Shown]) -> Vec<usize> {
        media_tokens(&self.config.vision, &self.grids(shown))
    }

    fn grids(&self, shown: &[Shown]) -> Vec<MediaGrid> {
        shown.iter().map(|shown| self.grids[&shown.medium]).collect()
    }

    /// Checks that the model has an embedding for each token of the question `entry`, beside which
    /// `shown` stands, and room for them and a response.
    fn check(
        &self,
        entry: &Entry,
        shown: &[Shown],
        input_ids: &[u32],
        response: usize,
    ) -> Result<()> {
        let id = &entry.id;
        let text = &self.config.text;
        let rows = text.vocab_size;
        if let Some(&token) = input_ids.iter().find(|token| **token as usize >= rows) {
            let text = self.chat.tokenizer.decode(&[token], false)?;
            return Err(Error::input(format!(
                "`{id}`: the token `{text}` has the id {token}, and the model's embedding {rows} \
                 rows"
            ))
            .help("resize the model's embedding for the tokens that were added to its tokenizer"));
        }
        let (tokens, most) = (input_ids.len() + response, text.max_position_embeddings);
        if tokens <= most {
            return Ok(());
        }
        let shorter = (input_ids.len() < most).then_some("lower eval.max_new_tokens");
        let smaller = smaller(shown.iter().map(|shown| &shown.medium));
        let ways = shorter.into_iter().chain(smaller).chain(["leave the question out"]);
        let ways = ways.collect::<Vec<_>>().join("; or ");
        Err(Error::input(format!("`{id}`: needs {tokens} tokens, the model takes {most}"))
            .help(format!("{ways}: nothing is cut off")))
    }
}

/// What is held back to validate, as samples.
pub fn held_back(recipe: &Recipe, validating: &[Entry]) -> Vec<(Entry, Format)> {
    Augment::default().samples(validating, &recipe.data.formats, 1).distinct
}

/// The grids of `shown`, in the folder `data`, as their headers have them, and the bytes of the
/// largest one's sampled frames, as decoded and as resized.
///
/// # Errors
/// The first file that cannot be read.
pub fn outlines(
    reader: &Reader,
    data: &Path,
    shown: &[Shown],
    terminal: &Terminal,
) -> Result<(Grids, [usize; 2])> {
    let media: BTreeSet<&Medium> = shown.iter().map(|shown| &shown.medium).collect();
    let media: Vec<&Medium> = media.into_iter().collect();
    reader.takes(&media)?;
    let bar = terminal.bar("headers", media.len());
    let outlines = parallel::map(&media, |medium| {
        interrupt::check("the reading of headers")?;
        let outline = reader.outline(data, medium);
        bar.one_more();
        outline.map_err(|e| of_many(e, data, medium.kind()))
    });
    bar.finish();
    let (grids, bytes): (Vec<MediaGrid>, Vec<[usize; 2]>) = outlines?.into_iter().unzip();
    let largest = [0, 1].map(|i| bytes.iter().map(|bytes| bytes[i]).max().unwrap_or(0));
    Ok((media.into_iter().cloned().zip(grids).collect(), largest))
}

/// What makes `media` take fewer tokens, if there are any.
pub fn smaller<'a>(media: impl IntoIterator<Item = &'a Medium>) -> Option<&'static str> {
    let kinds: BTreeSet<Kind> = media.into_iter().map(Medium::kind).collect();
    match (kinds.contains(&Kind::Image), kinds.contains(&Kind::Video)) {
        (false, false) => None,
        (false, true) => Some("lower video.max_pixels or video.max_frames"),
        (true, false) => Some("lower image.max_pixels"),
        (true, true) => Some("lower video.max_pixels, video.max_frames or image.max_pixels"),
    }
}
