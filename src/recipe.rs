//! The recipe: a TOML file → [`Recipe`], checked before any work starts.
//!
//! Only `model.path` and `data.path` are required. Defaults are LLaMA-Factory's where the paper
//! is silent; each says its source. An error names file, line and column, and a fix.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::data::split::By;
use crate::data::video::Sampling;
use crate::data::vlm4d::{Format, PromptStyle};
use crate::error::{Error, Result};
use crate::files::io_reason;

/// A whole experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Seed of the split, of the order of samples, of new adapters and of dropout.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// The checkpoint.
    pub model: Model,
    /// The questions and videos.
    pub data: Data,
    /// How frames are taken from a video.
    #[serde(default)]
    pub video: Video,
    /// The adapter; full fine-tuning where left out.
    pub lora: Option<Lora>,
    /// The training loop.
    #[serde(default)]
    pub train: Train,
    /// The evaluation.
    #[serde(default)]
    pub eval: Eval,
    /// Written into a run's `recipe.toml`: what it was made from. Ignored when read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// A checkpoint folder in hub layout.
    pub path: String,
    /// Type of weights and activations.
    #[serde(default)]
    pub dtype: Dtype,
    /// `auto`, `cpu` or `cuda:N`.
    #[serde(default = "auto")]
    pub device: String,
}

/// Type of the frozen weights and of activations; adapters are always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bf16 on a GPU, f32 on the CPU.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits with f32's range.
    Bf16,
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// A folder in VLM4D's layout, or one with a `dataset_info.json`.
    pub path: String,
    /// What to train on: `["real"]` is R, `["synthetic"]` S, both R+S; data set names of a
    /// `dataset_info.json`.
    #[serde(default = "default_subsets")]
    pub train: Vec<String>,
    /// What to test on. Left out: `["real"]` for VLM4D's subsets, as the paper does, so that R, S
    /// and R+S share their test questions; else what is trained on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Formats of the training samples.
    #[serde(default = "both_formats")]
    pub formats: Vec<Format>,
    /// Train, validation and test shares.
    #[serde(default)]
    pub split: Split,
}

/// `data.split`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Split {
    /// `video`: no video crosses; `question`: as the paper.
    pub by: By,
    /// Share of the questions that is tested (paper: 0.2).
    pub test: f64,
    /// Share of the questions that validates, taken from training.
    pub val: f64,
}

/// `[video]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Video {
    /// Which tool's rule chooses the frames.
    pub sampling: Sampling,
    /// Frames per second of video.
    pub fps: f64,
    /// Most frames of one video.
    pub max_frames: usize,
    /// Most pixels of one frame, after resizing.
    pub max_pixels: usize,
    /// Fewest pixels of one frame, after resizing; the sampling rule's own default where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_pixels: Option<usize>,
}

/// `[lora]`: as PEFT's `LoraConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Rank (LLaMA-Factory: 8).
    pub r: usize,
    /// Numerator of the scale `alpha / r` (LLaMA-Factory: 2r); `2 r` where left out.
    pub alpha: Option<f64>,
    /// Share of the adapter's inputs dropped while training (LLaMA-Factory: 0).
    pub dropout: f64,
    /// `all-linear` of the language model, a list of names, or a regular expression.
    pub target_modules: TargetModules,
    /// An adapter in PEFT's format to start from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
}

/// Which layers get an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// `all-linear`, or a regular expression that matches a layer's whole name.
    Pattern(String),
    /// Last parts of names within the language model.
    Names(Vec<String>),
}

/// `[train]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// Passes over the training samples (LLaMA-Factory: 3).
    pub epochs: f64,
    /// Stops after this many optimiser steps, whatever `epochs` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<usize>,
    /// Samples per micro-batch (LLaMA-Factory's example: 1).
    pub batch_size: usize,
    /// Micro-batches per optimiser step (LLaMA-Factory's example: 8).
    pub grad_accum: usize,
    /// Highest learning rate (LLaMA-Factory's example: 1e-4).
    pub lr: f64,
    /// Its course after the warm-up (LLaMA-Factory's example: cosine).
    pub schedule: Schedule,
    /// Share of the steps in which the rate rises from 0 (LLaMA-Factory's example: 0.1).
    pub warmup_ratio: f64,
    /// The same as a number of steps; wins over `warmup_ratio`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<usize>,
    /// AdamW's decoupled weight decay (LLaMA-Factory: 0).
    pub weight_decay: f64,
    /// Largest global norm of the gradient (LLaMA-Factory: 1).
    pub max_grad_norm: f64,
    /// How tokens weigh in the loss.
    pub loss: Loss,
    /// Whether each epoch has its own order of samples.
    pub shuffle: bool,
    /// Recomputes each block in the backward pass instead of keeping its activations.
    pub recompute: bool,
    /// Steps between checkpoints; one per epoch where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_steps: Option<usize>,
}

