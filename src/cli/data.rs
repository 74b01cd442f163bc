//! `vlm4d-train data …`: making, looking at, checking and splitting data sets.

use std::path::{Path, PathBuf};

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Args, Subcommand};

use crate::data::check::check;
use crate::data::demo::{self, DemoOptions, DemoSummary, LessonOptions};
use crate::data::entry::{self, Entry};
use crate::data::split::{self, By};
use crate::data::stats::Stats;
use crate::data::terms::Counts;
use crate::error::{Error, Result};
use crate::number::thousands;
use crate::report::data;
use crate::report::terminal::Terminal;
use crate::report::text::legible;
use crate::{files, interrupt};

#[derive(Debug, Subcommand)]
pub(super) enum DataCommand {
    /// Tell sources, groups, questions per video and answers
    Stats {
        #[command(flatten)]
        data: DataArgs,
        /// Write the same as a picture
        #[arg(long, value_name = "FILE.svg", value_parser = svg())]
        out: Option<PathBuf>,
    },
    /// List what is wrong, file by file; ends with 2 where something is
    Check {
        #[command(flatten)]
        data: DataArgs,
    },
    /// Write the split that a run would use
    Split(SplitArgs),
    /// Tell how often captions or questions speak of motion
    Terms {
        /// Files of captions or questions: JSON, or JSON lines
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Count the strings under these keys only
        #[arg(long = "field", value_name = "KEY", value_delimiter = ',')]
        fields: Vec<String>,
        /// Write a heat map
        #[arg(long, value_name = "FILE.svg", value_parser = svg())]
        out: Option<PathBuf>,
    },
    /// Render a small data set in VLM4D's layout
    Demo(DemoArgs),
    /// Render videos and conversations on them for a model without any training
    Lessons(LessonsArgs),
}

#[derive(Debug, Args)]
pub(super) struct DataArgs {
    /// Folder with QA/*_mc.json, with the files at its top, or with a `dataset_info.json`
    data: PathBuf,
    /// Subsets to look at; all where left out
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    subsets: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct SplitArgs {
    #[command(flatten)]
    data: DataArgs,
    /// File to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Seed of the split
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// `video` or `question`
    #[arg(long, default_value = "video", value_parser = by)]
    by: By,
    /// Share that is tested
    #[arg(long, default_value_t = 0.2)]
    test: f64,
    /// Share that validates, taken from training
    #[arg(long, default_value_t = 0.0)]
    val: f64,
}

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
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
    /// Width and height of a frame in pixels
    #[arg(long, value_name = "WIDTHxHEIGHT", default_value = "224x168", value_parser = size)]
    size: (u32, u32),
}

#[derive(Debug, Args)]
pub(super) struct LessonsArgs {
    /// Folder to make
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seed of everything random
    #[arg(long, default_value_t = LessonOptions::default().seed)]
    seed: u64,
    /// Videos to learn from
    #[arg(long, default_value_t = LessonOptions::default().videos)]
    videos: usize,
    /// Further videos to examine on
    #[arg(long, default_value_t = LessonOptions::default().exam_videos)]
    exam_videos: usize,
}

/// A file for a picture: with another ending others would take it for one of another kind. Pipes have
/// none.
fn svg() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.extension() {
        Some(ending) if !ending.eq_ignore_ascii_case("svg") => Err("a picture is written as .svg"),
        _ => Ok(path),
    })
}

fn size(text: &str) -> Result<(u32, u32), String> {
    let sides = text
        .split_once('x')
        .and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    sides.ok_or_else(|| "a width and a height, for example 224x168".into())
}

fn by(text: &str) -> Result<By, String> {
    let by = [By::Video, By::Question].into_iter().find(|by| by.name() == text);
    by.ok_or_else(|| "one of video, question".into())
}

impl DataCommand {
    pub(super) fn execute(self, terminal: &Terminal) -> Result<()> {
        match self {
            Self::Stats { data, out } => stats(&data, out.as_deref(), terminal),
            Self::Check { data } => check_data(&data, terminal),
            Self::Split(args) => write_split(&args, terminal),
            Self::Terms { files, fields, out } => terms(&files, &fields, out.as_deref(), terminal),
            Self::Demo(args) => render_demo(&args, terminal),
            Self::Lessons(args) => render_lessons(&args, terminal),
        }
    }
}

