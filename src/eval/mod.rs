//! Evaluation: responses, their grades and what they amount to.

pub mod answer;
pub mod generate;
pub mod grade;
pub mod judge;
pub mod letters;
pub mod metrics;
pub mod predict;
pub mod rounds;
pub mod stats;
pub mod view;