/// Course of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Half a cosine, down to 0.
    Cosine,
    /// A line, down to 0.
    Linear,
    /// Stays.
    Constant,
}

/// How tokens weigh in the loss of one optimiser step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Every sample alike: mean over its tokens, then over the step's samples.
    Sample,
    /// Every token of the step alike.
    Token,
    /// As LLaMA-Factory: mean over the tokens of a micro-batch, then over the micro-batches.
    MicroBatch,
}

/// `[eval]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Eval {
    /// What is measured.
    pub formats: Vec<Format>,
    /// Direct output (`do`) or chain of thought (`cot`).
    pub prompt: PromptStyle,
    /// Controls beside the accuracy.
    pub controls: Vec<Control>,
    /// Longest response, in tokens; 32 for direct output, 1,024 (VLM4D) for chain of thought.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
    /// Who says whether a freeform answer is right.
    pub judge: Judge,
}

/// An evaluation that shows what the accuracy rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// The same questions without their video.
    NoVideo,
}

/// `eval.judge`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judge {
    /// `rules`.
    pub kind: JudgeKind,
}

/// Who judges freeform answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JudgeKind {
    /// Normal forms of both answers are compared.
    Rules,
}

/// What a run was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Version of this program.
    pub version: String,
    /// Device that ran it.
    pub device: String,
    /// SHA-256 over the checkpoint's files, names and contents.
    pub model_sha256: String,
    /// SHA-256 over the question files.
    pub data_sha256: String,
}

fn default_seed() -> u64 {
    42 // LLaMA-Factory's (and transformers') default
}

fn auto() -> String {
    "auto".into()
}

fn default_subsets() -> Vec<String> {
    vec!["real".into()]
}

fn both_formats() -> Vec<Format> {
    vec![Format::Mc, Format::Ff]
}

impl Default for Split {
    fn default() -> Self {
        Self { by: By::Video, test: 0.2, val: 0.0 }
    }
}

impl Default for Video {
    fn default() -> Self {
        // 2 fps: all three tools. 64 frames: VLM4D's evaluation. 200,704 = 256 tokens of 28 × 28.
        Self {
            sampling: Sampling::Qwen,
            fps: 2.0,
            max_frames: 64,
            max_pixels: 200_704,
            min_pixels: None,
        }
    }
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            r: 8,
            alpha: None,
            dropout: 0.0,
            target_modules: TargetModules::Pattern("all-linear".into()),
            from: None,
        }
    }
}

impl Default for Train {
    fn default() -> Self {
        Self {
            epochs: 3.0,
            max_steps: None,
            batch_size: 1,
            grad_accum: 8,
            lr: 1e-4,
            schedule: Schedule::Cosine,
            warmup_ratio: 0.1,
            warmup_steps: None,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            loss: Loss::Sample,
            shuffle: true,
            recompute: true,
            save_steps: None,
        }
    }
}

impl Default for Eval {
    fn default() -> Self {
        Self {
            formats: both_formats(),
            prompt: PromptStyle::Do,
            controls: vec![Control::NoVideo],
            max_new_tokens: None,
            judge: Judge { kind: JudgeKind::Rules },
        }
    }
}

impl Lora {
    /// `alpha`, or its default 2r.
    pub fn alpha(&self) -> f64 {
        self.alpha.unwrap_or(2.0 * self.r as f64)
    }
}

impl Eval {
    /// `max_new_tokens`, or the prompt style's default.
    pub fn max_new_tokens(&self) -> usize {
        self.max_new_tokens.unwrap_or(match self.prompt {
            PromptStyle::Do => 32,
            PromptStyle::Cot => 1024,
        })
    }
}

impl Data {
    /// What is tested on: `test`, or its default.
    pub fn test_subsets(&self) -> Vec<String> {
        let vlm4d = self.train.iter().all(|s| s == "real" || s == "synthetic");
        match (self.test.is_empty(), vlm4d) {
            (false, _) => self.test.clone(),
            (true, true) => vec!["real".into()],
            (true, false) => self.train.clone(),
        }
    }

    /// Every subset that the run touches, trained ones first.
    pub fn subsets(&self) -> Vec<String> {
        let mut all = self.train.clone();
        all.extend(self.test_subsets().into_iter().filter(|s| !self.train.contains(s)));
        all
    }
}

