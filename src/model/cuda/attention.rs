//! Attention by burn's fused kernels, without its autotune.
//!
//! burn has some 280 kernels compiled for each shape of attention before it chooses one, and some
//! of them, unrolled over a head of 128, take minutes each. Here one routine does all: the one
//! that burn lists first, at its own default. Its kernels take any number of tokens, so a model
//! has two for each of its towers that answers, and three more that learns.

use burn::backend::Cuda;
use burn::backend::ops::{FloatTensorOps, ModuleOps};
use burn::tensor::DType;
use burn::tensor::ops::AttentionModuleOptions;
use cubek::attention::kernels::{
    AttentionRoutine, AttentionScoring, AttentionTensors, AttentionVisibility,
    CubeStagedAttentionRoutine, QueryPlacement,
};
use cubek::attention_backward::AttentionBackwardTensors;
use cubek::attention_backward::kernels::{
    AttentionBackwardRoutine, CubeStagedAttentionBackwardRoutine,
};
use cubek::cubecl::ir::{ElemType, UIntKind};
use cubek::cubecl::std::tensor::TensorHandle;
use cubek::matmul::kernels::tensor::PlainTensor;
use cubek::std::Hardware;
use cubek::std::routine::Routine;

use super::Primitive;
use super::layout::{elem, like};
use crate::model::record::Operation;

/// Scaled dot-product attention with grouped key and value heads.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Whether query `i` sees the keys up to `s - t + i` alone.
    pub causal: bool,
}

/// Queries, keys, values, the output, and `log Σ e^score` of each query, `[b, heads, t]`, f32.
type Saved = [Primitive; 5];

impl Operation<3, Cuda> for Attention {
    type Saved = Saved;

    fn forward(&self, [q, k, v]: [Primitive; 3]) -> (Primitive, Saved) {
        let (y, log_sums) = self.by_routine([&q, &k, &v]).unwrap_or_else(|| {
            let options = self.options();
            Cuda::attention_with_logsumexp(q.clone(), k.clone(), v.clone(), options)
        });
        (y.clone(), [q, k, v, y, log_sums])
    }

    fn backward(&self, saved: Saved, gradient: Primitive, _: [bool; 3]) -> [Option<Primitive>; 3] {
        let found = self.gradients_by_routine(&saved, &gradient).unwrap_or_else(|| {
            let [q, k, v, y, log_sums] = saved;
            let options = self.options();
            let found = Cuda::attention_backward(q, k, v, y, log_sums, gradient, options);
            [found.query_grad, found.key_grad, found.value_grad]
        });
        found.map(Some)
    }
}

impl Attention {
    fn options(&self) -> AttentionModuleOptions {
        AttentionModuleOptions { is_causal: self.causal, ..Default::default() }
    }

    fn visibility(&self) -> AttentionVisibility {
        AttentionVisibility::new(self.causal, None, QueryPlacement::Last)
    }

    /// The output and `log Σ e^score`; nothing where the routine does not serve these shapes or
    /// this GPU.
    fn by_routine(&self, [q, k, v]: [&Primitive; 3]) -> Option<(Primitive, Primitive)> {
        let (client, [b, _, _, d], s) = (&q.client, q.meta.shape().dims(), k.meta.shape()[2]);
        let lengths = vec![s as u32; b].into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
        let lengths = TensorHandle::new_contiguous(
            vec![b],
            client.create_from_slice(&lengths),
            ElemType::UInt(UIntKind::U32),
        );
        let scoring = AttentionScoring::standard(self.visibility(), d);
        let [pq, pk, pv] = [q, k, v].map(plain);
        let lengths = PlainTensor::of_handle(lengths);
        let tensors = AttentionTensors::new(client, pq, pk, pv, lengths, scoring).ok()?;
        let tensors = tensors.with_logsumexp();
        let log_sums = tensors.logsumexp()?;
        let (routine, hardware) = (CubeStagedAttentionRoutine, Hardware::from_client(client));
        let (blueprint, grid) = routine.prepare_first_served(&hardware, &tensors.problem()).ok()?;
        let binding = tensors.bind(&blueprint, &grid);
        routine.dispatch(&tensors, binding, blueprint, grid);
        // `[b, t, heads, d]` in memory.
        let y = Cuda::float_swap_dims(like(q, tensors.into_out(), DType::BF16), 1, 2);
        Some((y, like(q, log_sums, DType::F32)))
    }

    /// The gradients of queries, keys and values.
    fn gradients_by_routine(&self, saved: &Saved, gradient: &Primitive) -> Option<[Primitive; 3]> {
        let [q, k, v, y, log_sums] = saved;
        let client = &q.client;
        let d = q.meta.shape()[3];
        let [pq, pk, pv, py, pg] = [q, k, v, y, gradient].map(plain);
        let sums = log_sums.clone().binding();
        let sums = PlainTensor::new(sums, elem(DType::F32));
        let scale = 1.0 / (d as f32).sqrt();
        let tensors = AttentionBackwardTensors::new(
            client,
            pq,
            pk,
            pv,
            py,
            pg,
            sums,
            scale,
            self.visibility(),
        );
        let tensors = tensors.ok()?;
        let (routine, hardware) =
            (CubeStagedAttentionBackwardRoutine, Hardware::from_client(client));
        let found = routine
            .settings(&hardware)
            .iter()
            .find_map(|settings| routine.launch_on(&hardware, tensors.clone(), settings).ok())?;
        Some([found.query, found.key, found.value].map(|x| like(q, x, DType::BF16)))
    }
}

/// `tensor` as cubek's kernels read it, where it lies.
fn plain(tensor: &Primitive) -> PlainTensor {
    PlainTensor::new(tensor.clone().binding(), elem(DType::BF16))
}
