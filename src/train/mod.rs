//! Training: loss → gradients → optimiser step, with its log and checkpoints.

pub mod batches;
pub mod board;
pub mod checkpoint;
pub mod gradients;
pub mod log;
pub mod loss;
pub mod optimiser;
pub mod schedule;
pub mod trainer;
pub mod validation;
