//! LLaMA-Factory's sharegpt data sets → conversations, as [`Entry`]s.
//!
//! A data folder holds `dataset_info.json`, which names each data set's file
//! (JSON or JSON lines) and how its columns and tags are called; what it leaves
//! out has LLaMA-Factory's defaults, also where `columns` or `tags` are given in
//! part, of which LLaMA-Factory then has no others. `<image>` and `<video>` in a
//! user's text stand for the media of the row, in order. A video is a file, or a list
//! of images, its frames.
//!
//! A media path counts from the data folder. Where no such file is there but one
//! counted from the folder above it is, that one is meant: LLaMA-Factory, run
//! beside its folder `data`, is given paths such as `data/a.mp4`. However a path is
//! spelled, and whichever links lead to it, a file has one name: a split by video
//! depends on it.
//! Source: LLaMA-Factory's `data/README.md` and its sharegpt converter.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::chat::{Content, Message};
use super::dataset_info::{INFO, Info, infos};
use super::entry::{Entry, last_turns};
use super::fault::{Fault, Inspected, fault, parse_json, read_text};
use super::medium::{Kind, Medium};
use super::names::name_in;
use crate::error::{Error, Result};

/// Reads a data set's rows as far as that goes.
///
/// # Errors
/// Where `dataset_info.json` does not describe the data set.
pub(super) fn inspect(data_dir: &Path, name: &str) -> Result<Inspected<Entry>> {
    let info_path = data_dir.join(INFO);
    let infos = infos(data_dir)?;
    let info = infos.get(name).ok_or_else(|| {
        let known: Vec<&str> = infos.keys().map(String::as_str).collect();
        Error::input(format!("{}: no data set `{name}`", info_path.display())).help(format!(
            "the file has {}; data.train and data.test name what is used",
            known.join(", ")
        ))
    })?;
    Ok(match Info::new(info) {
        Ok(info) => DataSet { name, data_dir, info }.read(),
        Err(fault) => Inspected::lost(info_path, fault.of(&format!("data set `{name}`"))),
    })
}

/// A data set while its file is read.
struct DataSet<'a> {
    name: &'a str,
    data_dir: &'a Path,
    info: Info,
}

