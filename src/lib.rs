//! Fine-tunes Qwen2-VL and Qwen2.5-VL on questions about motion in video, and measures freeform
//! and multiple-choice accuracy before and after.
//!
//! Read in the order in which data flows: [`recipe`], [`run`], [`data`], [`features`], [`model`],
//! [`train`], [`eval`], [`report`], [`export`].
#![deny(missing_docs)]

pub mod cli;
pub mod data;
pub mod device;
pub mod error;
pub mod eval;
pub mod export;
pub mod features;
pub mod files;
pub mod hash;
pub mod interrupt;
pub mod lanes;
pub mod model;
mod number;
mod parallel;
mod places;
pub mod recipe;
pub mod report;
pub mod run;
pub mod train;
