//! The reports of a run.

use std::collections::BTreeSet;
use std::path::Path;

use super::prepare::Prepared;
use crate::error::{Error, Result, more};
use crate::eval::predict::Prediction;
use crate::report::controls;
use crate::report::html::{Media, relative, run};
use crate::report::markdown;
use crate::report::terminal::Terminal;

/// Writes `report.html` and then `report.md`, by which a finished run is known.
pub fn report(
    prepared: &Prepared,
    dir: &Path,
    [before, after]: [&[Prediction]; 2],
    terminal: &Terminal,
) -> Result<()> {
    let (recipe, videos) = (&prepared.recipe, &prepared.videos);
    let names: BTreeSet<&str> = after.iter().map(|p| &*p.video).collect();
    let bar = terminal.bar("frames", names.len());
    let read = videos.by_name();
    let unread = |name: &str| Error::run(format!("{name}: was not read"));
    let media = Media {
        frames: &|name| videos.seen(read.get(name).ok_or_else(|| unread(name))?),
        href: &|name| {
            let file = videos.dir().join(name);
            file.is_file().then(|| relative(dir, &file))
        },
        progress: &|done| bar.set(done),
    };
    let stages = controls::of_run(dir, before, after, recipe.seed)?;
    let missing = run::write(dir, recipe, &stages, [before, after], &media);
    bar.finish();
    if let [first, others @ ..] = &missing?[..] {
        let more = more(others.len());
        terminal.note(&format!("report.html shows no frames of {first}{more}: unreadable by now"));
    }
    markdown::write(dir, recipe, &stages, [before, after])
}