impl Recipe {
    /// Reads and checks a recipe; paths in it are relative to the working directory.
    ///
    /// # Errors
    /// `path:line:col: what` for anything that is not as it should be.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::input(format!("{}: {}", path.display(), io_reason(&e)))
                .help("the first argument is a recipe, for example recipes/quickstart/real.toml")
        })?;
        Self::from_text(&text, &path.display().to_string())
    }

    /// Reads and checks a recipe's text; `name` stands before every error.
    ///
    /// # Errors
    /// As [`Recipe::from_file`].
    pub fn from_text(text: &str, name: &str) -> Result<Self> {
        let source = Source { text, name };
        let recipe: Self = toml::from_str(text).map_err(|e| source.parse_error(&e))?;
        let mut checks = recipe.data.checks();
        checks.extend(recipe.model.checks());
        checks.extend(recipe.video.checks());
        checks.extend(recipe.train.checks());
        checks.extend(recipe.eval.checks());
        checks.extend(recipe.lora.iter().flat_map(Lora::checks));
        match checks.into_iter().find(|check| !check.ok) {
            None => Ok(recipe),
            Some(wrong) => Err(source.error_at_key(wrong.keys, &wrong.what, wrong.help)),
        }
    }

    /// The recipe as TOML with every default written out.
    ///
    /// # Errors
    /// Never on a recipe that was read.
    pub fn to_toml(&self) -> Result<String> {
        let mut resolved = self.clone();
        if let Some(lora) = &mut resolved.lora {
            lora.alpha = Some(lora.alpha());
        }
        resolved.data.test = self.data.test_subsets();
        resolved.eval.max_new_tokens = Some(self.eval.max_new_tokens());
        toml::to_string(&resolved).map_err(|e| Error::run(format!("cannot write the recipe: {e}")))
    }
}

/// Whether a value can be; where it stands, what is wrong with it and how to fix it.
struct Check {
    ok: bool,
    keys: &'static [&'static str],
    what: String,
    help: &'static str,
}

fn check(
    ok: bool,
    keys: &'static [&'static str],
    value: impl Display,
    help: &'static str,
) -> Check {
    let key = keys.last().unwrap_or(&"");
    Check { ok, keys, what: format!("`{key}` is {value}"), help }
}

const NOT_HERE: &str =
    "the hub cannot be reached from here yet: download it (`hf download`) and give the folder";
const FORMATS: &str = "[\"mc\", \"ff\"], or one of them";
const SHARE: &str = "a share of the questions: at least 0, and together less than 1";
const COUNT: &str = "at least 1";
const POSITIVE: &str = "more than 0";

impl Model {
    fn checks(&self) -> Vec<Check> {
        vec![check(!self.path.starts_with("hf://"), &["model", "path"], &self.path, NOT_HERE)]
    }
}

impl Data {
    fn checks(&self) -> Vec<Check> {
        let split = &self.split;
        let (test, val) = (split.test, split.val);
        let share = |share: f64| (0.0..1.0).contains(&share) && test + val < 1.0;
        vec![
            check(!self.path.starts_with("hf://"), &["data", "path"], &self.path, NOT_HERE),
            check(!self.train.is_empty(), &["data", "train"], "empty", "for example [\"real\"]"),
            check(!self.formats.is_empty(), &["data", "formats"], "empty", FORMATS),
            check(share(test), &["data", "split", "test"], test, SHARE),
            check(share(val), &["data", "split", "val"], val, SHARE),
        ]
    }
}

impl Video {
    fn checks(&self) -> Vec<Check> {
        let least = self.min_pixels.unwrap_or(0).max(28 * 28);
        vec![
            check(positive(self.fps), &["video", "fps"], self.fps, POSITIVE),
            check(self.max_frames >= 1, &["video", "max_frames"], self.max_frames, COUNT),
            check(
                self.max_pixels >= least,
                &["video", "max_pixels"],
                self.max_pixels,
                "at least 784, one token of 28 × 28, and at least `min_pixels`",
            ),
        ]
    }
}

impl Lora {
    fn checks(&self) -> Vec<Check> {
        let dropout = (0.0..1.0).contains(&self.dropout);
        vec![
            check(self.r >= 1, &["lora", "r"], self.r, COUNT),
            check(positive(self.alpha()), &["lora", "alpha"], self.alpha(), POSITIVE),
            check(dropout, &["lora", "dropout"], self.dropout, "at least 0 and less than 1"),
        ]
    }
}

