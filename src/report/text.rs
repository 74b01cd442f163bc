//! Texts as a terminal, HTML and SVG take them.

/// Text without control characters, which a terminal obeys and XML forbids; spaces and line ends
/// stay. Source: XML 1.0, `Char`.
pub fn legible(text: &str) -> String {
    let is_legible = |c: char| match c {
        '\t' | '\n' | '\r' => true,
        '\u{fffe}' | '\u{ffff}' => false,
        _ => !c.is_control(),
    };
    text.chars().map(|c| if is_legible(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

/// Text as it may stand in HTML and SVG.
pub fn escape(text: &str) -> String {
    let text = legible(text);
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
