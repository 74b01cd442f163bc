//! Messages → `input_ids` and `labels`, as the checkpoint's own chat template
//! and tokenizer have them and as LLaMA-Factory labels them.
//!
//! The template is rendered up to each assistant turn and again through it: the
//! answer is what the second text adds. No marker is searched for, so a message
//! may spell `<|im_start|>assistant` without moving a label. Prompt and answer
//! are tokenised apart; the answer, `<|im_end|>` and the line end carry labels.
//! Each image or video is one pad token in the text and is widened to its number
//! of tokens among the ids.
//! Source: Qwen2-VL's chat template; LLaMA-Factory's supervised data processor.

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, context};

use super::medium::Kind;
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::files::{read_json, read_text};

/// The label of a token without a loss, `PyTorch`'s default.
pub const IGNORE_INDEX: i64 = -100;

/// What stands for an image and for a video in a model's text: no text of a data set may spell them.
const PADS: [&str; 2] = ["<|image_pad|>", "<|video_pad|>"];

/// The pad that a text spells, if it does: a model would take it for an image or a video.
pub(super) fn spelled_pad(text: &str) -> Option<&'static str> {
    PADS.into_iter().find(|pad| text.contains(pad))
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Text as it stands.
    Text(String),
    /// The next image.
    Image,
    /// The next video.
    Video,
}

impl Content {
    /// The text, where it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Image | Self::Video => None,
        }
    }

    /// The same, to be changed.
    pub(super) fn text_mut(&mut self) -> Option<&mut String> {
        match self {
            Self::Text(text) => Some(text),
            Self::Image | Self::Video => None,
        }
    }

    /// What it is the place of, where it is no text.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Text(_) => None,
            Self::Image => Some(Kind::Image),
            Self::Video => Some(Kind::Video),
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// In the order in which the model reads them.
    pub content: Vec<Content>,
}

impl Message {
    /// A turn of `role`: `system`, `user` or `assistant`.
    pub fn new(role: &str, content: impl Into<Vec<Content>>) -> Self {
        Self { role: role.to_owned(), content: content.into() }
    }

    /// The form in which transformers hands messages to a template. A system
    /// message of text is a string there, everything else a list of parts.
    fn to_template(&self) -> Value {
        let content = match (&*self.role, &self.content[..]) {
            ("system", [Content::Text(text)]) => Value::from(text),
            _ => self.content.iter().map(part_to_template).collect(),
        };
        Value::from_pairs([("role", Value::from(&self.role)), ("content", content)])
    }
}

fn part_to_template(part: &Content) -> Value {
    match part {
        Content::Text(text) => {
            Value::from_pairs([("type", Value::from("text")), ("text", Value::from(text))])
        }
        Content::Image => Value::from_pairs([("type", Value::from("image"))]),
        Content::Video => Value::from_pairs([("type", Value::from("video"))]),
    }
}

/// A checkpoint's chat template.
pub struct ChatTemplate {
    jinja: Environment<'static>,
    path: PathBuf,
}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, else `chat_template.json`, else
    /// `tokenizer_config.json` of a checkpoint's folder. The first two come first
    /// because early tokenizer configs hold a template without images or videos.
    ///
    /// # Errors
    /// No template, or one that is no valid Jinja.
    pub fn load(checkpoint: &Path) -> Result<Self> {
        let path = checkpoint.join("chat_template.jinja");
        if path.is_file() {
            return Self::new(read_text(&path)?, path);
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let path = checkpoint.join(name);
            if path.is_file() {
                let config: serde_json::Value = read_json(&path)?;
                if let Some(source) = named_template(&config["chat_template"]) {
                    return Self::new(source.to_owned(), path);
                }
            }
        }
        Err(Error::input(format!("{}: no chat template", checkpoint.display())).help(
            "an instruction-tuned checkpoint has it in chat_template.jinja, chat_template.json or \
             tokenizer_config.json",
        ))
    }

    fn new(source: String, path: PathBuf) -> Result<Self> {
        let mut jinja = Environment::new();
        // transformers' settings, but an undefined name that would be printed is
        // an error instead of nothing
        jinja.set_undefined_behavior(UndefinedBehavior::SemiStrict);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let invalid = |e| Error::input(format!("{}: chat template: {e}", path.display()));
        jinja.set_syntax(syntax.map_err(invalid)?);
        jinja.add_function(
            "raise_exception",
            |message: String| -> Result<Value, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        jinja.add_template_owned("chat", source).map_err(invalid)?;
        Ok(Self { jinja, path })
    }

    /// The conversation as text; with `add_generation_prompt` it ends where the
    /// assistant begins to answer.
    ///
    /// # Errors
    /// What the template itself refuses, or asks for in vain.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let messages: Vec<Value> = messages.iter().map(Message::to_template).collect();
        self.jinja
            .get_template("chat")
            .and_then(|template| template.render(context! { messages, add_generation_prompt }))
            .map_err(|e| Error::input(format!("{}: chat template: {e}", self.path.display())))
    }
}

/// A template by itself, or the default one of a list of named ones.
fn named_template(value: &serde_json::Value) -> Option<&str> {
    match value {
        serde_json::Value::Array(named) => {
            named.iter().find(|t| t["name"] == "default").and_then(|t| t["template"].as_str())
        }
        one => one.as_str(),
    }
}

