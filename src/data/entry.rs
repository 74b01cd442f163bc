//! What a run trains on and tests: VLM4D's questions or LLaMA-Factory's conversations, seen alike.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::chat::{Content, Message};
use super::dataset_info;
use super::medium::Medium;
use super::mirror::{Why, mirror};
use super::sharegpt::{self, Conversation};
use super::split::Item;
use super::variant::{Shown, Variant};
use super::vlm4d::{self, Format, PromptStyle, Question};
use crate::error::{Error, Result, more};
use crate::files::io_reason;
use crate::hash;

/// One question, to be asked in one or more formats.
#[derive(Clone, Debug)]
pub struct Entry {
    /// `real/validation_1`.
    pub id: String,
    /// `real`, `synthetic`, or the name of a data set.
    pub subset: String,
    /// Where its video comes from.
    pub source: String,
    /// The paper's group.
    pub group: String,
    /// What it shows, in order.
    pub media: Vec<Medium>,
    /// How they are shown.
    pub variant: Variant,
    /// The question's text.
    pub question: String,
    /// The choices' texts; none where the question has none.
    pub choices: Vec<String>,
    /// The gold answer's text.
    pub gold: String,
    /// Every choice that is right, counted from 0.
    pub gold_choices: Vec<usize>,
    ask: Ask,
}

#[derive(Clone, Debug)]
enum Ask {
    Question(Question),
    Conversation(Conversation),
}

/// Reads `subsets` of the data folder `dir`, in order; and what is worth telling of them, one line
/// each.
///
/// # Errors
/// A file that is missing or malformed, or data that cannot be used.
pub fn read(dir: &Path, subsets: &[String]) -> Result<(Vec<Entry>, Vec<String>)> {
    check_folder(dir)?;
    if is_sharegpt(dir) {
        let conversations = sharegpt::read(dir, subsets)?;
        return Ok((conversations.into_iter().map(Entry::from_conversation).collect(), vec![]));
    }
    let questions = vlm4d::read(dir, subsets)?;
    let notes = vlm4d::notes(&questions);
    Ok((questions.into_iter().map(Entry::from_question).collect(), notes))
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
    let mut missing: Vec<(&PathBuf, &Entry, String)> = Vec::new();
    let mut seen = BTreeSet::new();
    for entry in entries {
        for Medium { path, .. } in &entry.media {
            if !seen.insert(path) {
                continue;
            }
            match std::fs::metadata(dir.join(path)) {
                Ok(found) if found.is_file() => {}
                Ok(_) => missing.push((path, entry, "is no file".into())),
                Err(e) => missing.push((path, entry, io_reason(&e))),
            }
        }
    }
    let Some((path, entry, why)) = missing.first() else { return Ok(()) };
    let more = more(missing.len() - 1);
    let path = dir.join(path);
    Err(Error::input(format!("{}: {why}{more}, used by `{}`", path.display(), entry.id)).help(
        format!(
            "put the videos into {}, or leave \"{}\" out of data.train and data.test",
            dir.display(),
            entry.subset
        ),
    ))
}

impl Entry {
    pub(super) fn from_question(question: Question) -> Self {
        Self {
            id: question.id.clone(),
            subset: question.subset.clone(),
            source: question.source.clone(),
            group: question.group.clone(),
            media: vec![Medium::video(&question.video)],
            variant: Variant::Plain,
            question: question.question.clone(),
            choices: question.choices.clone(),
            gold: question.answer.clone(),
            gold_choices: question.gold.clone(),
            ask: Ask::Question(question),
        }
    }

