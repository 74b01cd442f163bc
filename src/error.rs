//! The one error type: what is wrong, where, and how to fix it.
//!
//! [`Error::input`] is the user's to mend and ends with exit code 2, before any
//! work; [`Error::run`] happened while running and ends with exit code 1.

use std::fmt;

use crate::number::thousands;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose error it is, and thereby the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The input is wrong: nothing was written, nothing is lost.
    Input,
    /// It broke while running: what was done can be resumed.
    Run,
    /// The device's memory is full; else as [`Kind::Run`].
    OutOfMemory,
    /// The user pressed Ctrl-C.
    Interrupted,
}

/// An error as the user reads it: `what` (`path:line:col: message`) and, where
/// there is one, a fix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    what: String,
    help: Option<String>,
    /// Whole key of the recipe that it is about, where one is known.
    key: Option<&'static str>,
}

impl Error {
    /// The input is wrong. `what` starts with the file's path where there is one.
    pub fn input(what: impl Into<String>) -> Self {
        Self { kind: Kind::Input, what: what.into(), help: None, key: None }
    }

    /// It broke while running.
    pub fn run(what: impl Into<String>) -> Self {
        Self { kind: Kind::Run, ..Self::input(what) }
    }

    /// The device failed; `reason` is what its library says, of which a trace of calls is left out.
    pub fn device(reason: &str) -> Self {
        // Of cubecl's `IoError`: a full device, and a tensor that never fits. What came after it on
        // the device failed too, and hides it in a long account.
        let full = ["out of device memory", "can't allocate buffer of size"];
        let places = full.iter().filter_map(|text| reason.find(text));
        if let Some(place) = places.min() {
            let line = reason[place..].lines().next().unwrap_or_default().trim();
            let what = format!("the device's memory is full: {line}");
            return Self { kind: Kind::OutOfMemory, ..Self::input(what) };
        }
        let is_trace = |line: &str| line.starts_with("Backtrace") || line.starts_with("0:");
        let lines = reason.lines().map(str::trim).filter(|line| !line.is_empty());
        let lines: Vec<&str> = lines.take_while(|line| !is_trace(line)).collect();
        Self::run(format!("the device failed: {}", lines.join(" ")))
    }

    /// Stopped by the user.
    pub fn interrupted(what: impl Into<String>) -> Self {
        Self { kind: Kind::Interrupted, ..Self::input(what) }
    }

    /// The same, said of the question `id`.
    #[must_use]
    pub fn of(self, id: &str) -> Self {
        self.at(&format!("`{id}`"))
    }

    /// The same with its `place` before it, as `path:line:col`.
    #[must_use]
    pub fn at(mut self, place: &str) -> Self {
        self.what = format!("{place}: {}", self.what);
        self
    }

    /// The same, said of the recipe's `key`, as `train.lr`: whoever has the recipe tells the line.
    #[must_use]
    pub fn of_key(mut self, key: &'static str) -> Self {
        self.key = Some(key);
        self
    }

    /// Adds how to fix it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Whose error it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What is wrong, without the fix.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Whole key of the recipe that it is about, where one is known.
    pub fn key(&self) -> Option<&'static str> {
        self.key
    }

    /// The fix, where one is known.
    pub fn fix(&self) -> Option<&str> {
        self.help.as_deref()
    }

    /// 2 for wrong input, 130 for Ctrl-C, else 1.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Input => 2,
            Kind::Run | Kind::OutOfMemory => 1,
            Kind::Interrupted => 130,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// ` (and 3 more)`; nothing of none.
pub fn more(n: usize) -> String {
    match n {
        0 => String::new(),
        n => format!(" (and {} more)", thousands(n)),
    }
}
