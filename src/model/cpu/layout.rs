//! How tensors lie in memory.

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Shape};

/// Numbers in memory order as a tensor.
pub fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), DType::F32)
}

/// The numbers of a tensor whose elements lie side by side, row by row.
#[derive(Clone, Debug)]
pub struct Dense(pub FlexTensor);

impl Dense {
    pub fn new(x: FlexTensor) -> Self {
        Self(if x.is_contiguous() { x } else { x.to_contiguous() })
    }

    pub fn values(&self) -> &[f32] {
        self.0.as_slice().expect("contiguous f32, by construction")
    }

    pub fn shape(&self) -> Shape {
        self.0.layout().shape().clone()
    }

    /// Rows and their length.
    pub fn rows(&self) -> [usize; 2] {
        let shape = self.0.layout().shape();
        let d = shape[shape.num_dims() - 1];
        [self.0.layout().num_elements() / d.max(1), d]
    }

    /// The numbers, to be changed: in place where nothing else needs them, else a copy.
    pub fn values_mut(&mut self) -> &mut [f32] {
        let span = self.0.layout().contiguous_offsets();
        let (start, end) = span.expect("contiguous, by construction");
        &mut self.0.storage_mut()[start..end]
    }
}

/// A four-dimensional tensor whose rows of `dims[3]` numbers lie anywhere in its storage.
#[derive(Clone, Debug)]
pub struct Rows {
    tensor: FlexTensor,
    pub dims: [usize; 4],
    pub strides: [usize; 3],
}

impl Rows {
    pub fn new(x: FlexTensor) -> Self {
        let strides = x.layout().strides();
        let dense = strides[3] == 1 && strides.iter().all(|stride| *stride >= 0);
        let tensor = if dense { x } else { x.to_contiguous() };
        let strides = [0, 1, 2].map(|i| tensor.layout().strides()[i] as usize);
        let dims = tensor.layout().shape().dims();
        Self { tensor, dims, strides }
    }

    /// The storage from row `(i, j, k)` on.
    pub fn from(&self, i: usize, j: usize, k: usize) -> &[f32] {
        let [a, b, c] = self.strides;
        &self.tensor.storage()[self.tensor.layout().start_offset() + i * a + j * b + k * c..]
    }
}
