//! Which samples of an optimiser step go through the model together, on a GPU.
//!
//! The host takes about as long for each kernel that it launches, whatever that works on, and a GPU
//! is done with a sample of a few hundred tokens before it is given the next. How a step is cut
//! changes neither loss nor gradient, so samples that are about as long are joined: as many as
//! `train.batch_size` says, and more while they take little memory.

use crate::model::config::TextConfig;

/// Bytes of activations that samples may take together although none does by itself: less than
/// the logits of a sample of 700 tokens, their loss and its gradient take in transformers.
const JOINED: usize = 1 << 30;

/// How many tokens may be joined, with `width` bytes a number.
pub fn tokens_at_once(text: &TextConfig, recompute: bool, width: usize) -> usize {
    let layers = text.num_hidden_layers;
    let a_token = match recompute {
        true => layers * text.hidden_size + 2 * text.tape(),
        false => (layers + 1) * text.tape(),
    };
    JOINED / (width * a_token)
}

/// Samples of `lengths` tokens dealt out to `lanes`: the longest first, each to the lane that has
/// fewest tokens by then, the first of several; by lane, indices in their order.
pub fn deal(lengths: &[usize], lanes: usize) -> Vec<Vec<usize>> {
    let mut dealt = vec![(0, vec![]); lanes.max(1)];
    for i in longest_first(lengths) {
        if let Some((tokens, own)) = dealt.iter_mut().min_by_key(|(tokens, _)| *tokens) {
            *tokens += lengths[i];
            own.push(i);
        }
    }
    let in_order = |(_, mut own): (usize, Vec<usize>)| {
        own.sort_unstable();
        own
    };
    dealt.into_iter().map(in_order).collect()
}

fn longest_first(lengths: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(lengths[*i]));
    order
}

/// Samples of `lengths` tokens as batches, each as long as its first, and longest: indices.
///
/// A batch has at most `samples` of them, or as many as there is room for in `tokens`; at least
/// three quarters of each are no padding.
pub fn batches(lengths: &[usize], samples: usize, tokens: usize) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for i in longest_first(lengths) {
        let joins = |batch: &&mut Vec<usize>| {
            let (n, longest) = (batch.len() + 1, lengths[batch[0]]);
            (n <= samples || n * longest <= tokens) && 4 * lengths[i] >= 3 * longest
        };
        match batches.last_mut().filter(joins) {
            Some(batch) => batch.push(i),
            None => batches.push(vec![i]),
        }
    }
    batches
}
