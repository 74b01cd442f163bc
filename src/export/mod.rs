//! A finished run → what others load: the PEFT adapter, or a checkpoint in hub layout with the
//! adapter merged into it; either with a model card.
//!
//! Everything is written beside the target and renamed at the end: an export that was interrupted
//! leaves nothing under the target's name.

mod adapter;
mod card;
mod checkpoint;

use std::path::{Path, PathBuf};

use safetensors::Dtype;

pub use self::adapter::KeySpelling;
use crate::error::{Error, Result};
use crate::files;
use crate::hash;
use crate::model::hub;
use crate::places;
use crate::recipe::Recipe;
use crate::report::finished::Finished;
use crate::report::terminal::Terminal;

/// What to write, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder to make.
    pub to: PathBuf,
    /// A whole checkpoint instead of the adapter.
    pub merge: bool,
    /// How an adapter's keys are spelled; the new way where nothing is said.
    pub key_spelling: Option<KeySpelling>,
    /// Most bytes of one shard of a whole checkpoint; transformers' default where none is given.
    pub shard_bytes: Option<usize>,
    /// The weights' type in a whole checkpoint; as they are where none is given.
    pub dtype: Option<Dtype>,
    /// Whether an earlier export under the same name may be replaced.
    pub force: bool,
}

/// Folders of a run that no export may take the place of.
const PARTS: [&str; 5] = ["adapter", "model", "before", "after", "checkpoints"];

/// What exports hold beside shards. Of a checkpoint's small files these are the usual ones: that
/// of a run may have others.
const FILES: [&str; 19] = [
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "model.safetensors",
    hub::INDEX,
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
];

/// What an export holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A PEFT adapter.
    Adapter,
    /// A checkpoint with the adapter merged into it.
    Merged,
    /// The checkpoint of a full fine-tuning.
    Full,
}

/// Exports the run in `dir`.
///
/// # Errors
/// Where it is no finished run, the target is taken, the checkpoint is not the one that was
/// trained, or the disk refuses.
pub fn export(dir: &Path, options: &Options, terminal: &Terminal) -> Result<()> {
    let run = Finished::open(dir)?;
    let kind = match (run.recipe.lora.is_some(), options.merge) {
        (false, _) => Kind::Full,
        (true, true) => Kind::Merged,
        (true, false) => Kind::Adapter,
    };
    check_options(kind, options)?;
    let mut kept: Vec<PathBuf> = PARTS.iter().map(|part| dir.join(part)).collect();
    kept.push(PathBuf::from(&run.recipe.model.path));
    check_target(&options.to, options.force, &kept)?;
    files::check_writable(&options.to)?;
    run.check_trained()?;
    let checkpoint = match kind {
        Kind::Merged => places::checkpoint(&run.recipe.model.path, terminal)?.dir,
        Kind::Full => dir.join("model"),
        // A merged export of the run, which this one replaces, has files of it.
        Kind::Adapter => PathBuf::from(&run.recipe.model.path),
    };
    if kind == Kind::Merged {
        check_target(&options.to, options.force, std::slice::from_ref(&checkpoint))?;
    }
    check_replaced(&options.to, &checkpoint)?;
    if kind == Kind::Merged {
        check_checkpoint(&run.recipe, &checkpoint)?;
    }
    files::write_dir(&options.to, |to| {
        let adapter = dir.join("adapter");
        if kind == Kind::Adapter {
            adapter::write(&adapter, to, &run.recipe, options.key_spelling.unwrap_or_default())?;
        } else {
            let adapter = (kind == Kind::Merged).then_some(&*adapter);
            let shard_bytes = options.shard_bytes.unwrap_or(hub::SHARD_BYTES);
            checkpoint::write(&checkpoint, adapter, to, shard_bytes, options.dtype, terminal)?;
        }
        files::write(&to.join("README.md"), card::card(&run, kind)?)
    })?;
    terminal.line(&format!("{} {}", kind.name(), options.to.display()));
    Ok(())
}

