//! Questions, videos and conversations → what the model reads.

pub mod augment;
pub mod cache;
pub mod chat;
pub mod check;
pub mod dataset_info;
pub mod demo;
mod draw;
pub mod entry;
mod fault;
pub mod hub;
pub mod image;
pub mod medium;
pub mod mirror;
mod names;
pub mod preprocessor;
pub mod processor;
pub mod reader;
mod sharegpt;
pub mod split;
pub mod stats;
pub mod terms;
pub(crate) mod ties;
pub mod tokenizer;
pub mod variant;
pub mod video;
pub mod vlm4d;
