//! How an operation with a backward pass of its own comes onto burn's tape.

use std::fmt::Debug;
use std::marker::PhantomData;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, AutodiffBackend, BackendTensor, DispatchAutodiffContext, DispatchTensor,
    DispatchTensorKind, Flex,
};

type Taped = FloatTensor<Autodiff<Flex>>;

/// A function of `N` f32 tensors on the CPU, and its gradient.
pub trait Operation<const N: usize>: Clone + Debug + Send + 'static {
    /// What the backward pass needs of the forward pass.
    type Saved: Clone + Debug + Send + 'static;

    /// The output, and what [`backward`](Self::backward) needs.
    fn forward(&self, inputs: [FlexTensor; N]) -> (FlexTensor, Self::Saved);

    /// The gradients of the inputs that are `wanted`; `gradient` is the output's.
    fn backward(
        &self,
        saved: Self::Saved,
        gradient: FlexTensor,
        wanted: [bool; N],
    ) -> [Option<FlexTensor>; N];
}

/// Runs `operation`, on the tape where one of its inputs has one.
pub fn run<const N: usize, O: Operation<N>>(
    operation: O,
    inputs: [DispatchTensor; N],
) -> DispatchTensor {
    let context = inputs.iter().map(|input| input.autodiff);
    let enabled = context.clone().find(|c| *c != DispatchAutodiffContext::Disabled);
    let inputs = inputs.map(Input::new);
    let Some(context) = enabled else {
        let (output, _) = operation.forward(inputs.map(Input::untaped));
        let kind = DispatchTensorKind::Flex(BackendTensor::Float(output));
        return DispatchTensor { kind, autodiff: DispatchAutodiffContext::Disabled };
    };
    let inputs = inputs.map(Input::taped);
    let nodes = inputs.each_ref().map(Taped::node);
    let inputs = inputs.map(Taped::into_primitive);
    let output = match Recorded::<O>(PhantomData)
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
    let kind = DispatchTensorKind::Flex(BackendTensor::Autodiff(output));
    DispatchTensor { kind: DispatchTensorKind::Autodiff(Box::new(kind)), autodiff: context }
}

/// A tensor on the CPU, with or without a tape.
pub enum Input {
    Plain(FlexTensor),
    Taped(Taped),
}

impl Input {
    /// Of a tensor on the CPU.
    #[allow(
        clippy::match_wildcard_for_single_variants,
        reason = "there are more variants with the feature `cuda`"
    )]
    pub fn new(tensor: DispatchTensor) -> Self {
        let kind = match tensor.kind {
            DispatchTensorKind::Autodiff(kind) => *kind,
            kind => kind,
        };
        match kind {
            DispatchTensorKind::Flex(BackendTensor::Autodiff(tensor)) => Self::Taped(tensor),
            DispatchTensorKind::Flex(tensor) => Self::Plain(tensor.float()),
            _ => unreachable!("callers ask `runs` first"),
        }
    }

    /// Its numbers alone.
    pub fn untaped(self) -> FlexTensor {
        match self {
            Self::Plain(tensor) => tensor,
            Self::Taped(tensor) => tensor.into_primitive(),
        }
    }

    fn taped(self) -> Taped {
        match self {
            Self::Plain(tensor) => Autodiff::<Flex>::from_inner(tensor),
            Self::Taped(tensor) => tensor,
        }
    }
}

#[derive(Debug)]
struct Recorded<O>(PhantomData<O>);

impl<const N: usize, O: Operation<N>> Backward<Flex, N> for Recorded<O> {
    type State = (O, O::Saved);

    fn backward(self, ops: Ops<Self::State, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<Flex>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let (operation, saved) = ops.state;
        let found = operation.backward(saved, gradient, wanted);
        for (parent, gradient) in ops.parents.into_iter().zip(found) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                gradients.register::<Flex>(parent.id, gradient);
            }
        }
    }
}