impl DataSet<'_> {
    fn read(&self) -> Inspected<Entry> {
        let Inspected { path, items: rows, mut faults } =
            rows(self.data_dir.join(&self.info.file_name));
        let mut items = Vec::with_capacity(rows.len());
        for (i, row) in &rows {
            match self.conversation(*i, row) {
                Ok(conversation) => items.push(conversation),
                Err(fault) => faults.push(fault.of(&format!("row {i}"))),
            }
        }
        Inspected { path, items, faults }.not_empty()
    }

    fn conversation(&self, i: usize, row: &Value) -> Result<Entry, Fault> {
        self.check_tools(row)?;
        let messages = self.messages(row)?;
        let media = self.media(row, &messages)?;
        let (question, gold) = last_turns(&messages);
        Ok(Entry {
            id: format!("{}/{i}", self.name),
            subset: self.name.to_owned(),
            source: self.name.to_owned(),
            group: self.name.to_owned(),
            media,
            question,
            gold,
            messages,
            ..Entry::default()
        })
    }

    /// The media of a row, in the order of the markers in its messages.
    fn media(&self, row: &Value, messages: &[Message]) -> Result<Vec<Medium>, Fault> {
        let columns = &self.info.columns;
        let images = self.column(row, columns.images.as_deref(), Kind::Image)?;
        let videos = self.column(row, columns.videos.as_deref(), Kind::Video)?;
        let marked: Vec<Kind> =
            messages.iter().flat_map(|m| &m.content).filter_map(Content::kind).collect();
        for (files, kind) in [(&images, Kind::Image), (&videos, Kind::Video)] {
            let n = marked.iter().filter(|marked| **marked == kind).count();
            if n != files.len() {
                let (name, files) = (kind.name(), files.len());
                return Err(fault(
                    format!("{n} `<{name}>` in its messages, but {files} {name}(s)"),
                    "each needs its marker in a user's message, and dataset_info.json must name \
                     the column of the files; frames of one video form a list of their own",
                ));
            }
        }
        let (mut images, mut videos) = (images.into_iter(), videos.into_iter());
        let next = |kind| match kind {
            Kind::Image => images.next(),
            Kind::Video => videos.next(),
        };
        Ok(marked.into_iter().filter_map(next).collect())
    }

    /// Tools of a row are more than a conversation about media.
    fn check_tools(&self, row: &Value) -> Result<(), Fault> {
        let tools = self.info.columns.tools.as_ref().and_then(|column| row.get(column));
        let is_none = |tools: &Value| match tools {
            Value::String(text) => ["", "[]"].contains(&text.trim()),
            other => other.is_null() || *other == json!([]),
        };
        match tools.is_none_or(is_none) {
            true => Ok(()),
            false => Err(fault("has tools", "tool calls are not supported: leave the row out")),
        }
    }

    fn messages(&self, row: &Value) -> Result<Vec<Message>, Fault> {
        let column = &self.info.columns.messages;
        let rows = row
            .get(column)
            .and_then(Value::as_array)
            .ok_or_else(|| fault(format!("`{column}` is missing or no list"), ""))?;
        let mut messages = Vec::new();
        if let Some(system) = self.system(row)? {
            messages.push(Message::new("system", [Content::Text(system)]));
        }
        for (i, message) in rows.iter().enumerate() {
            let message = self.message(message).map_err(|f| f.of(&format!("message {i}")))?;
            // as in LLaMA-Factory, the row's own system message outweighs the column
            if message.role == "system" && i == 0 {
                messages.clear();
            }
            messages.push(message);
        }
        let n_system = usize::from(messages.first().is_some_and(|m| m.role == "system"));
        let turns = &messages[n_system..];
        let by_turns = turns
            .chunks(2)
            .all(|pair| matches!(pair, [q, a] if q.role == "user" && a.role == "assistant"));
        if turns.is_empty() || !by_turns {
            return Err(fault(
                "the messages are not user and assistant by turns",
                "a row is an optional system message, then a user's, then the assistant's, …",
            ));
        }
        let mut texts = turns.iter().flat_map(|m| &m.content).filter_map(Content::text);
        if texts.next_back().is_none_or(|text| text.trim().is_empty()) {
            return Err(fault(
                "the last answer is empty",
                "give it, or leave the row out: there is nothing in it to learn or to test",
            ));
        }
        // an empty one is none to LLaMA-Factory: the template's own takes its place
        if n_system == 1 && messages[0].content == [Content::Text(String::new())] {
            messages.remove(0);
        }
        Ok(messages)
    }

    /// The system message of the row's system column, if it has one.
    fn system(&self, row: &Value) -> Result<Option<String>, Fault> {
        let Some(column) = &self.info.columns.system else { return Ok(None) };
        match row.get(column) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => {
                Fault::no_pads(text).map_err(|f| f.of(&format!("`{column}`")))?;
                Ok(Some(text.clone()))
            }
            Some(_) => Err(fault(format!("`{column}` is not text"), "")),
        }
    }

    fn message(&self, message: &Value) -> Result<Message, Fault> {
        let tags = &self.info.tags;
        let text = |key: &str| {
            message
                .get(key)
                .and_then(Value::as_str)
                .ok_or_else(|| fault(format!("`{key}` is missing or not text"), ""))
        };
        let (role, content) = (text(&tags.role_tag)?, text(&tags.content_tag)?);
        Fault::no_pads(content)?;
        if role == tags.user_tag {
            return Ok(Message::new("user", parts(content)));
        }
        let role = match role {
            _ if role == tags.assistant_tag => "assistant",
            _ if role == tags.system_tag => "system",
            _ => {
                return Err(fault(
                    format!("unknown role `{role}`"),
                    "`tags` in dataset_info.json say how the roles are called; tool calls are not \
                     supported",
                ));
            }
        };
        if content.contains("<image>") || content.contains("<video>") {
            return Err(fault(
                "`<image>` or `<video>` outside the user's messages",
                "move the marker into a user's message",
            ));
        }
        Ok(Message::new(role, [Content::Text(content.to_owned())]))
    }

    /// The images or videos in a column.
    fn column(&self, row: &Value, column: Option<&str>, kind: Kind) -> Result<Vec<Medium>, Fault> {
        let Some(column) = column else { return Ok(Vec::new()) };
        let values = match row.get(column) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(values)) => values.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        let file = |value: &Value| match value.as_str() {
            Some(path) => self.resolve(Path::new(path)),
            None => Err(fault(format!("`{column}` holds what is not a path"), "")),
        };
        let medium = |value: &Value| match (kind, value) {
            (Kind::Image, _) => Ok(Medium::Image(file(value)?)),
            (Kind::Video, Value::Array(frames)) if frames.is_empty() => {
                Err(fault(format!("`{column}` holds a list without frames"), ""))
            }
            (Kind::Video, Value::Array(frames)) => {
                Ok(Medium::Frames(frames.iter().map(file).collect::<Result<_, _>>()?))
            }
            (Kind::Video, _) => Ok(Medium::Video(file(value)?)),
        };
        values.iter().map(medium).collect()
    }

    /// See this file's head for the rule.
    fn resolve(&self, path: &Path) -> Result<PathBuf, Fault> {
        let above = Path::new("..").join(path);
        let mut places = [path, &above].into_iter();
        let found = places.find(|place| self.data_dir.join(place).is_file());
        found.map(|place| name_in(self.data_dir, place)).ok_or_else(|| {
            fault(
                format!("{}: no such file", self.data_dir.join(path).display()),
                "paths count from the data folder, or else from the folder above it",
            )
        })
    }
}

