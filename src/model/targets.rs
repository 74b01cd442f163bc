//! Which layers get an adapter: `lora.target_modules` and `lora.scope` over the names of modules.

use std::collections::BTreeSet;

use regex::Regex;

use super::weights::{hub_name, module_name};
use crate::error::{Error, Result};
use crate::recipe::{self, Part, TargetModules};

/// The linear layers of each part, in all of the spellings that transformers has had.
fn all_linear(part: Part) -> &'static str {
    match part {
        Part::Language => r".*\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)",
        Part::Vision => {
            r".*visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2|gate_proj|up_proj|down_proj))"
        }
        Part::Merger => r".*visual\.merger\.mlp\.(0|2)",
    }
}

/// What stands before the last parts of a linear layer's name in each part.
fn layer_prefix(part: Part) -> &'static str {
    match part {
        Part::Language => r".*\.layers\.\d+\.",
        Part::Vision => r".*visual\.blocks\.\d+\.",
        Part::Merger => r".*visual\.merger\.",
    }
}

/// The key that names layers.
const TARGETS: &str = "lora.target_modules";

/// What `target_modules` may be.
const A_TARGET: &str = "\"all-linear\", or names such as [\"q_proj\", \"v_proj\"]";

/// Why no adapter is on `lm_head` where the model has none of its own.
pub(super) const TIED: &str =
    "the checkpoint's embeddings are tied: its head can have no adapter, leave `lm_head` out";

/// `target_modules` and `scope` as a regular expression over whole module names.
pub(super) fn pattern(recipe: &recipe::Lora) -> String {
    let in_scope = |of: &dyn Fn(Part) -> String| {
        let parts: Vec<String> = recipe.scope().into_iter().map(of).collect();
        parts.join("|")
    };
    match &recipe.target_modules {
        TargetModules::Pattern(p) if p == "all-linear" => {
            in_scope(&|part| all_linear(part).to_owned())
        }
        TargetModules::Pattern(p) => p.clone(),
        TargetModules::Names(names) => in_scope(&|part| ends(part, names)),
    }
}

/// The layers of `part` whose names end with one of `names`, as a regular expression. As in PEFT, a
/// name may be that of a whole layer.
fn ends(part: Part, names: &[String]) -> String {
    let prefix = layer_prefix(part);
    // `layers.0.self_attn.q_proj`, `merger.mlp.0`: whatever stands before these. The head is in no
    // layer.
    let tells_layer = |name: &&String| {
        (part == Part::Language && *name == "lm_head")
            || Regex::new(prefix).is_ok_and(|prefix| prefix.is_match(&format!("visual.{name}")))
    };
    let (whole, inner): (Vec<_>, Vec<_>) = names.iter().partition(tells_layer);
    let groups = [(prefix, inner), ("", whole)].into_iter().filter(|(_, names)| !names.is_empty());
    let groups = groups.map(|(prefix, names)| {
        let names = names.into_iter().map(|name| regex::escape(&module_name(&hub_name(name))));
        format!(r"{prefix}(.*\.)?({})", names.collect::<Vec<_>>().join("|"))
    });
    groups.collect::<Vec<_>>().join("|")
}

/// A regular expression over whole names.
pub(super) fn whole(pattern: &str) -> Result<Regex, regex::Error> {
    Regex::new(&format!("^(?:{pattern})$"))
}

/// What matches the names of the layers that `recipe` gives an adapter.
fn matcher(recipe: &recipe::Lora) -> Result<Regex> {
    whole(&pattern(recipe)).map_err(|e| {
        let message = e.to_string();
        let reason = message.lines().last().unwrap_or_default().trim_start_matches("error: ");
        let what = format!("`lora.target_modules`: no regular expression known here: {reason}");
        let error = Error::input(what).of_key(TARGETS);
        if reason.contains("not supported") {
            return error.help(
                "write it without look-around and back references; a list of names means layers of \
                 the parts in `lora.scope` alone",
            );
        }
        error.help("mend it, or give a list of names")
    })
}

/// Those of `layers`, hub names, that `recipe` gives an adapter. Each name of a list must be that
/// of a layer: what is misspelled would be left out.
pub(super) fn targets(recipe: &recipe::Lora, layers: &[String]) -> Result<BTreeSet<String>> {
    let found = |recipe: &recipe::Lora| -> Result<BTreeSet<String>> {
        let matches = matcher(recipe)?;
        let in_either_spelling =
            |layer: &&String| matches.is_match(&module_name(layer)) || matches.is_match(layer);
        Ok(layers.iter().filter(in_either_spelling).cloned().collect())
    };
    let none = |pattern: &str| {
        let what = format!("`lora.target_modules`: `{pattern}` matches no linear layer");
        Error::input(what).of_key(TARGETS)
    };
    let fix = |recipe: &recipe::Lora| -> Result<String> {
        if matcher(recipe)?.is_match("lm_head") {
            return Ok(TIED.to_owned());
        }
        let example = layers.iter().find(|layer| Part::of(layer) == Part::Language);
        let of_regex = example
            .filter(|_| recipe.target_modules.is_regex())
            .map(|layer| format!("; a regular expression matches a whole name, such as `{layer}`"));
        Ok(format!("{A_TARGET}{}", of_regex.unwrap_or_default()))
    };
    if let TargetModules::Names(names) = &recipe.target_modules {
        for name in names {
            let target_modules = TargetModules::Names(vec![name.clone()]);
            let alone = recipe::Lora { target_modules, ..recipe.clone() };
            if !found(&alone)?.is_empty() {
                continue;
            }
            let scope = Some(vec![Part::Language, Part::Vision, Part::Merger]);
            let anywhere = recipe::Lora { scope, ..alone };
            return Err(none(name).help(match found(&anywhere)?.is_empty() {
                false => "it is in another part of the model: add that to `lora.scope`".to_owned(),
                true => fix(&anywhere)?,
            }));
        }
    }
    let targets = found(recipe)?;
    match targets.is_empty() {
        true => Err(none(&pattern(recipe)).help(fix(recipe)?)),
        false => Ok(targets),
    }
}
