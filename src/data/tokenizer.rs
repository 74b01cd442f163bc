//! Text → ids and back, as the checkpoint's own tokenizer has them.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::error::{Error, Result};
use crate::files::{read_json, read_text};

/// Where words end, as Qwen2's tokenizer has it (it stands in tokenizer.json too).
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A checkpoint's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a checkpoint's folder, or where it is absent
    /// builds Qwen2's tokenizer from `vocab.json`, `merges.txt` and the added
    /// tokens of `tokenizer_config.json`.
    ///
    /// # Errors
    /// A file that is missing or malformed.
    pub fn load(checkpoint: &Path) -> Result<Self> {
        let path = checkpoint.join("tokenizer.json");
        if !path.is_file() {
            return Self::from_vocab(checkpoint);
        }
        let invalid = |e| Error::input(format!("{}: {e}", path.display()));
        let mut inner = tokenizers::Tokenizer::from_bytes(read_text(&path)?).map_err(invalid)?;
        // a file saved while training may hold a length to cut or pad to
        inner.with_truncation(None).map_err(invalid)?.with_padding(None);
        Ok(Self { inner, path })
    }

    fn from_vocab(checkpoint: &Path) -> Result<Self> {
        let [vocab, merges, config] =
            ["vocab.json", "merges.txt", "tokenizer_config.json"].map(|name| checkpoint.join(name));
        if let Some(missing) = [&vocab, &merges, &config].into_iter().find(|p| !p.is_file()) {
            return Err(Error::input(format!("{}: no such file", missing.display())).help(
                "a checkpoint has tokenizer.json, or vocab.json, merges.txt and \
                 tokenizer_config.json",
            ));
        }
        let words: HashMap<String, u32> = read_json(&vocab)?;
        let model = BPE::builder()
            .vocab_and_merges(words.into_iter().collect::<Vocab>(), read_merges(&merges)?)
            .build()
            .map_err(|e| Error::input(format!("{}: {e}", merges.display())))?;
        let inner = qwen2(model).map_err(|e| Error::input(format!("{}: {e}", vocab.display())))?;
        let mut tokenizer = Self { inner, path: vocab };
        tokenizer.add_tokens(&config)?;
        Ok(tokenizer)
    }

    /// Adds the tokens of `added_tokens_decoder` under the ids given there.
    fn add_tokens(&mut self, config: &Path) -> Result<()> {
        #[derive(Deserialize)]
        struct Config {
            added_tokens_decoder: BTreeMap<String, AddedToken>,
        }
        let Config { added_tokens_decoder } = read_json(config)?;
        let invalid = |what: String| Error::input(format!("{}: {what}", config.display()));
        let mut tokens = Vec::new();
        for (id, token) in added_tokens_decoder {
            let id: u32 = id.parse().map_err(|_| invalid(format!("`{id}` is no token id")))?;
            tokens.push((id, token));
        }
        tokens.sort_by_key(|(id, _)| *id);
        for (id, token) in tokens {
            let text = token.content.clone();
            self.inner.add_tokens([token]).map_err(|e| invalid(e.to_string()))?;
            if self.inner.token_to_id(&text) != Some(id) {
                return Err(invalid(format!("`{text}` cannot have the id {id}"))
                    .help("vocab.json and tokenizer_config.json come from different checkpoints"));
            }
        }
        Ok(())
    }

    /// The ids of a text, nothing added. A special token's spelling is that token.
    ///
    /// # Errors
    /// What the tokenizer cannot represent; a byte-level one has nothing such.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| self.error(&e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids, without special tokens where `skip_special`. Ids beyond
    /// the vocabulary have no text.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|e| self.error(&e))
    }

    /// The id of one token, such as `<|video_pad|>`.
    ///
    /// # Errors
    /// The tokenizer has no such token.
    pub fn token_id(&self, token: &str) -> Result<u32> {
        self.inner.token_to_id(token).ok_or_else(|| {
            Error::input(format!("{}: no token `{token}`", self.path.display()))
                .help("the checkpoint must be a Qwen2-VL or Qwen2.5-VL one")
        })
    }

    fn error(&self, e: &tokenizers::Error) -> Error {
        Error::run(format!("{}: {e}", self.path.display()))
    }
}

/// Qwen2's tokenizer around its merges.
fn qwen2(model: BPE) -> tokenizers::Result<tokenizers::Tokenizer> {
    let words = SplitPattern::Regex(QWEN2_WORDS.to_owned());
    let words = Split::new(words, SplitDelimiterBehavior::Isolated, false)?;
    let bytes = ByteLevel::new(false, false, false);
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_normalizer(Some(NFC))?;
    let steps: [PreTokenizerWrapper; 2] = [words.into(), bytes.into()];
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps.into())));
    tokenizer.with_decoder(Some(bytes));
    Ok(tokenizer)
}

/// The pairs of `merges.txt`, whose first line may be `#version: …`.
fn read_merges(path: &Path) -> Result<Vec<(String, String)>> {
    let text = read_text(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty());
    lines
        .filter(|(_, line)| !line.starts_with("#version"))
        .map(|(i, line)| match line.split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(Error::input(format!("{}:{}: not a pair", path.display(), i + 1))),
        })
        .collect()
}
