//! How an operation with a backward pass of its own comes onto burn's tape, and how a gradient that
//! is known goes back along it.

#![allow(
    clippy::match_wildcard_for_single_variants,
    reason = "there are more variants with the feature `cuda`"
)]

use std::fmt::Debug;
use std::marker::PhantomData;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{
    Autodiff, AutodiffBackend, Backend, BackendTensor, DispatchAutodiffContext, DispatchTensor,
    DispatchTensorKind, Flex, TensorMetadata,
};
use burn::tensor::{self, Tensor};

type Taped<B> = FloatTensor<Autodiff<B>>;

/// A backend on which operations are recorded.
pub trait Recording: Backend {
    /// A tensor of it, as one of any backend.
    fn into_kind(tensor: BackendTensor<Self>) -> DispatchTensorKind;

    /// What [`into_kind`](Self::into_kind) was given.
    fn from_kind(kind: DispatchTensorKind) -> BackendTensor<Self>;
}

impl Recording for Flex {
    fn into_kind(tensor: BackendTensor<Self>) -> DispatchTensorKind {
        DispatchTensorKind::Flex(tensor)
    }

    fn from_kind(kind: DispatchTensorKind) -> BackendTensor<Self> {
        match kind {
            DispatchTensorKind::Flex(tensor) => tensor,
            _ => unreachable!("callers ask where a tensor is first"),
        }
    }
}

/// A function of `N` tensors, and its gradient.
pub trait Operation<const N: usize, B: Recording = Flex>: Clone + Debug + Send + 'static {
    /// What the backward pass needs of the forward pass.
    type Saved: Clone + Debug + Send + 'static;

    /// The output, and what [`backward`](Self::backward) needs.
    fn forward(&self, inputs: [FloatTensor<B>; N]) -> (FloatTensor<B>, Self::Saved);

    /// The gradients of the inputs that are `wanted`; `gradient` is the output's.
    fn backward(
        &self,
        saved: Self::Saved,
        gradient: FloatTensor<B>,
        wanted: [bool; N],
    ) -> [Option<FloatTensor<B>>; N];
}

/// Runs `operation`, on the tape where one of its inputs has one.
pub fn run<const N: usize, B: Recording, O: Operation<N, B>>(
    operation: O,
    inputs: [DispatchTensor; N],
) -> DispatchTensor {
    let context = inputs.iter().map(|input| input.autodiff);
    let enabled = context.clone().find(|c| *c != DispatchAutodiffContext::Disabled);
    let inputs = inputs.map(Input::<B>::new);
    let Some(context) = enabled else {
        let (output, _) = operation.forward(inputs.map(Input::untaped));
        let kind = B::into_kind(BackendTensor::Float(output));
        return DispatchTensor { kind, autodiff: DispatchAutodiffContext::Disabled };
    };
    let inputs = inputs.map(Input::taped);
    let nodes = inputs.each_ref().map(Taped::<B>::node);
    let inputs = inputs.map(Taped::<B>::into_primitive);
    let output = match Recorded::<B, O>(PhantomData)
        .prepare::<NoCheckpointing>(nodes)
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prepared) => {
            let (output, saved) = operation.forward(inputs);
            prepared.finish((operation, saved), output)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(operation.forward(inputs).0),
    };
    let kind = B::into_kind(BackendTensor::Autodiff(output));
    DispatchTensor { kind: DispatchTensorKind::Autodiff(Box::new(kind)), autodiff: context }
}

/// The gradients of all that `output` was made of; `gradient` is its own.
pub fn backward<const D: usize>(output: Tensor<D>, gradient: Tensor<D>) -> tensor::Gradients {
    #[cfg(feature = "cuda")]
    if super::cuda::holds(&output) {
        return from_output::<burn::backend::Cuda, D>(output, gradient);
    }
    from_output::<Flex, D>(output, gradient)
}

fn from_output<B: Recording, const D: usize>(
    output: Tensor<D>,
    gradient: Tensor<D>,
) -> tensor::Gradients {
    let gradient = Input::<B>::new(gradient.into_dispatch()).untaped();
    let root = run::<1, B, _>(Known::<B>(gradient), [output.into_dispatch()]);
    Tensor::<D>::from_dispatch(root).backward()
}

/// The root of a tape: the input's gradient is this one, whatever its own.
///
/// The sum over `input · gradient` has the same gradient, for two passes over memory each way.
#[derive(Clone, Debug)]
struct Known<B: Recording>(FloatTensor<B>);

impl<B: Recording> Operation<1, B> for Known<B> {
    type Saved = ();

    fn forward(&self, [x]: [FloatTensor<B>; 1]) -> (FloatTensor<B>, ()) {
        // One number, which nobody reads: burn begins with ones of the root's shape.
        let shape = vec![1; x.shape().num_dims()].into();
        (B::float_empty(shape, &x.device(), x.dtype().into()), ())
    }

    fn backward(&self, (): (), _: FloatTensor<B>, _: [bool; 1]) -> [Option<FloatTensor<B>>; 1] {
        [Some(self.0.clone())]
    }
}

/// The numbers of a tensor of integers, which never has a tape.
pub fn integers<B: Recording>(tensor: DispatchTensor) -> IntTensor<B> {
    held::<B>(tensor).int()
}

/// What a tensor on `B` holds, whether or not it may have a tape.
fn held<B: Recording>(tensor: DispatchTensor) -> BackendTensor<B> {
    B::from_kind(match tensor.kind {
        DispatchTensorKind::Autodiff(kind) => *kind,
        kind => kind,
    })
}

/// A tensor with or without a tape.
pub enum Input<B: Recording> {
    Plain(FloatTensor<B>),
    Taped(Taped<B>),
}

impl<B: Recording> Input<B> {
    /// Of a tensor on `B`.
    pub fn new(tensor: DispatchTensor) -> Self {
        match held::<B>(tensor) {
            BackendTensor::Autodiff(tensor) => Self::Taped(tensor),
            tensor => Self::Plain(tensor.float()),
        }
    }

    /// Its numbers alone.
    pub fn untaped(self) -> FloatTensor<B> {
        match self {
            Self::Plain(tensor) => tensor,
            Self::Taped(tensor) => tensor.into_primitive(),
        }
    }

    fn taped(self) -> Taped<B> {
        match self {
            Self::Plain(tensor) => Autodiff::<B>::from_inner(tensor),
            Self::Taped(tensor) => tensor,
        }
    }
}

#[derive(Debug)]
struct Recorded<B, O>(PhantomData<(B, O)>);

impl<const N: usize, B: Recording, O: Operation<N, B>> Backward<B, N> for Recorded<B, O> {
    type State = (O, O::Saved);

    fn backward(self, ops: Ops<Self::State, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let (operation, saved) = ops.state;
        let found = operation.backward(saved, gradient, wanted);
        for (parent, gradient) in ops.parents.into_iter().zip(found) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                gradients.register::<B>(parent.id, gradient);
            }
        }
    }
}