/// One conversation as the model is trained on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// All tokens, pads widened: `[seq]`.
    pub input_ids: Vec<u32>,
    /// The token itself where the assistant speaks, else [`IGNORE_INDEX`]:
    /// `[seq]`, not shifted.
    pub labels: Vec<i64>,
}

/// A checkpoint's template and tokenizer together.
pub struct Chat {
    /// Messages → text.
    pub template: ChatTemplate,
    /// Text → ids and back.
    pub tokenizer: Tokenizer,
    image_pad: u32,
    video_pad: u32,
}

impl Chat {
    /// Reads both from a checkpoint's folder.
    ///
    /// # Errors
    /// As [`ChatTemplate::load`] and [`Tokenizer::load`], or a tokenizer without
    /// image and video pads.
    pub fn load(checkpoint: &Path) -> Result<Self> {
        let tokenizer = Tokenizer::load(checkpoint)?;
        let [image_pad, video_pad] = PADS.map(|pad| tokenizer.token_id(pad));
        Ok(Self {
            template: ChatTemplate::load(checkpoint)?,
            image_pad: image_pad?,
            video_pad: video_pad?,
            tokenizer,
        })
    }

    /// A conversation with labels on every assistant turn. `media_tokens` has the
    /// number of tokens of each image and video, in the order of the messages.
    ///
    /// # Errors
    /// A conversation that does not end with the assistant, a template that
    /// rewrites earlier turns, or pads spelled in a text.
    pub fn encode_sft(&self, messages: &[Message], media_tokens: &[usize]) -> Result<Encoded> {
        let mut encoded = Encoded { input_ids: Vec::new(), labels: Vec::new() };
        for (text, supervised) in self.turns(messages)? {
            let ids = self.tokenizer.encode(&text)?;
            let label = |&id: &u32| if supervised { i64::from(id) } else { IGNORE_INDEX };
            encoded.labels.extend(ids.iter().map(label));
            encoded.input_ids.extend(ids);
        }
        let widths = self.widths(&encoded.input_ids, messages, media_tokens)?;
        Ok(Encoded {
            input_ids: widen(&encoded.input_ids, &widths),
            labels: widen(&encoded.labels, &widths),
        })
    }

    /// The ids of a conversation up to where the assistant answers next;
    /// `media_tokens` as for [`encode_sft`](Self::encode_sft).
    ///
    /// # Errors
    /// Pads spelled in a text.
    pub fn encode_prompt(&self, messages: &[Message], media_tokens: &[usize]) -> Result<Vec<u32>> {
        let ids = self.tokenizer.encode(&self.template.render(messages, true)?)?;
        Ok(widen(&ids, &self.widths(&ids, messages, media_tokens)?))
    }

    /// The conversation's text in pieces; true for what the assistant says.
    fn turns(&self, messages: &[Message]) -> Result<Vec<(String, bool)>> {
        if messages.last().is_none_or(|last| last.role != "assistant") {
            return Err(Error::input("the conversation does not end with an assistant message")
                .help("there is nothing to train on after the last answer"));
        }
        let mut pieces = Vec::new();
        let mut done = String::new();
        for (i, message) in messages.iter().enumerate() {
            if message.role != "assistant" {
                continue;
            }
            let before = self.template.render(&messages[..i], true)?;
            let after = self.template.render(&messages[..=i], false)?;
            let (Some(source), Some(answer)) =
                (before.strip_prefix(&done), after.strip_prefix(&before))
            else {
                return Err(Error::input(format!(
                    "{}: the chat template rewrites what stands before message {i}",
                    self.template.path.display()
                ))
                .help(
                    "training needs a template that only appends, and a first message that is not \
                     the assistant's",
                ));
            };
            pieces.push((source.to_owned(), false));
            pieces.push((answer.to_owned(), true));
            done = after;
        }
        Ok(pieces)
    }

    /// How often each token is repeated: pads as `media_tokens` says, others once.
    /// The pads must be those of the messages' media, kind by kind: a text that
    /// spells one would put another's features in the wrong place.
    fn widths(
        &self,
        ids: &[u32],
        messages: &[Message],
        media_tokens: &[usize],
    ) -> Result<Vec<usize>> {
        let is_pad = |id: &u32| *id == self.image_pad || *id == self.video_pad;
        let pads = ids.iter().copied().filter(is_pad);
        let media = messages.iter().flat_map(|m| &m.content).filter_map(|part| match part {
            Content::Text(_) => None,
            Content::Image => Some(self.image_pad),
            Content::Video => Some(self.video_pad),
        });
        let n_media = media.clone().count();
        if !pads.clone().eq(media) || n_media != media_tokens.len() {
            return Err(Error::input(format!(
                "the text has {} image and video pads, its messages {n_media} images and videos, \
                 of which {} are there",
                pads.count(),
                media_tokens.len()
            ))
            .help("no message may spell `<|image_pad|>` or `<|video_pad|>`"));
        }
        let mut media_tokens = media_tokens.iter();
        let width = |id| if is_pad(id) { media_tokens.next().copied().unwrap_or(1) } else { 1 };
        Ok(ids.iter().map(width).collect())
    }
}

/// Repeats each item as often as its width says.
fn widen<T: Copy>(items: &[T], widths: &[usize]) -> Vec<T> {
    items.iter().zip(widths).flat_map(|(&item, &n)| std::iter::repeat_n(item, n)).collect()
}
