//! Cross-entropy at the labelled positions, and how each token weighs in an optimiser step.

use burn::tensor::{DType, Int, Tensor, TensorData, activation::log_softmax};

use crate::data::chat::IGNORE_INDEX;
use crate::model::linear::cast;
use crate::recipe::Loss;

/// The positions whose next token is labelled, and those tokens.
///
/// `labels: [t]`, aligned with the input; position `i` predicts label `i + 1`.
pub fn predictions(labels: &[i64]) -> (Vec<i64>, Vec<i64>) {
    let next = labels.iter().enumerate().skip(1).filter(|(_, label)| **label != IGNORE_INDEX);
    next.map(|(i, label)| (i as i64 - 1, *label)).unzip()
}

/// How many tokens of `labels` are learned.
pub fn label_tokens(labels: &[i64]) -> usize {
    labels.iter().skip(1).filter(|label| **label != IGNORE_INDEX).count()
}

/// Negative log-likelihood of each target: `logits: [n, vocab]`, `targets: [n]` → `[n]`, f32.
pub fn cross_entropy(logits: Tensor<2>, targets: &[i64]) -> Tensor<1> {
    let n = targets.len();
    let data = TensorData::new(targets.to_vec(), [n, 1]);
    let targets = Tensor::<2, Int>::from_data(data, &logits.device().inner());
    log_softmax(cast(logits, DType::F32), 1).gather(1, targets).squeeze_dim::<1>(1).neg()
}

/// Sum of token losses, in f64.
pub fn total(losses: &[f32]) -> f64 {
    losses.iter().map(|loss| f64::from(*loss)).sum()
}

/// Weight of one token of each sample in the loss of an optimiser step.
///
/// `micro_batches` hold the label tokens of each sample; so do the weights. The weighted sum of
/// token losses is the step's loss, however the step was cut (but for [`Loss::MicroBatch`],
/// whose point that is).
pub fn token_weights(loss: Loss, micro_batches: &[Vec<usize>]) -> Vec<Vec<f64>> {
    let samples: usize = micro_batches.iter().map(Vec::len).sum();
    let tokens: usize = micro_batches.iter().flatten().sum();
    let weight = |sample: usize, micro_batch: &[usize]| match loss {
        Loss::Sample => 1.0 / (sample * samples) as f64,
        Loss::Token => 1.0 / tokens as f64,
        Loss::MicroBatch => 1.0 / (micro_batch.iter().sum::<usize>() * micro_batches.len()) as f64,
    };
    micro_batches.iter().map(|batch| batch.iter().map(|n| weight(*n, batch)).collect()).collect()
}
