//! What people read: the terminal, the report, and runs side by side.

pub mod accuracy;
pub mod compare;
pub mod controls;
pub mod data;
pub mod directions;
pub mod evaluation;
pub mod finished;
pub mod html;
pub mod markdown;
pub mod published;
pub mod split;
pub mod svg;
pub mod table;
pub mod terminal;
pub mod text;
