//! What a recipe's values may be.

use std::fmt::Display;

use super::source::Source;
use super::{
    Data, Eval, Image, Judge, JudgeKind, Lora, MaxQuestions, Model, Part, Recipe, Scoring, Split,
    Train, Video,
};
use crate::data::hub::{Kind, Repo};
use crate::data::vlm4d::{Format, PromptStyle};
use crate::error::{Error, Result};

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

const REPOSITORY: &str =
    "a folder, or on the hub hf://ORG/NAME (a model) or hf://datasets/ORG/NAME, with @REVISION";
const FORMATS: &str = "[\"mc\", \"ff\"], or one of them";
const SHARE: &str = "a share of the questions: at least 0, and together less than 1";
const HOLD_BACK: &str = "for example data.split = { val = 0.1 }";
const COUNT: &str = "at least 1";
const MOST: usize = 1_000_000;
const COUNT_UP_TO: &str = "at least 1, and a million at most";
const POSITIVE: &str = "more than 0";
const ONCE: &str = "name each once";
const GPUS: &str = "several devices are GPUs, for example [\"cuda:0\", \"cuda:1\"]";

impl Model {
    fn checks(&self) -> Vec<Check> {
        vec![repository(&self.path, Kind::Model, &["model", "path"]), self.device_check()]
    }

    /// Several devices are GPUs.
    fn device_check(&self) -> Check {
        const KEYS: &[&str] = &["model", "device"];
        let names = self.device.names();
        let is_gpu = |name: &String| {
            let index = name.strip_prefix("cuda:").and_then(|index| index.parse::<u16>().ok());
            index.is_some_and(|index| *name == format!("cuda:{index}"))
        };
        match names.iter().find(|name| !is_gpu(name)) {
            _ if names.is_empty() => check(false, KEYS, "empty", "\"auto\", or the names of GPUs"),
            Some(name) if names.len() > 1 => {
                check(false, KEYS, format!("a list with `{name}`"), GPUS)
            }
            _ => once(names, KEYS),
        }
    }
}

impl Data {
    fn checks(&self) -> Vec<Check> {
        let split = &self.split;
        let (test, val) = (split.test, split.val);
        let share = |share: f64| (0.0..1.0).contains(&share) && test + val < 1.0;
        vec![
            repository(&self.path, Kind::Dataset, &["data", "path"]),
            check(!self.train.is_empty(), &["data", "train"], "empty", "for example [\"real\"]"),
            check(!self.formats.is_empty(), &["data", "formats"], "empty", FORMATS),
            once(&self.train, &["data", "train"]),
            once(&self.test, &["data", "test"]),
            once(&self.formats, &["data", "formats"]),
            self.limit_check(),
            check(
                (0.0..=1.0).contains(&self.mirror),
                &["data", "mirror"],
                self.mirror,
                "a probability between 0 and 1, for example 0.5",
            ),
            check(
                split.file.is_none() || Split { file: None, ..split.clone() } == Split::default(),
                &["data", "split", "file"],
                "given beside `by`, `test`, `val` or `seed`",
                "the file alone says which question is in which part",
            ),
            check(share(test), &["data", "split", "test"], test, SHARE),
            check(share(val), &["data", "split", "val"], val, SHARE),
            check(
                self.cache_gib >= 0.0 && self.cache_gib.is_finite(),
                &["data", "cache_gib"],
                self.cache_gib,
                "GiB on disk, or 0 to keep nothing",
            ),
        ]
    }

    fn limit_check(&self) -> Check {
        const KEYS: &[&str] = &["data", "max_questions"];
        let by_subset = match &self.max_questions {
            Some(MaxQuestions::Of(limits)) => Some(limits),
            _ => None,
        };
        let mut named = by_subset.into_iter().flat_map(|limits| limits.keys());
        if let Some(name) = named.find(|name| !self.train.contains(name)) {
            let what = format!("given for `{name}`, and `train` is {:?}", self.train);
            return check(false, KEYS, what, "name subsets that are trained on");
        }
        let limit = |subset| self.max_questions.as_ref()?.of(subset);
        let is_zero = self.train.iter().any(|subset| limit(subset) == Some(0));
        check(!is_zero, KEYS, 0, "at least 1; leave it out for no limit")
    }
}

