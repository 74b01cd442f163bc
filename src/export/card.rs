//! The model card: data, recipe, numbers and their intervals.

use std::path::Path;

use minijinja::{Environment, context};

use super::Kind;
use crate::data::hub::Repo;
use crate::data::vlm4d::Format;
use crate::error::{Error, Result};
use crate::eval::metrics::paired;
use crate::places;
use crate::recipe::{Dtype, Quantize, Recipe};
use crate::report::accuracy::{INTERVALS, P, interval, p, points, small, title};
use crate::report::controls;
use crate::report::finished::Finished;
use crate::report::split;
use crate::report::table::Table;

/// The card of what was exported from `run`.
pub fn card(run: &Finished, kind: Kind) -> Result<String> {
    let recipe = &run.recipe;
    let base = places::name(&recipe.model.path);
    // The hub knows `ORG/NAME`; a path on this machine is nobody else's.
    let id = |path: &str| Repo::parse(path).and_then(Result::ok).map(|repo| repo.id);
    let stages = controls::of_run(&run.dir, &run.before, &run.after, recipe.seed)?;
    let [before, after] = stages.each_ref().map(|(_, metrics)| &metrics.formats);
    let mut table = Table::new(1, ["questions", "n", "before", "after", "change", "p"]);
    for (format, late) in after {
        let Some(early) = before.get(format) else { continue };
        let change = paired(&run.before, &run.after, *format, recipe.seed);
        table.rows.push(vec![
            format.name().to_uppercase(),
            late.breakdown.overall.n.to_string(),
            interval(&early.breakdown.overall),
            interval(&late.breakdown.overall),
            points(&change),
            p(change.p),
        ]);
        for (name, metric) in &late.breakdown.group {
            let of_before = early.breakdown.group.get(name).map(interval).unwrap_or_default();
            let name = format!("{}, {name}", format.name().to_uppercase());
            let n = metric.n.to_string();
            table.rows.push(vec![
                name,
                n,
                of_before,
                interval(metric),
                String::new(),
                String::new(),
            ]);
        }
    }
    let chance = after.get(&Format::Mc).and_then(|mc| mc.breakdown.overall.chance);
    let controls = after.keys().filter_map(|format| {
        controls::table(&stages, *format)?;
        Some(format!("{}:\n\n{}", title(*format), controls::section(&stages, *format)))
    });
    let controls: Vec<String> = controls.collect();
    let (split, _) = split::told(&run.dir, recipe)?;
    let graders = after
        .iter()
        .map(|(format, of)| format!("{} by {}", format.name().to_uppercase(), of.grader));
    let context = context! {
        base_id => id(&recipe.model.path),
        base => serde_json::to_string(&base).unwrap_or_default(),
        library => if kind == Kind::Adapter { "peft" } else { "transformers" },
        dataset => id(&recipe.data.path),
        lora => kind != Kind::Full,
        adapter => kind == Kind::Adapter,
        merged => kind == Kind::Merged,
        nf4 => recipe.model.quantize == Some(Quantize::Nf4),
        computed_in => computed_in(recipe),
        model => recipe.model.name(),
        what => match kind {
            Kind::Adapter => "A LoRA adapter",
            Kind::Merged => "A checkpoint with a merged LoRA adapter",
            Kind::Full => "A fully fine-tuned checkpoint",
        },
        trained_on => split::trained_on(&run.limited, &recipe.data.train),
        tested_on => recipe.data.test_subsets().join(" + "),
        conversations => !recipe.data.is_vlm4d(),
        split,
        version => env!("CARGO_PKG_VERSION"),
        accuracies => table.markdown(),
        chance => chance.map(|chance| format!("{:.1}", 100.0 * chance)),
        intervals => INTERVALS,
        p => P,
        small => small(),
        graders => graders.collect::<Vec<_>>().join("; "),
        controls => controls.join("\n"),
        recipe => recipe.to_toml()?,
    };
    let environment = Environment::new();
    environment
        .render_str(include_str!("card.md"), context)
        .map_err(|e| Error::run(format!("the model card could not be made: {e:#}")))
}

/// PyTorch's name of the type that `recipe` was computed in.
fn computed_in(recipe: &Recipe) -> &'static str {
    let on_cpu = recipe.provenance.as_ref().is_some_and(|p| p.device == "cpu");
    match recipe.model.dtype {
        Dtype::F32 => "float32",
        Dtype::Auto if on_cpu => "float32",
        Dtype::Auto | Dtype::Bf16 => "bfloat16",
    }
}

/// Whether the folder `dir` has such a card: its tags name this program.
pub fn is_in(dir: &Path) -> bool {
    let card = std::fs::read_to_string(dir.join("README.md"));
    card.is_ok_and(|card| card.lines().any(|line| line == "- vlm4d-train"))
}
