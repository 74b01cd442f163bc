//! Fine-tunes Qwen2-VL and Qwen2.5-VL on questions about motion in video, and measures freeform
//! and multiple-choice accuracy before and after.
#![deny(missing_docs)]

pub mod data;
pub mod error;
pub mod eval;
pub mod files;
pub mod model;
pub mod recipe;
pub mod train;
