//! What a run trains on and tests: VLM4D's questions or LLaMA-Factory's conversations, seen alike.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::chat::{Content, Message};
use super::fault::Inspected;
use super::medium::{Kind, Medium};
use super::mirror::{Why, mirror};
use super::names::name_alike;
use super::ties::Ties;
use super::variant::{Shown, Variant};
use super::vlm4d::{self, Format, PromptStyle};
use super::{dataset_info, sharegpt};
use crate::error::{Error, Result, more};
use crate::files::io_reason;
use crate::hash;

/// One question, to be asked in one or more formats, or the last one of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// `real/validation_1`: the files' own ids collide between the subsets. `tinyvid/0`: the data
    /// set and the row.
    pub id: String,
    /// `real` or `synthetic`; for own files what stands before `_mc.json`; the name of a data set.
    pub subset: String,
    /// `davis`, `ego4d`, `youtube-vos` or `synthetic`; else the video's folder, or the data set.
    pub source: String,
    /// `exo-centric`, `ego-centric`, `false-positive` or `directional`, the paper's groups that can
    /// be told from the files; else the source.
    pub group: String,
    /// What it shows, in order.
    pub media: Vec<Medium>,
    /// The [video](Self::video) that stands for all that are tied to its own, by files that entries
    /// share or show together; none where that is its own.
    pub cluster: Option<String>,
    /// How they are shown.
    pub variant: Variant,
    /// The question's text, trimmed.
    pub question: String,
    /// The choices' texts, trimmed; choice 0 has letter A. None where the question has none.
    pub choices: Vec<String>,
    /// The gold answer's text, trimmed.
    pub gold: String,
    /// Every choice whose text is the answer, counted from 0: more than one where choices repeat.
    pub gold_choices: Vec<usize>,
    /// A conversation's turns: system message, if any, then user and assistant by turns. None where
    /// the format puts the question into words.
    pub messages: Vec<Message>,
}

/// Reads `subsets` of the data folder `dir`, in order and in the order of their files; and what is
/// worth telling of them, one line each.
///
/// # Errors
/// A file that is missing or malformed, with its place and the faulty field, or data that cannot be
/// used.
pub fn read(dir: &Path, subsets: &[String]) -> Result<(Vec<Entry>, Vec<String>)> {
    check_folder(dir)?;
    let mut entries = Vec::new();
    for subset in subsets {
        entries.extend(inspect(dir, subset)?.whole()?);
    }
    name_files(dir, &mut entries);
    tie(&mut entries);
    let notes = vlm4d::notes(&entries);
    Ok((entries, notes))
}

/// Reads a subset as far as that goes.
///
/// # Errors
/// Where the data folder does not have it.
pub(super) fn inspect(dir: &Path, subset: &str) -> Result<Inspected<Entry>> {
    match is_sharegpt(dir) {
        true => sharegpt::inspect(dir, subset),
        false => vlm4d::inspect(dir, subset),
    }
}

/// Gives each file one name in all `entries`.
pub(super) fn name_files(dir: &Path, entries: &mut [Entry]) {
    let media = entries.iter_mut().flat_map(|entry| &mut entry.media);
    name_alike(dir, media.flat_map(Medium::files_mut).collect());
}

/// Gives each of `entries` its cluster: that of the first entry that it is tied to.
fn tie(entries: &mut [Entry]) {
    let mut ties = Ties::new(entries.iter().map(Entry::names));
    let mut videos: BTreeMap<&OsStr, String> = BTreeMap::new();
    let clusters = entries.iter().map(|entry| {
        let tied = ties.first(entry.names()[0]);
        let first = videos.entry(tied).or_insert_with(|| entry.video());
        Some(first.clone()).filter(|first| *first != entry.video())
    });
    let clusters: Vec<Option<String>> = clusters.collect();
    entries.iter_mut().zip(clusters).for_each(|(entry, cluster)| entry.cluster = cluster);
}

/// SHA-256 over what [`read`] takes `subsets` from: their files, and what `dataset_info.json` says
/// of them. What else lies in the folder does not count.
///
/// # Errors
/// A file that is missing.
pub fn sha256(dir: &Path, subsets: &[String]) -> Result<String> {
    let mut parts = String::new();
    for subset in subsets {
        let (about, file) = match is_sharegpt(dir) {
            true => dataset_info::source(dir, subset)?,
            false => (String::new(), vlm4d::find(dir, subset)?),
        };
        let _ = writeln!(parts, "{subset} {about} {}", hash::file(&file)?);
    }
    Ok(hash::text(&parts))
}

/// Whether the data folder `dir` is one of LLaMA-Factory's.
pub fn is_sharegpt(dir: &Path) -> bool {
    dir.join(dataset_info::INFO).is_file()
}

/// `subsets`, or all that the data folder `dir` has where none are named.
///
/// # Errors
/// Where there is no such folder, or nothing in it.
pub fn subsets_or_all(dir: &Path, subsets: &[String]) -> Result<Vec<String>> {
    check_folder(dir)?;
    if !subsets.is_empty() {
        return Ok(subsets.to_vec());
    }
    let all = match is_sharegpt(dir) {
        true => dataset_info::names(dir)?.0,
        false => vlm4d::subsets(dir),
    };
    if all.is_empty() {
        return Err(Error::input(format!("{}: holds no questions", dir.display())).help(LAYOUT));
    }
    Ok(all)
}

const LAYOUT: &str =
    "give a folder with QA/real_mc.json, or own files so named, or with a dataset_info.json";

fn check_folder(dir: &Path) -> Result<()> {
    match dir.is_dir() {
        true => Ok(()),
        false => Err(Error::input(format!("{}: no such folder", dir.display())).help(LAYOUT)),
    }
}

