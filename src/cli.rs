//! The command line: recipes to run, and what stands beside that.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::data::demo::{self, DemoOptions};
use crate::data::entry::{self, Entry};
use crate::data::split::{self, By};
use crate::error::{Error, Result};
use crate::eval::grade;
use crate::recipe::Recipe;
use crate::report::compare;
use crate::report::terminal::Terminal;
use crate::{files, interrupt, run};

/// Fine-tune a Qwen-VL model on questions about motion in video, and measure it before and after.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Recipes to run, one after the other
    #[arg(value_name = "RECIPE.toml")]
    recipes: Vec<PathBuf>,
    /// Folder under which each run gets its own
    #[arg(long, value_name = "DIR", default_value = "runs")]
    runs: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
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
    /// Put finished runs side by side: the paper's Table 2
    Compare {
        /// Folders of runs, or folders above them
        #[arg(required = true, value_name = "RUN_DIR")]
        runs: Vec<PathBuf>,
        /// Folder to write the comparison into, as Markdown, CSV and HTML
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Make or split a data set
    #[command(subcommand)]
    Data(DataCommand),
}

#[derive(Debug, Subcommand)]
enum DataCommand {
    /// Render a small data set in VLM4D's layout
    Demo {
        /// Folder to make
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Seed of everything random
        #[arg(long, default_value_t = DemoOptions::default().seed)]
        seed: u64,
        /// Videos of the real set
        #[arg(long, default_value_t = DemoOptions::default().real_videos)]
        real_videos: usize,
        /// Videos of the synthetic set
        #[arg(long, default_value_t = DemoOptions::default().synthetic_videos)]
        synthetic_videos: usize,
    },
    /// Write the split that a run would use
    Split {
        /// Folder with the question files
        data: PathBuf,
        /// File to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Subsets to split
        #[arg(long, value_delimiter = ',', default_value = "real,synthetic")]
        subsets: Vec<String>,
        /// Seed of the split
        #[arg(long, default_value_t = 42)]
        seed: u64,
        /// `video` or `question`
        #[arg(long, default_value = "video", value_parser = by)]
        by: By,
    },
}

fn by(text: &str) -> Result<By, String> {
    match text {
        "video" => Ok(By::Video),
        "question" => Ok(By::Question),
        _ => Err("one of video, question".into()),
    }
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    /// What the user has to know.
    pub fn execute(self) -> Result<()> {
        let terminal = Terminal;
        match self.command {
            None => run_recipes(&self.run, &terminal),
            Some(Command::Grade { files, out, data }) => {
                grade_files(&files, out.as_deref(), data.as_deref(), &terminal)
            }
            Some(Command::Compare { runs, out }) => {
                compare::finish(&runs, out.as_deref(), &terminal)
            }
            Some(Command::Data(DataCommand::Demo { out, seed, real_videos, synthetic_videos })) => {
                let options =
                    DemoOptions { seed, real_videos, synthetic_videos, ..DemoOptions::default() };
                render_demo(&out, &options, &terminal)
            }
            Some(Command::Data(DataCommand::Split { data, out, subsets, seed, by })) => {
                write_split(&data, &out, &subsets, seed, by)
            }
        }
    }
}

fn run_recipes(args: &RunArgs, terminal: &Terminal) -> Result<()> {
    interrupt::catch()?;
    // A slip in the last recipe should not wait for the first one's training.
    let mut folders = BTreeMap::new();
    for path in &args.recipes {
        Recipe::from_file(path)?;
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
    let mut dirs = Vec::new();
    for path in &args.recipes {
        dirs.push(run::run(path, &args.runs, terminal)?);
        terminal.line("");
    }
    match &dirs[..] {
        [_] => Ok(()),
        dirs => compare::finish(dirs, Some(&compare::common_folder(dirs)?), terminal),
    }
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

fn render_demo(out: &Path, options: &DemoOptions, terminal: &Terminal) -> Result<()> {
    let bar = terminal.bar("videos", options.real_videos + options.synthetic_videos);
    let summary = demo::render(out, options, |done, _| bar.set(done));
    bar.finish();
    let summary = summary?;
    terminal.line(&format!(
        "{}: {} questions on {} videos",
        out.display(),
        summary.questions,
        summary.videos
    ));
    Ok(())
}

fn write_split(data: &Path, out: &Path, subsets: &[String], seed: u64, by: By) -> Result<()> {
    let (entries, _) = entry::read(data, subsets)?;
    let items: Vec<_> = entries.iter().map(Entry::item).collect();
    let split = split::split(&items, seed, 0.2, 0.0, by)?;
    let json = serde_json::to_string_pretty(&split).map_err(|e| Error::run(e.to_string()))?;
    files::write(out, json + "\n")
}
