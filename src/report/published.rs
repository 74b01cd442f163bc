//! What the VLM4D paper reports, to stand beside our own numbers.
//!
//! Source: *VLM4D: Towards Spatiotemporal Awareness in Vision Language Models* (ICCV 2025,
//! arXiv 2508.02095): its table of models (humans) and Table 2 (fine-tuning), in the first and in the
//! revised version. Hyperparameters, seed, split and the wording of the freeform questions are
//! not published, so the numbers are a guide, not a target.

use std::collections::BTreeMap;
use std::path::Path;

use super::finished::Finished;
use crate::data::split::Split;
use crate::data::vlm4d::{Format, PromptStyle};
use crate::files;
use crate::recipe::Scoring;

/// Where the numbers stand.
pub const SOURCE: &str = "VLM4D, arXiv 2508.02095, Table 2; the paper's seed, split and freeform wording are unpublished, and its evaluation draws answers at temperature 1";

/// Accuracies of one row of Table 2, in percent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Published {
    /// Freeform.
    pub ff: f64,
    /// Multiple choice, in the first version.
    pub mc: f64,
    /// Multiple choice, in the revised version.
    pub mc_revised: f64,
}

/// Table 2: name of the checkpoint on the hub, what it was trained on, accuracies.
const TABLE_2: [(&str, &str, Published); 8] = [
    ("Qwen2-VL-7B-Instruct", "original", row(31.9, 38.3, 38.3)),
    ("Qwen2-VL-7B-Instruct", "R", row(50.7, 53.5, 54.5)),
    ("Qwen2-VL-7B-Instruct", "S", row(38.9, 41.0, 42.5)),
    ("Qwen2-VL-7B-Instruct", "R+S", row(49.7, 52.8, 55.5)),
    ("Qwen2.5-VL-7B-Instruct", "original", row(31.6, 43.4, 43.4)),
    ("Qwen2.5-VL-7B-Instruct", "R", row(48.9, 56.3, 55.6)),
    ("Qwen2.5-VL-7B-Instruct", "S", row(35.4, 42.0, 48.6)),
    ("Qwen2.5-VL-7B-Instruct", "R+S", row(39.2, 48.3, 56.3)),
];

const fn row(ff: f64, mc: f64, mc_revised: f64) -> Published {
    Published { ff, mc, mc_revised }
}

/// How many questions each subset of VLM4D has.
const QUESTIONS: [(&str, usize); 2] = [("real", 1_371), ("synthetic", 445)];

/// Whether the run or evaluation in `dir` is on VLM4D's own questions. Others may have its subsets
/// and groups, as the demo set, but hardly as many questions in each.
pub fn is_vlm4d(dir: &Path) -> bool {
    let split = files::read_json::<BTreeMap<String, Split>>(&dir.join("split.json"));
    split.is_ok_and(|split| {
        split.iter().all(|(subset, parts)| {
            let n = parts.trainable() + parts.val.len() + parts.test.len();
            QUESTIONS.contains(&(subset, n))
        })
    })
}

/// Whether `run` was tested as the models of Table 2: on VLM4D's real videos, without a chain of
/// thought, by what it answered. It must have begun with the checkpoint itself.
pub fn is_tested_alike(run: &Finished) -> bool {
    let (data, eval) = (&run.recipe.data, &run.recipe.eval);
    is_vlm4d(&run.dir)
        && data.test_subsets() == ["real"]
        && (eval.prompt, eval.scoring) == (PromptStyle::Do, Scoring::Text)
        && run.recipe.lora.as_ref().is_none_or(|lora| lora.from.is_none())
}

/// The row of Table 2 for a checkpoint and what it was trained on (`original`, `R`, `S`, `R+S`).
pub fn table_2(model: &str, trained_on: &str) -> Option<Published> {
    let found = TABLE_2.iter().find(|(name, on, _)| (*name, *on) == (model, trained_on));
    found.map(|(_, _, published)| *published)
}

impl Published {
    /// `53.5` or `53.5 / 54.5`: the first version, and the revised one where it differs.
    pub fn cell(&self, format: Format) -> String {
        match format {
            Format::Ff => format!("{:.1}", self.ff),
            Format::Mc if self.mc == self.mc_revised => format!("{:.1}", self.mc),
            Format::Mc => format!("{:.1} / {:.1}", self.mc, self.mc_revised),
        }
    }
}

/// What human accuracies are called; they stand beside VLM4D's own questions alone.
pub const HUMAN: &str = "human, VLM4D";

/// Human accuracy by group, as a share.
const HUMANS: [(&str, f64); 4] = [
    ("directional", 0.918),
    ("ego-centric", 0.996),
    ("exo-centric", 0.997),
    ("false-positive", 1.0),
];

/// Human accuracy on a group of VLM4D's questions, as a share; people were asked multiple choice
/// alone.
pub fn human(format: Format, group: &str) -> Option<f64> {
    let found = HUMANS.iter().find(|(name, _)| *name == group);
    found.filter(|_| format == Format::Mc).map(|(_, share)| *share)
}

/// Whether `groups`, in order, are those of all of VLM4D's questions: on real videos and synthetic
/// ones.
pub fn is_whole<'a>(groups: impl Iterator<Item = &'a String>) -> bool {
    groups.eq(HUMANS.iter().map(|(name, _)| name))
}

/// Human accuracy on all of VLM4D's multiple-choice questions, as a share.
pub const HUMAN_OVERALL: f64 = 0.983;

/// Accuracy of guessing on the same, as a share: row `Random` of the table of models.
pub const RANDOM_OVERALL: f64 = 0.242;
