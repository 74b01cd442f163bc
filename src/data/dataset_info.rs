//! `dataset_info.json`: which data sets a folder of LLaMA-Factory's has, and how their columns and
//! tags are called.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::fault::{Fault, fault, parse_json, read_text};
use crate::error::Result;

/// The file that describes a folder's data sets.
pub const INFO: &str = "dataset_info.json";

/// The data sets of a folder that have a file in it, in the order of the alphabet, and those that
/// stand elsewhere.
///
/// # Errors
/// Where `dataset_info.json` cannot be read.
pub fn names(data_dir: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let infos = infos(data_dir)?;
    let is_here = |name: &String| infos[name].get("file_name").is_some_and(|file| !file.is_null());
    Ok(infos.keys().cloned().partition(is_here))
}

const SUPPORTED: &str =
    "conversations with videos and images, formatting = \"sharegpt\", are supported";

/// What `dataset_info.json` says of the data set `name`, and the file of its rows.
///
/// # Errors
/// Where it cannot be read.
pub fn source(data_dir: &Path, name: &str) -> Result<(String, PathBuf)> {
    let info = infos(data_dir)?.remove(name).unwrap_or_default();
    let file = info.get("file_name").and_then(Value::as_str).unwrap_or_default();
    Ok((info.to_string(), data_dir.join(file)))
}

pub(super) fn infos(data_dir: &Path) -> Result<Map<String, Value>> {
    let path = data_dir.join(INFO);
    let read = read_text(&path).and_then(|text| parse_json(&text, 1));
    read.map_err(|fault| fault.in_file(&path))
}

/// A data set's entry in `dataset_info.json`. What is unknown here would change
/// the data, so it is refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Info {
    pub file_name: String,
    #[serde(default)]
    pub columns: Columns,
    #[serde(default)]
    pub tags: Tags,
}

impl Info {
    /// Reads an entry.
    pub fn new(info: &Value) -> Result<Self, Fault> {
        let mut info = info.clone();
        remove_idle(&mut info);
        if info.get("file_name").is_none() {
            return Err(fault("has no `file_name`", "download the data set, and name its file"));
        }
        // LLaMA-Factory's default
        let formatting = info.as_object_mut().and_then(|info| info.remove("formatting"));
        match formatting.as_ref().map_or(Some("alpaca"), Value::as_str) {
            Some("sharegpt") => {}
            other => {
                let what = format!("`formatting` is `{}`", other.unwrap_or_default());
                return Err(fault(what, "only \"sharegpt\" is supported"));
            }
        }
        Self::deserialize(info).map_err(|e| {
            let text = e.to_string();
            match text.strip_prefix("unknown field ").and_then(|rest| rest.split_once(", ")) {
                Some((key, _)) => fault(format!("{key} is not supported"), remedy(key)),
                None => fault(text, SUPPORTED),
            }
        })
    }
}

/// What to do about a `key` that is not supported.
fn remedy(key: &str) -> &'static str {
    match key {
        "`num_samples`" => {
            "remove it from dataset_info.json: data.max_questions of a recipe limits what is trained on"
        }
        _ => "remove it from dataset_info.json",
    }
}

/// Removes what changes nothing of a data set in a file: what is null, as it is where it is left
/// out, LLaMA-Factory's defaults, and how roles are called that conversations here do not have.
fn remove_idle(info: &mut Value) {
    let Value::Object(info) = info else { return };
    info.retain(|key, value| {
        remove_idle(value);
        let is_idle = match &**key {
            "ranking" => *value == json!(false),
            "split" => *value == json!("train"),
            "observation_tag" | "function_tag" => true,
            _ => false,
        };
        !is_idle && !value.is_null()
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Columns {
    pub messages: String,
    pub system: Option<String>,
    pub tools: Option<String>,
    pub images: Option<String>,
    pub videos: Option<String>,
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            messages: "conversations".into(),
            system: None,
            tools: None,
            images: None,
            videos: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(clippy::struct_field_names)]
pub(super) struct Tags {
    pub role_tag: String,
    pub content_tag: String,
    pub user_tag: String,
    pub assistant_tag: String,
    pub system_tag: String,
}

impl Default for Tags {
    fn default() -> Self {
        Self {
            role_tag: "from".into(),
            content_tag: "value".into(),
            user_tag: "human".into(),
            assistant_tag: "gpt".into(),
            system_tag: "system".into(),
        }
    }
}