/// Checks that every video and image is there.
///
/// # Errors
/// Names the first that is not, how many more are missing, and a question that needs it.
pub fn check_media<'a>(dir: &Path, entries: impl Iterator<Item = &'a Entry>) -> Result<()> {
    let mut missing: Vec<(&PathBuf, Kind, &Entry, String)> = Vec::new();
    let mut seen = BTreeSet::new();
    for entry in entries {
        for medium in &entry.media {
            for path in medium.files().iter().filter(|path| seen.insert(*path)) {
                match std::fs::metadata(dir.join(path)) {
                    Ok(found) if found.is_file() => {}
                    Ok(_) => missing.push((path, medium.kind(), entry, "is no file".into())),
                    Err(e) => missing.push((path, medium.kind(), entry, io_reason(&e))),
                }
            }
        }
    }
    let Some((path, kind, entry, why)) = missing.first() else { return Ok(()) };
    let more = more(missing.len() - 1);
    let path = dir.join(path);
    Err(Error::input(format!("{}: {why}{more}, used by `{}`", path.display(), entry.id)).help(
        format!(
            "put the {}s into {}, or leave \"{}\" out of data.train and data.test",
            kind.name(),
            dir.display(),
            entry.subset
        ),
    ))
}

impl Entry {
    /// Whether it is a conversation: freeform, and learnt in its own words.
    pub fn is_conversation(&self) -> bool {
        !self.messages.is_empty()
    }

    /// Its media as they are shown.
    pub fn shown(&self) -> Vec<Shown> {
        Shown::all(&self.media, self.variant)
    }

    /// Whether it shows a video.
    pub fn has_video(&self) -> bool {
        self.media.iter().any(Medium::is_video)
    }

    /// The same entry about its media mirrored: left and right change places in all its texts.
    ///
    /// # Errors
    /// Why it has to be left alone: see [`mirror`].
    pub fn mirrored(&self) -> Result<Self, Why> {
        if self.media.is_empty() {
            return Err(Why::NoMedia);
        }
        let mut mirrored = Self { variant: Variant::Mirrored, ..self.clone() };
        let mut texts = mirrored.texts();
        let plain: Vec<&str> = texts.iter().map(|text| text.as_str()).collect();
        let exchanged = mirror(&plain)?;
        texts.iter_mut().zip(exchanged).for_each(|(text, exchanged)| **text = exchanged);
        if self.is_conversation() {
            (mirrored.question, mirrored.gold) = last_turns(&mirrored.messages);
        }
        Ok(mirrored)
    }

    /// All that it says.
    fn texts(&mut self) -> Vec<&mut String> {
        if self.is_conversation() {
            let parts = self.messages.iter_mut().flat_map(|message| &mut message.content);
            return parts.filter_map(Content::text_mut).collect();
        }
        [&mut self.question, &mut self.gold].into_iter().chain(&mut self.choices).collect()
    }

    /// The same entry with its choices in the order `order`: choice `i` is what choice `order[i]`
    /// was.
    ///
    /// # Panics
    /// Where `order` is not one of the choices' positions.
    pub fn with_choices(&self, order: &[usize]) -> Self {
        assert_eq!(order.len(), self.choices.len(), "an order of the choices");
        let is_gold = |i: &usize| self.gold_choices.contains(&order[*i]);
        Self {
            choices: order.iter().map(|&i| self.choices[i].clone()).collect(),
            gold_choices: (0..order.len()).filter(is_gold).collect(),
            ..self.clone()
        }
    }

    /// Those of `formats` in which this can be asked.
    pub fn formats(&self, formats: &[Format]) -> Vec<Format> {
        match self.is_conversation() {
            true => vec![Format::Ff],
            false => formats.to_vec(),
        }
    }

    /// The turns before the answer; without `video` its place is left out.
    pub fn prompt(&self, format: Format, style: PromptStyle, video: bool) -> Vec<Message> {
        let mut messages = if let Some((_, before)) = self.messages.split_last() {
            before.to_vec()
        } else {
            let text = vlm4d::prompt(&self.question, &self.choices, format, style);
            vec![Message::new("user", [Content::Video, Content::Text(text)])]
        };
        if !video {
            for message in &mut messages {
                message.content.retain(|part| *part != Content::Video);
            }
        }
        messages
    }

    /// The whole conversation to learn; a question is answered with the (first) gold letter, or the
    /// text.
    pub fn training(&self, format: Format) -> Vec<Message> {
        if self.is_conversation() {
            return self.messages.clone();
        }
        let answer = match format {
            Format::Mc => vlm4d::letter(self.gold_choices[0]).to_string(),
            Format::Ff => self.gold.clone(),
        };
        let mut messages = self.prompt(format, PromptStyle::Do, true);
        messages.push(Message::new("assistant", [Content::Text(answer)]));
        messages
    }

    /// The names of the files that it shows; its own where it shows nothing.
    pub(super) fn names(&self) -> Vec<&OsStr> {
        match self.media.is_empty() {
            true => vec![OsStr::new(&self.id)],
            false => self.media.iter().flat_map(Medium::names).collect(),
        }
    }

    /// The name under which the entry is counted: of its first video, whatever the order shown, else
    /// of its first image; its own where it shows nothing.
    pub fn video(&self) -> String {
        let first = self.media.iter().min_by_key(|medium| (!medium.is_video(), *medium));
        first.map_or_else(|| self.id.clone(), Medium::to_string)
    }
}

/// What is asked last, and the answer to it.
pub(super) fn last_turns(messages: &[Message]) -> (String, String) {
    let last = |role: &str| {
        let message = messages.iter().rev().find(|message| message.role == role);
        let texts = message.into_iter().flat_map(|message| &message.content);
        texts.filter_map(Content::text).collect::<String>().trim().to_owned()
    };
    (last("user"), last("assistant"))
}
