//! The recipe: a TOML file → [`Recipe`], checked before any work starts.
//!
//! Only `model.path` and `data.path` are required. Defaults are LLaMA-Factory's where the paper
//! is silent; each says its source. An error names file, line and column, and a fix.

mod check;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::check::Source;
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
    /// Whether each epoch has its own order of a training question's choices (LLaMA-Factory and
    /// the paper: no).
    #[serde(default)]
    pub shuffle_choices: bool,
    /// Probability with which a training question is mirrored in an epoch, where it can be: frames
    /// flipped, left and right exchanged in its texts (LLaMA-Factory and the paper: 0).
    #[serde(default)]
    pub mirror: f64,
    /// Train, validation and test shares.
    #[serde(default)]
    pub split: Split,
    /// Folder in which sampled frames and vision features are kept for this run and others.
    #[serde(default = "default_cache")]
    pub cache: PathBuf,
    /// Most GiB that it may hold: what was not used for the longest time goes; 0 keeps nothing on
    /// disk.
    #[serde(default = "default_cache_gib")]
    pub cache_gib: f64,
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
    /// Seed of the split; the recipe's `seed` where left out. Given, it lets several seeds of the
    /// training be tested on the same questions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// A `split.json` to use in place of a drawn one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
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
    /// Whether frames are turned as the video's rotation says. `PyAV`, and with it LLaMA-Factory and
    /// torchvision, does not; qwen-vl-utils with decord does.
    pub upright: bool,
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
    /// Scale `alpha / √r` in place of `alpha / r` (PEFT: false).
    pub use_rslora: bool,
    /// DoRA: a trained length for each output of the updated weights (PEFT: false).
    pub use_dora: bool,
    /// `all-linear` of the parts in `scope`, a list of names in them, or a regular expression over
    /// whole names.
    pub target_modules: TargetModules,
    /// Parts of the model that get adapters; `["language"]` where left out (LLaMA-Factory: with the
    /// vision tower and the merger frozen).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Vec<Part>>,
    /// LoRA+: learning rate of B (and of DoRA's lengths) over that of A
    /// (PEFT: `loraplus_lr_ratio`); 1 where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plus_ratio: Option<f64>,
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
    /// Last parts of names.
    Names(Vec<String>),
}

impl TargetModules {
    /// Whether it is a regular expression, which names whole layers by itself.
    pub fn is_regex(&self) -> bool {
        matches!(self, Self::Pattern(pattern) if pattern != "all-linear")
    }
}

/// A part of the model that can be frozen or trained by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Embedding, decoder layers, final norm and `lm_head`.
    Language,
    /// Patch embedding and blocks of the vision tower.
    Vision,
    /// The layers that turn vision features into the language model's tokens.
    Merger,
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
    /// The same for what is trained in the vision tower; `lr` where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vision_lr: Option<f64>,
    /// The same for what is trained in the merger; `lr` where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merger_lr: Option<f64>,
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
    /// Full fine-tuning: the parts that stay as they are; `["vision", "merger"]` where left out
    /// (LLaMA-Factory: `freeze_vision_tower` and `freeze_multi_modal_projector`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Vec<Part>>,
    /// Steps between checkpoints; one per epoch where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_steps: Option<usize>,
    /// Newest checkpoints that are kept, beside the best (LLaMA-Factory: `save_total_limit`).
    pub keep_last: usize,
    /// Steps between validations, where `data.split.val` holds questions back; one per epoch where
    /// left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_steps: Option<usize>,
    /// What makes a validated checkpoint the best, which is the run's result; `accuracy` where left
    /// out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
    /// Stops after so many validations in a row that are no better; never where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
}

/// What makes a checkpoint the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Best {
    /// The highest mean of the formats' accuracies; of equal ones the smallest loss.
    Accuracy,
    /// The smallest loss.
    Loss,
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
    /// Share of the training questions that is asked too, to see what was memorised.
    pub train_share: f64,
    /// Whether multiple choice is asked under every rotation of its choices too (MMBench's
    /// CircularEval).
    pub circular: bool,
    /// What decides a multiple-choice answer.
    pub scoring: Scoring,
    /// Most prompts that are answered at once.
    pub batch_size: usize,
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
    /// The video's frames in another order, drawn from the seed.
    Shuffled,
    /// The video backwards.
    Reversed,
    /// Another test video, of the same source where there is one.
    WrongVideo,
}

/// What decides a multiple-choice answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scoring {
    /// The response, graded by rules.
    Text,
    /// The letter that is most probable as the response's first token; nothing is generated.
    Logprob,
}

/// `eval.judge`: who decides freeform answers that the rules do not accept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Judge {
    /// `rules`, `openai` or `base`.
    pub kind: JudgeKind,
    /// Where an OpenAI-compatible endpoint starts, before `/chat/completions`; OpenAI's own where
    /// left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Which of the endpoint's models judges.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Environment variable that holds the endpoint's key.
    pub key_env: String,
    /// Most requests at once.
    pub concurrency: usize,
    /// How often a request that failed is sent again, after 1, 2, 4, … s.
    pub max_retries: usize,
    /// Seconds to wait for an answer.
    pub timeout_s: f64,
    /// Price of a million tokens sent, to state what judging cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_price: Option<f64>,
    /// Price of a million tokens answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_price: Option<f64>,
    /// Folder that keeps verdicts, for this run and the next.
    pub cache: PathBuf,
}

