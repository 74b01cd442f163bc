//! A recipe's text: the recipe that it is, and errors that name the line and the fix.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Recipe;
use crate::error::{Error, Result};

/// A recipe's text and name, for errors.
pub(super) struct Source<'a> {
    pub(super) text: &'a str,
    pub(super) name: &'a str,
}

impl Source<'_> {
    fn at(&self, offset: usize, what: &str) -> Error {
        Error::input(what).at(&self.place(offset))
    }

    /// `path:line:col` of a byte of the text.
    fn place(&self, offset: usize) -> String {
        let before = &self.text[..offset.min(self.text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        format!("{}:{line}:{column}", self.name)
    }

    /// The recipe as it is written.
    pub(super) fn parse(&self) -> Result<Recipe> {
        toml::from_str(self.text).map_err(|e| self.parse_error(&e))
    }

    /// Whole numbers have 64 bits and a sign in TOML, and what a larger one was written into could
    /// not be read again.
    pub(super) fn check_whole_numbers(&self) -> Result<()> {
        toml::from_str::<toml::Table>(self.text).map(drop).map_err(|e| self.parse_error(&e))
    }

    /// The parser's error in our words.
    fn parse_error(&self, error: &toml::de::Error) -> Error {
        let message = error.message();
        let offset = error.span().map_or(0, |span| span.start);
        let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        if message.starts_with("unknown field") || message.starts_with("unknown variant") {
            let kind = if message.starts_with("unknown field") { "field" } else { "value" };
            let error = self.at(offset, &format!("unknown {kind} `{}`", quoted[0]));
            return error.help(suggestion(quoted[0], &quoted[1..]));
        }
        if let (true, Some(field)) = (message.starts_with("missing field"), quoted.first()) {
            let table = if *field == "path" { "model.path and data.path are required" } else { "" };
            let help =
                if table.is_empty() { format!("add [{field}] with `path`") } else { table.into() };
            return self.at(offset, &format!("`{field}` is missing")).help(help);
        }
        self.at(offset, &in_plain_words(message))
    }

    /// `path:line:col` of the deepest of `keys` that the text has.
    pub(super) fn place_of_key<'k>(&self, keys: impl IntoIterator<Item = &'k str>) -> String {
        let root = DeTable::parse(self.text).ok();
        let mut offset = 0;
        let mut table = root.as_ref().map(Spanned::get_ref);
        for key in keys {
            let Some((name, value)) =
                table.and_then(|t| t.iter().find(|(k, _)| *k.get_ref() == key))
            else {
                break;
            };
            offset = name.span().start;
            table = match value.get_ref() {
                DeValue::Table(inner) => Some(inner),
                _ => None,
            };
        }
        self.place(offset)
    }
}

/// The nearest of `options`, which are in small letters, or all of them.
fn suggestion(word: &str, options: &[&str]) -> String {
    let word = word.to_lowercase();
    let distance = |option: &str| strsim::damerau_levenshtein(&word, option);
    match options.iter().min_by_key(|option| distance(option)) {
        Some(option) if distance(option) <= 1 + word.len() / 3 => {
            format!("did you mean `{option}`?")
        }
        _ => format!(
            "one of {}",
            options.iter().map(|o| format!("`{o}`")).collect::<Vec<_>>().join(", ")
        ),
    }
}

/// The parser's message without the names of types in the program.
fn in_plain_words(message: &str) -> String {
    let words = [
        (
            "data did not match any variant of untagged enum TargetModules",
            "`target_modules` must be \"all-linear\", a list of names or a regular expression",
        ),
        (
            "data did not match any variant of untagged enum DeviceNames",
            "`device` must be \"auto\", \"cpu\", \"cuda:0\" or a list of GPUs, [\"cuda:0\", \"cuda:1\"]",
        ),
        (
            "data did not match any variant of untagged enum MaxQuestions",
            "`max_questions` must be a number, or numbers by subset: { real = 400 }",
        ),
        (
            "u64 value was too large",
            "the whole number is more than 9223372036854775807, TOML's largest",
        ),
        ("invalid type: ", "not "),
        ("invalid value: ", "not "),
        ("expected a string", "a text was expected"),
        ("expected a sequence", "a list was expected"),
        ("expected a boolean", "true or false was expected"),
        ("expected f64", "a number was expected"),
        ("expected usize", "a whole number of at least 0 was expected"),
        ("expected u64", "a whole number of at least 0 was expected"),
        ("floating point", "the number"),
        ("integer", "the whole number"),
        ("boolean", "the value"),
        ("string ", "the text "),
        ("sequence", "a list"),
        ("map", "a table"),
    ];
    let message = message.lines().collect::<Vec<_>>().join("; ");
    let in_ours = |part: &str| {
        words.iter().fold(part.to_owned(), |part, (theirs, ours)| part.replace(theirs, ours))
    };
    // What the user wrote stands between quotes, and stays as it is.
    let parts = message.split('"').enumerate();
    let parts = parts.map(|(i, part)| if i % 2 == 0 { in_ours(part) } else { part.to_owned() });
    let text = parts.collect::<Vec<_>>().join("\"");
    match text.split_once("expected struct ") {
        Some((before, _)) => format!("{before}a table was expected"),
        None => text,
    }
}
