//! HTML pages that open anywhere: one file each, styles, pictures and data inside, no network.

mod questions;
pub mod run;
pub mod strip;

use std::path::{Component, Path};

use minijinja::{Environment, Value};

pub use self::questions::Media;

use crate::error::{Error, Result};
use crate::files::absolute;

const TEMPLATES: [(&str, &str); 3] = [
    ("page.html", include_str!("page.html")),
    ("compare.html", include_str!("compare.html")),
    ("report.html", include_str!("report.html")),
];

/// Fills a template of this folder.
///
/// # Errors
/// Where the template asks for what is not there.
pub fn render(template: &str, context: Value) -> Result<String> {
    let failed = |e: minijinja::Error| Error::run(format!("the page could not be made: {e:#}"));
    let mut environment = Environment::new();
    environment.add_global("style", include_str!("style.css"));
    environment.add_global("version", env!("CARGO_PKG_VERSION"));
    for (name, source) in TEMPLATES {
        environment.add_template(name, source).map_err(failed)?;
    }
    environment.get_template(template).and_then(|page| page.render(context)).map_err(failed)
}

/// The way from the folder `from` to `to`, as a link has it; both absolute or both relative to the
/// working directory.
pub fn relative(from: &Path, to: &Path) -> String {
    let (from, to) = (absolute(from), absolute(to));
    let parts = |path: &Path| -> Vec<String> {
        let named = path.components().filter(|c| *c != Component::CurDir);
        named.map(|c| c.as_os_str().to_string_lossy().into_owned()).collect()
    };
    let (from, to) = (parts(&from), parts(&to));
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n("..".to_owned(), from.len() - common);
    up.chain(to[common..].iter().map(|part| encoded(part))).collect::<Vec<_>>().join("/")
}

/// A part of a path as a URL has it.
fn encoded(part: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    part.bytes()
        .map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