impl DataArgs {
    fn read(&self) -> Result<(Vec<Entry>, Vec<String>)> {
        entry::read(&self.data, &entry::subsets_or_all(&self.data, &self.subsets)?)
    }
}

fn stats(args: &DataArgs, out: Option<&Path>, terminal: &Terminal) -> Result<()> {
    let (entries, notes) = args.read()?;
    let stats = Stats::new(&entries);
    if let Some(out) = out {
        files::write(out, data::picture(&stats))?;
    }
    terminal.line(data::tables(&stats).trim_end());
    notes.iter().for_each(|note| terminal.note(note));
    Ok(())
}

fn check_data(args: &DataArgs, terminal: &Terminal) -> Result<()> {
    interrupt::catch()?;
    let bar = terminal.bar("files", 0);
    let checked = check(&args.data, &args.subsets, |done, all| {
        bar.set_length(all);
        bar.set(done);
    });
    bar.finish();
    let checked = checked?;
    for (file, problems) in &checked.problems {
        terminal.line(&file.display().to_string());
        let help = problems.help.iter().map(|help| format!("help: {help}"));
        let lines = problems.what.iter().cloned().chain(help);
        lines.for_each(|line| terminal.line(&format!("  {}", legible(&line))));
    }
    checked.notes.iter().for_each(|note| terminal.note(note));
    let looked_at = format!(
        "{}: {} questions on {}",
        args.data.display(),
        thousands(checked.entries),
        checked.media
    );
    let problems: usize = checked.problems.values().map(|problems| problems.what.len()).sum();
    if problems == 0 {
        terminal.line(&format!("{looked_at}: nothing is wrong"));
        return Ok(());
    }
    Err(Error::input(format!(
        "{looked_at}: {} problem(s) in {} file(s)",
        thousands(problems),
        thousands(checked.problems.len())
    )))
}

fn write_split(args: &SplitArgs, terminal: &Terminal) -> Result<()> {
    let (entries, _) = args.data.read()?;
    let split = split::split(&entries, args.seed, args.test, args.val, args.by)?;
    files::write_json(&args.out, &split)?;
    for (subset, parts) in &split {
        let [train, val, test] =
            [&parts.train, &parts.val, &parts.test].map(|ids| thousands(ids.len()));
        terminal.line(&format!("{subset}: train {train}  val {val}  test {test}"));
    }
    Ok(())
}

fn terms(
    paths: &[PathBuf],
    fields: &[String],
    out: Option<&Path>,
    terminal: &Terminal,
) -> Result<()> {
    let counts: Vec<Counts> =
        paths.iter().map(|path| Counts::read(path, fields)).collect::<Result<_>>()?;
    if let Some(out) = out {
        files::write(out, data::terms_heat_map(&counts))?;
    }
    terminal.line(data::terms_table(&counts).trim_end());
    Ok(())
}

fn render_lessons(args: &LessonsArgs, terminal: &Terminal) -> Result<()> {
    let &LessonsArgs { seed, videos, exam_videos, .. } = args;
    let options = LessonOptions { seed, videos, exam_videos };
    rendered(&args.out, videos + exam_videos, terminal, |out, seen| {
        demo::render_lessons(out, &options, seen)
    })
}

fn render_demo(args: &DemoArgs, terminal: &Terminal) -> Result<()> {
    let options = DemoOptions {
        seed: args.seed,
        real_videos: args.real_videos,
        synthetic_videos: args.synthetic_videos,
        size: args.size,
        ..DemoOptions::default()
    };
    rendered(&args.out, options.videos(), terminal, |out, seen| demo::render(out, &options, seen))
}

/// Renders with a bar and tells what was made.
fn rendered(
    out: &Path,
    videos: usize,
    terminal: &Terminal,
    render: impl FnOnce(&Path, &mut dyn FnMut(usize, usize)) -> Result<DemoSummary>,
) -> Result<()> {
    interrupt::catch()?;
    let bar = terminal.bar("videos", videos);
    let summary = render(out, &mut |done, _| bar.set(done));
    bar.finish();
    let DemoSummary { videos, questions } = summary?;
    terminal.line(&format!("{}: {questions} questions on {videos} videos", out.display()));
    Ok(())
}
