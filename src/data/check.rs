//! A data set → everything that is wrong with it, file by file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::entry::{self, Entry};
use super::fault::Inspected;
use super::image::ImageInfo;
use super::medium::{self, Medium};
use super::video::{self, Frames, Sampling, VideoOptions};
use super::{dataset_info, image, vlm4d};
use crate::error::{Error, Result, more};
use crate::{interrupt, parallel};

/// First and last frame: nothing of a video is left unread, and little of it kept.
const WHOLE: VideoOptions =
    VideoOptions { sampling: Sampling::LlamaFactory, fps: f64::MAX, max_frames: 2, upright: false };

/// A file, and whether it is read as a clip: else it is a picture.
type File<'a> = (&'a PathBuf, bool);

/// More missing files of a folder are told as one problem.
const MANY: usize = 20;

/// What a data set holds and what is wrong with it.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Questions and conversations that can be read.
    pub entries: usize,
    /// What they show: `2,000 videos`.
    pub media: String,
    /// What is wrong with each file, in the order of their names.
    pub problems: BTreeMap<PathBuf, Problems>,
    /// What is worth knowing and keeps nothing from working.
    pub notes: Vec<String>,
}

/// What is wrong with one file.
#[derive(Clone, Debug, Default)]
pub struct Problems {
    /// One by one.
    pub what: Vec<String>,
    /// How to fix them, once each: the same fault tends to be in many rows.
    pub help: Vec<String>,
}

/// Checks `subsets` of the data folder `dir`, or all that it has; `progress` is told how many files
/// there are and how many are done.
///
/// # Errors
/// Where there is no such folder or subset, or the user stops it.
pub fn check(
    dir: &Path,
    subsets: &[String],
    progress: impl FnMut(usize, usize),
) -> Result<Checked> {
    let subsets = entry::subsets_or_all(dir, subsets)?;
    let mut checked = Checked::default();
    let mut entries = Vec::new();
    for subset in &subsets {
        entries.extend(checked.keep(entry::inspect(dir, subset)?));
    }
    entry::name_files(dir, &mut entries);
    if entry::is_sharegpt(dir) {
        let elsewhere = dataset_info::names(dir)?.1.join(", ");
        let note = format!("not looked at, as not in a file: {elsewhere}");
        checked.notes.extend((!elsewhere.is_empty()).then_some(note));
    }
    checked.notes.extend(vlm4d::notes(&entries));
    checked.notes.extend(full_stops(&entries));
    checked.entries = entries.len();
    checked.notes.extend(shared_media(&entries));
    checked.media = medium::count(entries.iter().flat_map(|entry| &entry.media));
    checked.check_media(dir, &entries, progress)?;
    Ok(checked)
}

impl Checked {
    fn add(&mut self, path: &Path, what: String, help: Option<&str>) {
        let problems = self.problems.entry(path.to_owned()).or_default();
        // lists may share a frame
        if !problems.what.contains(&what) {
            problems.what.push(what);
        }
        if let Some(help) = help.filter(|help| !problems.help.iter().any(|told| told == help)) {
            problems.help.push(help.to_owned());
        }
    }

    fn add_error(&mut self, path: &Path, error: &Error) {
        let prefix = format!("{}: ", path.display());
        let what = error.what().strip_prefix(&prefix).unwrap_or(error.what());
        self.add(path, what.to_owned(), error.fix());
    }

    /// Notes the faults of a file, and hands on what it holds.
    fn keep(&mut self, read: Inspected<Entry>) -> Vec<Entry> {
        for fault in &read.faults {
            let place = fault.place.map(|(line, column)| format!("line {line}, column {column}: "));
            let what = place.unwrap_or_default() + &fault.what;
            self.add(&read.path, what, Some(fault.help).filter(|help| !help.is_empty()));
        }
        read.items
    }