impl Video {
    fn checks(&self) -> Vec<Check> {
        vec![
            check(positive(self.fps), &["video", "fps"], self.fps, POSITIVE),
            check(self.max_frames >= 1, &["video", "max_frames"], self.max_frames, COUNT),
            pixels(&["video", "max_pixels"], self.max_pixels, self.min_pixels),
        ]
    }
}

impl Image {
    fn check(&self) -> Check {
        pixels(&["image", "max_pixels"], self.max_pixels, self.min_pixels)
    }
}

fn pixels(keys: &'static [&'static str], max_pixels: usize, min_pixels: Option<usize>) -> Check {
    let ok = max_pixels >= min_pixels.unwrap_or(0).max(28 * 28);
    check(ok, keys, max_pixels, "at least 784, one token of 28 × 28, and at least `min_pixels`")
}

impl Lora {
    fn checks(&self) -> Vec<Check> {
        let dropout = (0.0..1.0).contains(&self.dropout);
        vec![
            check((1..=MOST).contains(&self.r), &["lora", "r"], self.r, COUNT_UP_TO),
            check(positive(self.alpha()), &["lora", "alpha"], self.alpha(), POSITIVE),
            check(dropout, &["lora", "dropout"], self.dropout, "at least 0 and less than 1"),
            check(
                self.plus_ratio.is_none_or(positive),
                &["lora", "plus_ratio"],
                self.plus_ratio.unwrap_or_default(),
                POSITIVE,
            ),
            check(
                self.scope.as_ref().is_none_or(|scope| !scope.is_empty()),
                &["lora", "scope"],
                "empty",
                "[\"language\"], and vision, merger where wanted",
            ),
            once(self.scope.as_deref().unwrap_or_default(), &["lora", "scope"]),
            check(
                self.scope.is_none() || !self.target_modules.is_regex(),
                &["lora", "scope"],
                "set, and `target_modules` is a regular expression",
                "leave `scope` out: the regular expression names whole layers",
            ),
        ]
    }
}

impl Train {
    fn checks(&self) -> Vec<Check> {
        let not_negative = |x: f64| x >= 0.0 && x.is_finite();
        let ratio = (0.0..=1.0).contains(&self.warmup_ratio);
        vec![
            check(
                positive(self.epochs) && self.epochs <= MOST as f64,
                &["train", "epochs"],
                self.epochs,
                "more than 0, and a million at most",
            ),
            check(self.max_steps != Some(0), &["train", "max_steps"], 0, COUNT),
            check(
                (1..=MOST).contains(&self.batch_size),
                &["train", "batch_size"],
                self.batch_size,
                COUNT_UP_TO,
            ),
            check(
                (1..=MOST).contains(&self.grad_accum),
                &["train", "grad_accum"],
                self.grad_accum,
                COUNT_UP_TO,
            ),
            check(not_negative(self.lr), &["train", "lr"], self.lr, "not negative"),
            check(
                self.vision_lr.is_none_or(not_negative),
                &["train", "vision_lr"],
                self.vision_lr.unwrap_or_default(),
                "not negative",
            ),
            check(
                self.merger_lr.is_none_or(not_negative),
                &["train", "merger_lr"],
                self.merger_lr.unwrap_or_default(),
                "not negative",
            ),
            check(
                not_negative(self.weight_decay),
                &["train", "weight_decay"],
                self.weight_decay,
                "not negative",
            ),
            check(ratio, &["train", "warmup_ratio"], self.warmup_ratio, "between 0 and 1"),
            check(
                not_negative(self.max_grad_norm),
                &["train", "max_grad_norm"],
                self.max_grad_norm,
                "not negative; 0 clips nothing",
            ),
            check(self.save_steps != Some(0), &["train", "save_steps"], 0, COUNT),
            check(self.keep_last >= 1, &["train", "keep_last"], self.keep_last, COUNT),
            check(self.eval_steps != Some(0), &["train", "eval_steps"], 0, COUNT),
            check(self.patience != Some(0), &["train", "patience"], 0, COUNT),
            once(self.freeze.as_deref().unwrap_or_default(), &["train", "freeze"]),
        ]
    }
}

