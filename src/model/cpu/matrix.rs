//! Matrix products on any part of a slice.

use gemm::Parallelism;

/// A matrix within a slice: element `(i, j)` lies at `i · strides[0] + j · strides[1]`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    dims: [usize; 2],
    strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// `rows × columns` numbers whose rows start `stride` apart.
    pub fn new(data: &'a [f32], [rows, columns]: [usize; 2], stride: usize) -> Self {
        assert_fits(data.len(), [rows, columns], stride);
        Self { data, dims: [rows, columns], strides: [stride, 1] }
    }

    /// Its transpose, in the same place.
    pub fn transposed(self) -> Self {
        let ([rows, columns], [a, b]) = (self.dims, self.strides);
        Self { data: self.data, dims: [columns, rows], strides: [b, a] }
    }
}

/// A matrix that is written.
pub struct MatrixMut<'a> {
    data: &'a mut [f32],
    dims: [usize; 2],
    stride: usize,
}

impl<'a> MatrixMut<'a> {
    /// `rows × columns` numbers whose rows start `stride` apart.
    pub fn new(data: &'a mut [f32], [rows, columns]: [usize; 2], stride: usize) -> Self {
        assert_fits(data.len(), [rows, columns], stride);
        Self { data, dims: [rows, columns], stride }
    }
}

/// What becomes of the numbers that stand where a product is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Write {
    Over,
    Add,
}

/// Who works on a product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// This thread: the caller has divided the work already.
    One,
    All,
}

/// `scale · lhs·rhs` into `out`.
#[expect(clippy::needless_pass_by_value, reason = "`out` is a borrow")]
pub fn product(
    out: MatrixMut,
    (lhs, rhs): (Matrix, Matrix),
    scale: f32,
    write: Write,
    threads: Threads,
) {
    let ([m, n], [rows, k], [depth, columns]) = (out.dims, lhs.dims, rhs.dims);
    assert!(m == rows && n == columns && k == depth, "matrices of these shapes have no product");
    if m == 0 || n == 0 {
        return;
    }
    let parallelism = match threads {
        // Work under 4 M multiplications is done before a second thread has woken.
        Threads::All if m * n * k > 1 << 22 => Parallelism::Rayon(0),
        _ => Parallelism::None,
    };
    // SAFETY: that every element of the three matrices lies within its slice was asserted where
    // they were made, and `out` is borrowed for writing, so nothing else sees it.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.data.as_mut_ptr(),
            1,
            out.stride as isize,
            write == Write::Add,
            lhs.data.as_ptr(),
            lhs.strides[1] as isize,
            lhs.strides[0] as isize,
            rhs.data.as_ptr(),
            rhs.strides[1] as isize,
            rhs.strides[0] as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

fn assert_fits(len: usize, [rows, columns]: [usize; 2], stride: usize) {
    let needed = if rows * columns == 0 { 0 } else { (rows - 1) * stride + columns };
    assert!(columns <= stride || rows <= 1, "rows of {columns} overlap at a stride of {stride}");
    assert!(needed <= len, "a matrix of {rows} × {columns} needs {needed} numbers, not {len}");
}