    fn check_media<'a>(
        &mut self,
        dir: &Path,
        entries: &'a [Entry],
        mut progress: impl FnMut(usize, usize),
    ) -> Result<()> {
        let mut users: BTreeMap<&Medium, Vec<&str>> = BTreeMap::new();
        for entry in entries {
            for medium in &entry.media {
                users.entry(medium).or_default().push(&entry.id);
            }
        }
        let (there, missing): (Vec<_>, Vec<_>) =
            users.iter().partition(|(medium, _)| is_there(dir, medium));
        self.add_missing(dir, &missing);
        let files: BTreeSet<File> = there.iter().flat_map(|(medium, _)| files(medium)).collect();
        let files: Vec<File> = files.into_iter().collect();
        let mut infos = BTreeMap::new();
        let read = |(file, is_clip): &File<'a>| (*file, info(&dir.join(file), *is_clip));
        parallel::each(&files, read, |done, (file, info)| {
            interrupt::check("the check")?;
            match info {
                Ok(info) => drop(infos.insert(file, info)),
                Err(error) => self.add_error(&dir.join(file), &error),
            }
            progress(done, files.len());
            Ok(())
        })?;
        for (medium, _) in there {
            self.check_list(dir, medium, &infos);
        }
        interrupt::check("the check")
    }

    /// The frames of a list are of one size, as far as they could be read; those of another one where
    /// they are turned are worth a note.
    fn check_list(&mut self, dir: &Path, medium: &Medium, infos: &BTreeMap<&PathBuf, ImageInfo>) {
        let Medium::Frames(files) = medium else { return };
        let mut first = None;
        for (file, info) in files.iter().filter_map(|file| infos.get_key_value(file)) {
            let (path, first) = (dir.join(file), *first.get_or_insert(*info));
            let checked = image::check_size(&path, info.size(false), &mut Some(first.size(false)));
            match checked {
                Err(error) => self.add_error(&path, &error),
                Ok(()) if info.size(true) != first.size(true) => self.notes.push(format!(
                    "{}: a viewer turns it by {} degrees, and the first frame of its video by {}: \
                     video.upright = true refuses that list",
                    path.display(),
                    info.rotation,
                    first.rotation
                )),
                Ok(()) => (),
            }
        }
    }

    /// A folder that is missing, or lacks many files, is one problem.
    fn add_missing(&mut self, dir: &Path, missing: &[(&&Medium, &Vec<&str>)]) {
        let mut folders: BTreeMap<PathBuf, Vec<(&Path, &[&str])>> = BTreeMap::new();
        for (medium, users) in missing {
            for file in medium.files().iter().filter(|file| !dir.join(file).is_file()) {
                let folder = dir.join(file).parent().unwrap_or(dir).to_owned();
                folders.entry(folder).or_default().push((file, users));
            }
        }
        for (folder, files) in folders {
            let file_name =
                |path: &Path| path.file_name().unwrap_or_default().display().to_string();
            let first = file_name(files[0].0);
            let n = files.len();
            if !folder.is_dir() {
                let what = format!("no such folder; {n} file(s) should be in it, {first} first");
                self.add(&folder, what, None);
            } else if n > MANY {
                let names = files.iter().map(|(file, _)| file_name(file));
                let names = names.collect::<Vec<_>>().join(", ");
                self.add(&folder, format!("lacks {n} files: {names}"), None);
            } else {
                for (file, users) in files {
                    let more = more(users.len() - 1);
                    let what = format!("no such file, used by `{}`{more}", users[0]);
                    self.add(&dir.join(file), what, None);
                }
            }
        }
    }
}

fn is_there(dir: &Path, medium: &Medium) -> bool {
    medium.files().iter().all(|file| dir.join(file).is_file())
}

/// The files of `medium`.
fn files(medium: &Medium) -> impl Iterator<Item = File<'_>> {
    let is_clip = matches!(medium, Medium::Video(_));
    medium.files().iter().map(move |file| (file, is_clip))
}

/// Size and turn of the pictures in a file, all of which is decoded.
fn info(path: &Path, is_clip: bool) -> Result<ImageInfo> {
    let (Frames { height, width, .. }, rotation) = match is_clip {
        true => (video::read_whole(path, &WHOLE)?.frames, 0),
        false => image::read(path, WHOLE.sampling, WHOLE.upright)?,
    };
    Ok(ImageInfo { height, width, rotation })
}

/// Choices of which one alone ends in a full stop, where that gives the answer away.
fn full_stops(entries: &[Entry]) -> Option<String> {
    let mut odd = 0_usize;
    let mut gold = 0;
    for entry in entries {
        let stops = |i: &usize| entry.choices[*i].ends_with('.');
        let with_stop: Vec<usize> = (0..entry.choices.len()).filter(stops).collect();
        if let [only] = with_stop[..] {
            odd += 1;
            gold += usize::from(entry.gold_choices.contains(&only));
        }
    }
    (odd >= 10 && 2 * gold > odd).then(|| {
        format!(
            "where just one choice ends in a full stop ({odd} questions), it is the answer in \
             {:.0} %: text alone gives them away",
            100.0 * gold as f64 / odd as f64
        )
    })
}

/// Videos and images that several subsets share: a split by video refuses those that would cross.
fn shared_media(entries: &[Entry]) -> Option<String> {
    let mut subsets: BTreeMap<&Path, BTreeSet<&str>> = BTreeMap::new();
    for entry in entries {
        for path in entry.media.iter().flat_map(Medium::files) {
            subsets.entry(path).or_default().insert(&entry.subset);
        }
    }
    let shared: Vec<_> = subsets.iter().filter(|(_, subsets)| subsets.len() > 1).collect();
    let (file, by) = shared.first()?;
    let by: Vec<&str> = by.iter().copied().collect();
    Some(format!(
        "{} file(s) stand in more than one subset, {} in {} first: they may cross a split",
        shared.len(),
        file.display(),
        by.join(" and ")
    ))
}
