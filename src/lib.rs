//! Fine-tunes Qwen2-VL and Qwen2.5-VL on questions about motion in video, and measures freeform
//! and multiple-choice accuracy before and after.
#![deny(missing_docs)]

pub mod error;
pub mod model;