    pub(super) fn from_conversation(conversation: Conversation) -> Self {
        let last = |role: &str| {
            let message = conversation.messages.iter().rev().find(|m| m.role == role);
            message.map(text_of).unwrap_or_default()
        };
        Self {
            id: conversation.id.clone(),
            subset: conversation.subset.clone(),
            source: conversation.subset.clone(),
            group: conversation.subset.clone(),
            media: conversation.media.clone(),
            variant: Variant::Plain,
            question: last("user"),
            choices: vec![],
            gold: last("assistant"),
            gold_choices: vec![],
            ask: Ask::Conversation(conversation),
        }
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
            return Err(Why::NoVideo);
        }
        let mirrored = match &self.ask {
            Ask::Question(question) => Self::from_question(question.mirrored()?),
            Ask::Conversation(conversation) => {
                let mut conversation = conversation.clone();
                let texts = conversation.messages.iter().flat_map(|m| &m.content);
                let texts: Vec<&str> = texts.filter_map(Content::text).collect();
                let mut texts = mirror(&texts)?.into_iter();
                for part in conversation.messages.iter_mut().flat_map(|m| &mut m.content) {
                    if let Content::Text(text) = part {
                        *text = texts.next().unwrap_or_default();
                    }
                }
                Self::from_conversation(conversation)
            }
        };
        Ok(Self { variant: Variant::Mirrored, ..mirrored })
    }

    /// The same entry with its choices in the order `order`: choice `i` is what choice `order[i]`
    /// was. A conversation has none and stays.
    ///
    /// # Panics
    /// Where `order` is not one of the choices' positions.
    pub fn with_choices(&self, order: &[usize]) -> Self {
        match &self.ask {
            Ask::Question(question) => {
                Self { variant: self.variant, ..Self::from_question(question.with_choices(order)) }
            }
            Ask::Conversation(_) => self.clone(),
        }
    }

    /// Those of `formats` in which this can be asked: a conversation is freeform.
    pub fn formats(&self, formats: &[Format]) -> Vec<Format> {
        match self.ask {
            Ask::Question(_) => formats.to_vec(),
            Ask::Conversation(_) => vec![Format::Ff],
        }
    }

    /// The turns before the answer; without `video` its place is left out.
    pub fn prompt(&self, format: Format, style: PromptStyle, video: bool) -> Vec<Message> {
        let mut messages = match &self.ask {
            Ask::Question(question) => {
                let text = vlm4d::prompt(&question.question, &question.choices, format, style);
                vec![Message::new("user", [Content::Video, Content::Text(text)])]
            }
            Ask::Conversation(conversation) => {
                let turns = &conversation.messages;
                turns[..turns.len().saturating_sub(1)].to_vec()
            }
        };
        if !video {
            for message in &mut messages {
                message.content.retain(|part| *part != Content::Video);
            }
        }
        messages
    }

    /// The whole conversation to learn.
    pub fn training(&self, format: Format) -> Vec<Message> {
        match &self.ask {
            Ask::Question(question) => {
                let answer = Content::Text(vlm4d::training_answer(question, format));
                let mut messages = self.prompt(format, PromptStyle::Do, true);
                messages.push(Message::new("assistant", [answer]));
                messages
            }
            Ask::Conversation(conversation) => conversation.messages.clone(),
        }
    }

    /// The file under which the entry is counted: the first video by name, whatever the order
    /// shown, else the first image; its own name where it shows nothing.
    pub fn video(&self) -> PathBuf {
        let first = self.media.iter().min_by_key(|medium| (!medium.is_video(), &medium.path));
        first.map_or_else(|| PathBuf::from(&self.id), |medium| medium.path.clone())
    }

    /// What the split has to know.
    pub fn item(&self) -> Item {
        Item {
            id: self.id.clone(),
            subset: self.subset.clone(),
            source: self.source.clone(),
            videos: match self.media.is_empty() {
                true => vec![PathBuf::from(&self.id)],
                false => self.media.iter().map(|medium| medium.path.clone()).collect(),
            },
            answer: self.gold.clone(),
        }
    }
}

fn text_of(message: &Message) -> String {
    let texts = message.content.iter().filter_map(Content::text);
    texts.collect::<String>().trim().to_owned()
}