/// A file's rows with their numbers.
fn rows(path: PathBuf) -> Inspected<(usize, Value)> {
    if path.is_dir() {
        let help = "put the rows into one file, and name it in `file_name`";
        return Inspected::lost(path, fault("is a folder", help));
    }
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if !["json", "jsonl"].contains(&ending) {
        let help = "convert the data set, and change `file_name` in dataset_info.json";
        return Inspected::lost(path, fault("not .json or .jsonl", help));
    }
    let text = match read_text(&path) {
        Ok(text) => text,
        Err(fault) => return Inspected::lost(path, fault),
    };
    if ending == "json" {
        return match parse_json(&text, 1) {
            Ok(Value::Array(rows)) => {
                let items = rows.into_iter().enumerate().collect();
                Inspected { path, items, faults: vec![] }
            }
            Ok(_) => Inspected::lost(path, fault("not a list of rows", ROWS)),
            Err(_) if text.lines().next().is_some_and(is_row) => {
                Inspected::lost(path, fault("holds a row on each line", "name it .jsonl"))
            }
            Err(fault) => Inspected::lost(path, Fault { help: ROWS, ..fault }),
        };
    }
    if text.trim_start().starts_with('[') {
        return Inspected::lost(path, fault("holds a list of rows", "name it .json"));
    }
    let mut read = Inspected { path, items: vec![], faults: vec![] };
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    for (i, (number, line)) in lines.enumerate() {
        match parse_json(line, number) {
            Ok(row) => read.items.push((i, row)),
            Err(fault) => read.faults.push(fault),
        }
    }
    read
}

/// What the file of a data set looks like.
const ROWS: &str = "a list of rows; JSON lines go into a file named .jsonl";

fn is_row(line: &str) -> bool {
    parse_json::<Map<String, Value>>(line, 1).is_ok()
}

/// A user's text, cut at the markers.
fn parts(text: &str) -> Vec<Content> {
    let mut parts = Vec::new();
    let mut rest = text;
    let markers = [("<image>", Content::Image), ("<video>", Content::Video)];
    let next = |rest: &str| {
        let found =
            markers.iter().filter_map(|(marker, kind)| Some((rest.find(marker)?, marker, kind)));
        found.min_by_key(|(at, ..)| *at).map(|(at, marker, kind)| (at, marker.len(), kind.clone()))
    };
    while let Some((at, length, kind)) = next(rest) {
        if at > 0 {
            parts.push(Content::Text(rest[..at].to_owned()));
        }
        parts.push(kind);
        rest = &rest[at + length..];
    }
    if !rest.is_empty() {
        parts.push(Content::Text(rest.to_owned()));
    }
    parts
}
