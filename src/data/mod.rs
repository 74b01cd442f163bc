//! Questions, videos and conversations → what the model reads.

pub mod cache;
pub mod chat;
pub mod demo;
pub mod entry;
pub mod hub;
pub mod processor;
pub mod sharegpt;
pub mod split;
pub mod variant;
pub mod video;
pub mod vlm4d;