/// Who judges freeform answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JudgeKind {
    /// Normal forms of both answers are compared; nobody else is asked.
    Rules,
    /// A model behind an OpenAI-compatible endpoint.
    Openai,
    /// The loaded checkpoint, without its adapter.
    Base,
}

impl Default for Judge {
    fn default() -> Self {
        Self {
            kind: JudgeKind::Rules,
            url: None,
            model: None,
            key_env: "OPENAI_API_KEY".into(),
            concurrency: 8,
            max_retries: 6,
            timeout_s: 120.0,
            input_price: None,
            output_price: None,
            cache: "data/cache/judge".into(),
        }
    }
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
    /// SHA-256 over the files of the adapter that an evaluation alone was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter_sha256: Option<String>,
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

fn default_cache() -> PathBuf {
    "data/cache".into()
}

/// VLM4D's 1,000 videos at 2 fps and 200,704 pixels come to about 15 GiB for a 7B model.
fn default_cache_gib() -> f64 {
    20.0
}

fn both_formats() -> Vec<Format> {
    vec![Format::Mc, Format::Ff]
}

impl Default for Split {
    fn default() -> Self {
        Self { by: By::Video, test: 0.2, val: 0.0, seed: None, file: None }
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
            upright: false,
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
            use_rslora: false,
            use_dora: false,
            target_modules: TargetModules::Pattern("all-linear".into()),
            scope: None,
            plus_ratio: None,
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
            vision_lr: None,
            merger_lr: None,
            schedule: Schedule::Cosine,
            warmup_ratio: 0.1,
            warmup_steps: None,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            loss: Loss::Sample,
            shuffle: true,
            recompute: true,
            freeze: None,
            save_steps: None,
            keep_last: 1,
            eval_steps: None,
            best: None,
            patience: None,
        }
    }
}

impl Default for Eval {
    fn default() -> Self {
        Self {
            formats: both_formats(),
            prompt: PromptStyle::Do,
            controls: vec![Control::NoVideo],
            train_share: 0.0,
            circular: false,
            scoring: Scoring::Text,
            batch_size: 16,
            max_new_tokens: None,
            judge: Judge::default(),
        }
    }
}

impl Lora {
    /// `alpha`, or its default 2r.
    pub fn alpha(&self) -> f64 {
        self.alpha.unwrap_or(2.0 * self.r as f64)
    }

    /// `scope`, or its default, the language model.
    pub fn scope(&self) -> Vec<Part> {
        self.scope.clone().unwrap_or_else(|| vec![Part::Language])
    }
}

impl Train {
    /// What full fine-tuning leaves as it is: `freeze`, or its default.
    pub fn frozen(&self) -> Vec<Part> {
        self.freeze.clone().unwrap_or_else(|| vec![Part::Vision, Part::Merger])
    }

    /// What makes a checkpoint the best: `best`, or its default.
    pub fn best(&self) -> Best {
        self.best.unwrap_or(Best::Accuracy)
    }
}

impl Model {
    /// The checkpoint's name: the last part of its path, or of the hub's repository.
    pub fn name(&self) -> String {
        let hub = self.path.strip_prefix("hf://").map(|id| id.split('@').next().unwrap_or(id));
        let path = hub.unwrap_or(&self.path);
        // The hub's cache: `models--ORG--NAME/snapshots/REVISION`.
        let cached = path.split('/').find_map(|part| part.strip_prefix("models--"));
        let name = match cached {
            Some(id) => id.rsplit("--").next(),
            None => path.trim_end_matches('/').rsplit('/').next(),
        };
        name.unwrap_or(path).to_owned()
    }
}

impl Control {
    /// As in the recipe, and in the name of its file of predictions.
    pub fn name(self) -> String {
        match self {
            Self::NoVideo => "no_video",
            Self::Shuffled => "shuffled",
            Self::Reversed => "reversed",
            Self::WrongVideo => "wrong_video",
        }
        .into()
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

impl Split {
    /// How the split was made: `split by video`.
    pub fn told(&self) -> String {
        match (&self.file, self.by) {
            (Some(file), _) => format!("split of {}", file.display()),
            (None, By::Video) => "split by video".into(),
            (None, By::Question) => "split by question".into(),
        }
    }
}

impl Data {
    /// `cache_gib` in bytes.
    pub fn cache_bytes(&self) -> u64 {
        (self.cache_gib * f64::from(1 << 30)) as u64
    }

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
        source.check(&recipe)?;
        Ok(recipe)
    }

    /// Seed of the split: its own, else the recipe's.
    pub fn split_seed(&self) -> u64 {
        self.data.split.seed.unwrap_or(self.seed)
    }

    /// The recipe as TOML with every default written out.
    ///
    /// # Errors
    /// Never on a recipe that was read.
    pub fn to_toml(&self) -> Result<String> {
        let mut resolved = self.clone();
        if let Some(lora) = &mut resolved.lora {
            lora.alpha = Some(lora.alpha());
            if !lora.target_modules.is_regex() {
                lora.scope = Some(lora.scope());
            }
        }
        if self.lora.is_none() {
            resolved.train.freeze = Some(self.train.frozen());
        }
        if self.data.split.val > 0.0 {
            resolved.train.best = Some(self.train.best());
        }
        resolved.data.test = self.data.test_subsets();
        if resolved.data.split.file.is_none() {
            resolved.data.split.seed = Some(self.split_seed());
        }
        resolved.eval.max_new_tokens = Some(self.eval.max_new_tokens());
        toml::to_string(&resolved).map_err(|e| Error::run(format!("cannot write the recipe: {e}")))
    }
}