/// Refuses what has no part in this kind of export.
fn check_options(kind: Kind, options: &Options) -> Result<()> {
    let is_adapter = kind == Kind::Adapter;
    if is_adapter && options.dtype.is_some() {
        return Err(Error::input("--dtype is for whole checkpoints: the adapter stays in f32")
            .help("add --merge, or leave --dtype out"));
    }
    if is_adapter && options.shard_bytes.is_some() {
        return Err(Error::input("--shard-size is for whole checkpoints: an adapter is one file")
            .help("add --merge, or leave --shard-size out"));
    }
    if kind == Kind::Full && options.merge {
        return Err(Error::input("--merge is for adapters: this is a whole checkpoint already")
            .help("leave --merge out: the run was a full fine-tuning"));
    }
    if !is_adapter && options.key_spelling.is_some() {
        return Err(Error::input("--key-spelling is for adapters: this is a whole checkpoint")
            .help("leave --key-spelling out: a checkpoint's names stay as they are"));
    }
    Ok(())
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Adapter => "adapter",
            Self::Merged => "merged checkpoint",
            Self::Full => "checkpoint",
        }
    }
}

/// The target must be free, or a folder that may be replaced, and lie apart from what must be
/// `kept`.
fn check_target(to: &Path, force: bool, kept: &[PathBuf]) -> Result<()> {
    let shown = to.display();
    let made = "--to is a folder to make";
    if to.file_name().is_none() {
        return Err(Error::input(format!("{shown}: has no name of its own")).help(made));
    }
    if to.exists() && !to.is_dir() {
        return Err(Error::input(format!("{shown}: is a file")).help(made));
    }
    if let Some(kept) = kept.iter().find(|kept| overlap(to, kept)) {
        let kept = kept.display();
        return Err(Error::input(format!("{shown}: would overlap {kept}, which must stay"))
            .help("choose another folder for --to"));
    }
    if !force && !entries(to).is_empty() {
        return Err(Error::input(format!("{shown}: is there already"))
            .help("choose another folder for --to, or replace this one with --force"));
    }
    match entries(to).first() {
        Some(first) if !card::is_in(to) => Err(foreign(first)
            .help("--force replaces an earlier export only: choose another folder for --to")),
        _ => Ok(()),
    }
}

/// The error of a target that holds `path`.
fn foreign(path: &Path) -> Error {
    let to = path.parent().unwrap_or(path).display();
    let name = path.file_name().unwrap_or_default().display();
    Error::input(format!("{to}: holds other things than an export: `{name}`"))
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut entries: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    entries.sort();
    entries
}

/// An export that is replaced must hold nothing else: only files that every one has, or that came
/// from `checkpoint`.
fn check_replaced(to: &Path, checkpoint: &Path) -> Result<()> {
    let exported = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_copied =
            hub::COPIED.iter().any(|end| name.ends_with(end)) && checkpoint.join(&*name).is_file();
        path.is_file() && (FILES.contains(&&*name) || is_shard(&name) || is_copied)
    };
    entries(to).iter().find(|path| !exported(path)).map_or(Ok(()), |path| {
        let shown = path.display();
        Err(foreign(path).help(format!(
            "--force replaces an earlier export only: remove {shown}, or choose another folder for --to"
        )))
    })
}

/// Whether a file has the name of a shard: `model-00001-of-00002.safetensors`.
fn is_shard(name: &str) -> bool {
    let numbers = name.strip_prefix("model-").and_then(|name| name.strip_suffix(".safetensors"));
    let is_number = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    numbers.and_then(|of| of.split_once("-of-")).is_some_and(|(i, n)| is_number(i) && is_number(n))
}

/// Whether one of two folders lies in the other.
fn overlap(a: &Path, b: &Path) -> bool {
    let (a, b) = (resolved(a), resolved(b));
    a.starts_with(&b) || b.starts_with(&a)
}

/// `path` without links, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let path = files::absolute(path);
    let found = path
        .ancestors()
        .find_map(|above| Some(above.canonicalize().ok()?.join(path.strip_prefix(above).ok()?)));
    found.unwrap_or(path)
}

/// The adapter belongs to the checkpoint that the run was trained on, and to no other.
fn check_checkpoint(recipe: &Recipe, checkpoint: &Path) -> Result<()> {
    let shown = checkpoint.display();
    let Some(provenance) = &recipe.provenance else { return Ok(()) };
    match hash::files(checkpoint, hash::CHECKPOINT)? == provenance.model_sha256 {
        true => Ok(()),
        false => {
            Err(Error::input(format!("{shown}: not the checkpoint that the run was trained on"))
                .help("its files have changed since: put back the ones that were trained on"))
        }
    }
}