impl Train {
    fn checks(&self) -> Vec<Check> {
        let not_negative = |x: f64| x >= 0.0 && x.is_finite();
        let ratio = (0.0..=1.0).contains(&self.warmup_ratio);
        vec![
            check(positive(self.epochs), &["train", "epochs"], self.epochs, POSITIVE),
            check(self.max_steps != Some(0), &["train", "max_steps"], 0, COUNT),
            check(self.batch_size >= 1, &["train", "batch_size"], self.batch_size, COUNT),
            check(self.grad_accum >= 1, &["train", "grad_accum"], self.grad_accum, COUNT),
            check(not_negative(self.lr), &["train", "lr"], self.lr, "not negative"),
            check(
                not_negative(self.weight_decay),
                &["train", "weight_decay"],
                self.weight_decay,
                "not negative",
            ),
            check(ratio, &["train", "warmup_ratio"], self.warmup_ratio, "between 0 and 1"),
            check(
                positive(self.max_grad_norm),
                &["train", "max_grad_norm"],
                self.max_grad_norm,
                POSITIVE,
            ),
            check(self.save_steps != Some(0), &["train", "save_steps"], 0, COUNT),
        ]
    }
}

impl Eval {
    fn checks(&self) -> Vec<Check> {
        vec![
            check(!self.formats.is_empty(), &["eval", "formats"], "empty", FORMATS),
            check(self.max_new_tokens != Some(0), &["eval", "max_new_tokens"], 0, COUNT),
        ]
    }
}

fn positive(x: f64) -> bool {
    x > 0.0 && x.is_finite()
}

/// A recipe's text and name, for errors.
struct Source<'a> {
    text: &'a str,
    name: &'a str,
}

impl Source<'_> {
    fn at(&self, offset: usize, what: &str) -> Error {
        let before = &self.text[..offset.min(self.text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        Error::input(format!("{}:{line}:{column}: {what}", self.name))
    }

    fn parse_error(&self, error: &toml::de::Error) -> Error {
        let message = error.message();
        let offset = error.span().map_or(0, |span| span.start);
        let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        if message.starts_with("unknown field") || message.starts_with("unknown variant") {
            let kind = if message.starts_with("unknown field") { "field" } else { "value" };
            let error = self.at(offset, &format!("unknown {kind} `{}`", quoted[0]));
            return error.help(suggestion(quoted[0], &quoted[1..]));
        }
        if let (true, Some(field)) = (message.starts_with("missing field"), quoted.first()) {
            let table = if *field == "path" { "model.path and data.path are required" } else { "" };
            let help =
                if table.is_empty() { format!("add [{field}] with `path`") } else { table.into() };
            return self.at(offset, &format!("`{field}` is missing")).help(help);
        }
        self.at(offset, &in_plain_words(message))
    }

    /// Points at the deepest of `keys` that the text has.
    fn error_at_key(&self, keys: &[&str], what: &str, help: &str) -> Error {
        let root = DeTable::parse(self.text).ok();
        let mut offset = 0;
        let mut table = root.as_ref().map(Spanned::get_ref);
        for key in keys {
            let Some((name, value)) =
                table.and_then(|t| t.iter().find(|(k, _)| k.get_ref() == key))
            else {
                break;
            };
            offset = name.span().start;
            table = match value.get_ref() {
                DeValue::Table(inner) => Some(inner),
                _ => None,
            };
        }
        self.at(offset, what).help(help)
    }
}

/// The nearest of `options`, or all of them.
fn suggestion(word: &str, options: &[&str]) -> String {
    let nearest = options.iter().min_by_key(|option| strsim::damerau_levenshtein(word, option));
    match nearest {
        Some(option) if strsim::damerau_levenshtein(word, option) <= 1 + word.len() / 3 => {
            format!("did you mean `{option}`?")
        }
        _ => format!(
            "one of {}",
            options.iter().map(|o| format!("`{o}`")).collect::<Vec<_>>().join(", ")
        ),
    }
}

/// The parser's message without the names of types in the program.
fn in_plain_words(message: &str) -> String {
    let words = [
        (
            "data did not match any variant of untagged enum TargetModules",
            "`target_modules` must be \"all-linear\", a list of names or a regular expression",
        ),
        ("invalid type: ", "not "),
        ("invalid value: ", "not "),
        ("expected a string", "a text was expected"),
        ("expected a sequence", "a list was expected"),
        ("expected a boolean", "true or false was expected"),
        ("expected f64", "a number was expected"),
        ("expected usize", "a whole number of at least 0 was expected"),
        ("expected u64", "a whole number of at least 0 was expected"),
        ("floating point", "the number"),
        ("integer", "the whole number"),
        ("boolean", "the value"),
        ("string \"", "the text \""),
        ("sequence", "a list"),
        ("map", "a table"),
    ];
    let mut text = message.lines().collect::<Vec<_>>().join("; ");
    for (theirs, ours) in words {
        text = text.replace(theirs, ours);
    }
    match text.split_once("expected struct ") {
        Some((before, _)) => format!("{before}a table was expected"),
        None => text,
    }
}