impl Recipe {
    fn quantize_check(&self) -> Check {
        check(
            self.model.quantize.is_none() || self.lora.is_some(),
            &["model", "quantize"],
            "set, and there is no [lora]",
            "weights of four bits are not trained: add [lora], or leave quantize out",
        )
    }

    fn freeze_check(&self) -> Check {
        let all = [Part::Language, Part::Vision, Part::Merger];
        let frozen = self.train.frozen();
        let (ok, what, help) = match (&self.lora, &self.train.freeze) {
            (Some(_), Some(_)) => (
                false,
                "set, and so is [lora]",
                "leave it out: with [lora] only the adapter is trained",
            ),
            _ => (
                self.lora.is_some() || !all.iter().all(|part| frozen.contains(part)),
                "the whole model",
                "nothing would be trained: leave one of language, vision, merger out",
            ),
        };
        check(ok, &["train", "freeze"], what, help)
    }

    /// A part's own learning rate only has a meaning where the part is trained.
    fn rate_checks(&self) -> Vec<Check> {
        let trained = |part| match &self.lora {
            // Which parts these layers are in is seen in the checkpoint.
            Some(lora) if lora.from.is_some() || lora.target_modules.is_regex() => true,
            Some(lora) => lora.scope().contains(&part),
            None => !self.train.frozen().contains(&part),
        };
        let help = if self.lora.is_some() {
            "add the part to lora.scope, or leave the rate out"
        } else {
            "leave the part out of train.freeze, or leave the rate out"
        };
        let rates: [(_, _, &'static [&'static str]); 2] = [
            (Part::Vision, self.train.vision_lr, &["train", "vision_lr"]),
            (Part::Merger, self.train.merger_lr, &["train", "merger_lr"]),
        ];
        let check = |(part, rate, keys): (Part, Option<f64>, &'static [&'static str])| {
            check(rate.is_none() || trained(part), keys, "set, and the part is not trained", help)
        };
        rates.into_iter().map(check).collect()
    }

    /// What only has a meaning where questions are held back.
    fn validation_checks(&self) -> Vec<Check> {
        // What a file of a split holds back is seen when it is read.
        let validates = self.data.split.val > 0.0 || self.data.split.file.is_some();
        let train = &self.train;
        let keys: [(bool, &'static [&'static str]); 3] = [
            (train.eval_steps.is_some(), &["train", "eval_steps"]),
            (train.best.is_some(), &["train", "best"]),
            (train.patience.is_some(), &["train", "patience"]),
        ];
        let check = |(set, keys): (bool, &'static [&'static str])| {
            check(validates || !set, keys, "set, and nothing is held back to validate", HOLD_BACK)
        };
        keys.into_iter().map(check).collect()
    }
}

impl Eval {
    fn checks(&self) -> Vec<Check> {
        vec![
            check(!self.formats.is_empty(), &["eval", "formats"], "empty", FORMATS),
            check(self.max_new_tokens != Some(0), &["eval", "max_new_tokens"], 0, COUNT),
            check(self.batch_size >= 1, &["eval", "batch_size"], self.batch_size, COUNT),
            check(
                (0.0..=1.0).contains(&self.train_share),
                &["eval", "train_share"],
                self.train_share,
                "a share of the training questions, between 0 and 1",
            ),
            check(
                self.scoring == Scoring::Text || self.prompt == PromptStyle::Do,
                &["eval", "scoring"],
                "\"logprob\" with prompt = \"cot\"",
                "a chain of thought does not start with its letter: set prompt = \"do\"",
            ),
            check(
                !self.circular || self.formats.contains(&Format::Mc),
                &["eval", "circular"],
                "set, and `formats` has no \"mc\"",
                "only choices can be rotated: leave it out, or add \"mc\" to `formats`",
            ),
            once(&self.formats, &["eval", "formats"]),
            once(&self.controls, &["eval", "controls"]),
        ]
    }
}

