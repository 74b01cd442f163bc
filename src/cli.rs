//! The command line: recipes to run, and what stands beside that.

mod data;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, Parser, Subcommand};
use safetensors::Dtype;

use self::data::DataCommand;
use crate::error::{Error, Result};
use crate::eval::grade;
use crate::export::{self, KeySpelling, Options};
use crate::model::initial;
use crate::number::thousands;
use crate::recipe::Recipe;
use crate::report::compare;
use crate::report::terminal::Terminal;
use crate::{files, interrupt, parallel, run};

/// Fine-tune a Qwen-VL model on questions about motion in video, and measure it before and after.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Recipes to run, one after the other
    #[arg(required = true, value_name = "RECIPE.toml")]
    recipes: Vec<PathBuf>,
    /// Folder under which each run gets its own
    #[arg(long, value_name = "DIR", default_value = "runs")]
    runs: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what a run would need: parameters, tokens, steps, memory and time; runs nothing
    Plan {
        /// The recipe
        #[arg(value_name = "RECIPE.toml")]
        recipe: PathBuf,
        /// Folder under which the run would get its own
        #[arg(long, value_name = "DIR", default_value = "runs")]
        runs: PathBuf,
        /// Memory of the device, where it is not this machine's
        #[arg(long, value_name = "GIB", value_parser = gib)]
        memory: Option<usize>,
    },
    /// Ask the test questions of a recipe, without training
    Eval {
        /// Recipe that names checkpoint and data
        #[arg(value_name = "RECIPE.toml")]
        recipe: PathBuf,
        /// Adapter in PEFT's format; without it the checkpoint is asked by itself
        #[arg(long, value_name = "DIR")]
        adapter: Option<PathBuf>,
        /// Folder for the results [default: eval/base in the recipe's own folder, or eval/ADAPTER]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Folder under which each recipe has its own
        #[arg(long, value_name = "DIR", default_value = "runs")]
        runs: PathBuf,
    },
    /// Grade answers in VLM4D's released-output format
    Grade {
        /// Files of answers
        #[arg(required = true, value_name = "FILE.json")]
        files: Vec<PathBuf>,
        /// Write one JSON object per answer
        #[arg(long, value_name = "F.jsonl")]
        out: Option<PathBuf>,
        /// Folder with the question files, for the ego and exo columns
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
    },
    /// Hand a run's weights on: the PEFT adapter, or a merged checkpoint in hub layout
    Export {
        /// Folder of a finished run
        #[arg(value_name = "RUN_DIR")]
        run: PathBuf,
        /// Folder to make
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Write a whole checkpoint with the adapter merged into it
        #[arg(long)]
        merge: bool,
        /// Which transformers the adapter's keys are spelled for [default: new]
        #[arg(long, value_enum)]
        key_spelling: Option<KeySpelling>,
        /// Largest shard of a whole checkpoint [default: 5GB]
        #[arg(long, value_name = "SIZE", value_parser = size)]
        shard_size: Option<usize>,
        /// Type of a whole checkpoint's weights: bf16, f16 or f32; as they are where left out
        #[arg(long, value_name = "TYPE", value_parser = dtype)]
        dtype: Option<Dtype>,
        /// Replace an earlier export of the same name
        #[arg(long)]
        force: bool,
    },
    /// Put finished runs side by side: the paper's Table 2
    Compare {
        /// Folders of runs, or folders above them
        #[arg(required = true, value_name = "RUN_DIR")]
        runs: Vec<PathBuf>,
        /// Folder to write the comparison into, as Markdown, CSV and HTML
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Look at, check, split or make a data set
    #[command(subcommand)]
    Data(DataCommand),
    /// Draw random weights for a configuration, to train a model from nothing
    Init {
        /// Folder with config.json, tokenizer, chat template and processor
        #[arg(value_name = "DIR")]
        config: PathBuf,
        /// Checkpoint to make
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Seed of the weights
        #[arg(long, default_value_t = 42)]
        seed: u64,
    },
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    /// What the user has to know.
    pub fn execute(self) -> Result<()> {
        let terminal = Terminal;
        parallel::start()?;
        match self.command {
            None => run_recipes(&self.run, &terminal),
            Some(Command::Plan { recipe, runs, memory }) => {
                let plan = run::plan::plan(&recipe, &runs, memory, &terminal);
                plan.map_err(|e| Recipe::told_of(&recipe, e, false))
            }
            Some(Command::Eval { recipe, adapter, out, runs }) => {
                interrupt::catch()?;
                let (adapter, out) = (adapter.as_deref(), out.as_deref());
                let asked = run::explained(&recipe, false, &terminal, || {
                    run::evaluation(&recipe, adapter, out, &runs, &terminal)
                });
                asked.map(drop).map_err(|e| Recipe::told_of(&recipe, e, false))
            }
            Some(Command::Grade { files, out, data }) => {
                grade_files(&files, out.as_deref(), data.as_deref(), &terminal)
            }
            Some(Command::Export { run, to, merge, key_spelling, shard_size, dtype, force }) => {
                interrupt::catch()?;
                let shard_bytes = shard_size;
                let options = Options { to, merge, key_spelling, shard_bytes, dtype, force };
                export::export(&run, &options, &terminal)
            }
            Some(Command::Compare { runs, out }) => {
                compare::compare(&runs, out.as_deref(), &terminal)
            }
            Some(Command::Init { config, out, seed }) => init(&config, &out, seed, &terminal),
            Some(Command::Data(command)) => command.execute(&terminal),
        }
    }
}

