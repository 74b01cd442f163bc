//! Evaluation: responses, their grades and what they amount to.

pub mod generate;
pub mod grade;
pub mod metrics;
pub mod predict;
pub mod stats;