/// A list without repetitions: what it names twice would be trained on or counted twice.
fn once<T: PartialEq>(list: &[T], keys: &'static [&'static str]) -> Check {
    let once = (1..list.len()).all(|i| !list[..i].contains(&list[i]));
    check(once, keys, "a list that names something twice", ONCE)
}

/// A folder, or a well-formed repository of this kind.
fn repository(path: &str, kind: Kind, keys: &'static [&'static str]) -> Check {
    let wrong = match Repo::parse(path) {
        Some(Err(what)) => Some(what),
        Some(Ok(repo)) if repo.kind != kind => {
            let other = if kind == Kind::Model { "a data set" } else { "a model" };
            Some(format!("{path}: {other}"))
        }
        _ => None,
    };
    check(wrong.is_none(), keys, wrong.unwrap_or_default(), REPOSITORY)
}

impl Judge {
    fn checks(&self) -> Vec<Check> {
        const OPENAI: &str = "it needs kind = \"openai\"";
        const URL: &[&str] = &["eval", "judge", "url"];
        const MODEL: &[&str] = &["eval", "judge", "model"];
        let openai = self.kind == JudgeKind::Openai;
        let (url, model) = (self.url.as_deref(), self.model.as_deref());
        let named = url.is_none_or(|url| url.starts_with("http://") || url.starts_with("https://"));
        let price = |price: Option<f64>| price.is_none_or(|p| p >= 0.0 && p.is_finite());
        let both = self.input_price.is_some() == self.output_price.is_some();
        let mut checks = vec![
            check(named, URL, url.unwrap_or(""), "it starts with http:// or https://"),
            check(
                self.concurrency >= 1,
                &["eval", "judge", "concurrency"],
                self.concurrency,
                COUNT,
            ),
            check(
                positive(self.timeout_s) && self.timeout_s <= 86_400.0,
                &["eval", "judge", "timeout_s"],
                self.timeout_s,
                "seconds: more than 0, and a day at most",
            ),
            check(
                both && price(self.input_price) && price(self.output_price),
                &["eval", "judge", "input_price"],
                "without `output_price`, or a price is negative",
                "give both prices of a million tokens, or neither",
            ),
        ];
        for (keys, value) in [(URL, url), (MODEL, model)] {
            let shown = format!("{}, which only an endpoint has", value.unwrap_or(""));
            checks.push(check(openai || value.is_none(), keys, shown, OPENAI));
        }
        if openai && model.is_none_or(|model| model.trim().is_empty()) {
            let what = "`model` is missing".to_owned();
            checks.push(Check { ok: false, keys: MODEL, what, help: "name the endpoint's model" });
        }
        checks
    }
}

fn positive(x: f64) -> bool {
    x > 0.0 && x.is_finite()
}

impl Source<'_> {
    /// The first value that cannot be.
    pub(super) fn check(&self, recipe: &Recipe) -> Result<()> {
        let mut checks = recipe.data.checks();
        checks.extend(recipe.model.checks());
        checks.extend(recipe.video.checks());
        checks.push(recipe.image.check());
        checks.extend(recipe.train.checks());
        checks.extend(recipe.eval.checks());
        checks.push(recipe.quantize_check());
        checks.push(recipe.freeze_check());
        checks.extend(recipe.rate_checks());
        checks.extend(recipe.validation_checks());
        checks.extend(recipe.eval.judge.checks());
        checks.extend(recipe.lora.iter().flat_map(Lora::checks));
        match checks.into_iter().find(|check| !check.ok) {
            None => Ok(()),
            Some(Check { keys, what, help, .. }) => {
                let place = self.place_of_key(keys.iter().copied());
                Err(Error::input(what).at(&place).help(help))
            }
        }
    }
}
