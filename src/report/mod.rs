//! What people read: the terminal and the report.

pub mod markdown;
pub mod terminal;