/// A number of GiB, in bytes.
fn gib(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|gib: &f64| *gib > 0.0 && *gib < 1e9);
    let bytes = number.map(|gib| (gib * f64::from(1 << 30)) as usize);
    bytes.ok_or_else(|| "a number of GiB, more than 0".into())
}

/// `bf16`, `f16` or `f32`.
///
/// # Errors
/// What else may be given.
pub fn dtype(text: &str) -> Result<Dtype, String> {
    match text {
        "bf16" => Ok(Dtype::BF16),
        "f16" => Ok(Dtype::F16),
        "f32" => Ok(Dtype::F32),
        _ => Err("one of bf16, f16, f32".into()),
    }
}

/// `5GB`, `500MB`, `2GiB` or a number of bytes.
///
/// # Errors
/// What else may be given.
pub fn size(text: &str) -> Result<usize, String> {
    let units = [
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
        ("GB", 1_000_000_000),
        ("MB", 1_000_000),
        ("KB", 1_000),
        ("B", 1),
        ("", 1),
    ];
    let found = units.iter().find_map(|(unit, bytes)| {
        let number: f64 = text.trim().strip_suffix(unit)?.trim().parse().ok()?;
        (number * f64::from(*bytes) >= 1.0).then_some((number * f64::from(*bytes)) as usize)
    });
    found.ok_or_else(|| "a size such as 5GB, 500MB or 2GiB".into())
}

fn run_recipes(args: &RunArgs, terminal: &Terminal) -> Result<()> {
    check_no_command(&args.recipes)?;
    interrupt::catch()?;
    let several = args.recipes.len() > 1;
    let told = |path| move |e| Recipe::told_of(path, e, several);
    let (mut folders, mut expected) = (BTreeMap::new(), Vec::new());
    for path in &args.recipes {
        // A slip in the last recipe should not wait for the first one's training.
        if several {
            let run = run::check(path, &args.runs, &folders, terminal).map_err(told(path))?;
            expected.extend(run);
        }
        let folder = run::folder(&args.runs, path);
        if let Some(other) = folders.insert(folder.clone(), path) {
            return Err(Error::input(format!(
                "{} and {}: both would go to {}",
                other.display(),
                path.display(),
                folder.display()
            ))
            .help("give each recipe a name of its own"));
        }
    }
    compare::check(&expected)?;
    let mut dirs = Vec::new();
    for path in &args.recipes {
        let run = || run::run(path, &args.runs, terminal);
        dirs.push(run::explained(path, true, terminal, run).map_err(told(path))?);
        terminal.line("");
    }
    match &dirs[..] {
        [_] => Ok(()),
        dirs => compare::compare(dirs, Some(&compare::common_folder(dirs)?), terminal),
    }
}

/// A command behind an option is read as a recipe.
fn check_no_command(recipes: &[PathBuf]) -> Result<()> {
    let commands = Cli::command();
    let is_command = |path: &&PathBuf| commands.find_subcommand(path).is_some() && !path.exists();
    recipes.iter().find(is_command).map_or(Ok(()), |path| {
        let name = path.display();
        Err(Error::input(format!("`{name}` is a command and no recipe"))
            .help(format!("the command comes first, its options behind it: vlm4d-train {name} …")))
    })
}

fn init(config: &Path, out: &Path, seed: u64, terminal: &Terminal) -> Result<()> {
    let parameters = initial::write_random(config, out, seed)?;
    terminal.line(&format!("{}: {} random parameters", out.display(), thousands(parameters)));
    Ok(())
}

fn grade_files(
    paths: &[PathBuf],
    out: Option<&Path>,
    data: Option<&Path>,
    terminal: &Terminal,
) -> Result<()> {
    let questions = data.map(grade::Questions::read).transpose()?;
    let graded: Vec<_> = paths
        .iter()
        .map(|path| grade::grade_file(path, questions.as_ref()))
        .collect::<Result<_>>()?;
    if let Some(out) = out {
        files::write(out, graded.iter().map(grade::jsonl).collect::<Result<String>>()?)?;
    }
    terminal.line(grade::table(&graded).trim_end());
    Ok(())
}
