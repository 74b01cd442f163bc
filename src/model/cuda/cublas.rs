//! Products of matrices by NVIDIA's cuBLAS, in line with burn's kernels on their stream.
//!
//! Tensor cores of compute capability 9.0 reach their peak by `wgmma` alone
//! ([Luo et al. 2025](https://arxiv.org/abs/2501.12084)), which no kernel of burn's has. cuBLAS,
//! with which PyTorch multiplies, has kernels for each kind of GPU, and chooses without a trial.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::{PoisonError, RwLock};

use burn::backend::{BackTrace, StreamId};
use burn::tensor::DType;
use cubecl_cuda::CudaRuntime;
use cubecl_runtime::id::KernelId;
use cubecl_runtime::runtime::Runtime;
use cubecl_runtime::server::{BufferBinding, ServerError};
use cubecl_server::stream::{ExecuteScope, WriteScoped};
use cubek::cubecl::Device as CubeDevice;
use cubek::cubecl::client::Client;
use cubek::cubecl::device_handle::{CallResultExt, DeviceHandle};
use cubek::cubecl::zspace::metadata::Metadata;
use cudarc::cublas::result::{
    CublasError, create_handle, gemm_ex, gemm_strided_batched_ex, set_stream,
};
use cudarc::cublas::sys::{
    cublasComputeType_t, cublasGemmAlgo_t, cublasHandle_t, cublasMath_t, cublasOperation_t,
    cublasSetMathMode, cublasStatus_t, cudaDataType, is_culib_present,
};
use cudarc::driver::sys::CUDA_VERSION;

use super::Primitive;
use super::layout::empty_as;

/// What does burn's work on a GPU, in a thread of its own.
type Server = <CudaRuntime as Runtime>::Server;
/// The variable that leaves products to burn's kernels where it is `0`.
const SWITCH: &str = "VLM4D_CUBLAS";

thread_local! {
    /// cuBLAS's state for the GPU whose work this thread does; null before it is asked for.
    static STATE: Cell<cublasHandle_t> = const { Cell::new(std::ptr::null_mut()) };
}

/// Whether a GPU's products go to cuBLAS, or why they do not.
static USED: RwLock<Vec<(CubeDevice, Result<(), String>)>> = RwLock::new(vec![]);

/// Has products on `device` go to cuBLAS where there is one that multiplies there, or tells why they
/// do not. Tried once in a process for each GPU.
pub fn start(device: &CubeDevice) -> Result<(), String> {
    let mut used = USED.write().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, tried)) = used.iter().find(|(tried, _)| tried == device) {
        return tried.clone();
    }
    let tried = try_to_start(device);
    used.push((device.clone(), tried.clone()));
    tried
}

fn try_to_start(device: &CubeDevice) -> Result<(), String> {
    if std::env::var(SWITCH).is_ok_and(|value| value == "0") {
        return Err(format!("{SWITCH} is 0"));
    }
    // SAFETY: asks whether a library can be loaded, which runs its own start-up code alone.
    if !unsafe { is_culib_present() } {
        let package = if CUDA_VERSION < 13_000 { "nvidia-cublas-cu12" } else { "nvidia-cublas" };
        return Err(format!(
            "there is no libcublas.so (the CUDA toolkit has one, as `pip install {package}` \
                 has; LD_LIBRARY_PATH names its folder)"
        ));
    }
    let client = device.client();
    let started = server(&client).submit_blocking(|_| state().map(|_| ())).unwrap_or_resume();
    started.map_err(|e| match e.0 {
        cublasStatus_t::CUBLAS_STATUS_NOT_INITIALIZED => {
            "it does not start: is it for a newer CUDA than the driver?".into()
        }
        _ => said(e),
    })?;
    [DType::BF16, DType::F32].into_iter().try_for_each(|dtype| try_on(device, &client, dtype))
}

/// Multiplies a little: what starts need not have kernels for this GPU.
fn try_on(device: &CubeDevice, client: &Client, dtype: DType) -> Result<(), String> {
    const SIZE: usize = 16;
    let square = |dtype: DType| {
        let handle = client.create_from_slice(&[0; SIZE * SIZE * size_of::<f32>()]);
        let lying = Metadata::new([SIZE, SIZE], [SIZE, 1]);
        Primitive::new(client.clone(), handle, lying, device.clone(), dtype)
    };
    let (x, y) = (square(dtype), square(DType::F32));
    let call = Call::new(&x, &x).ok_or("it takes no squares")?;
    call.submit(&x, &x, &y);
    match client.read_one(y.handle) {
        Ok(_) => Ok(()),
        Err(e) => {
            let all = e.to_string();
            let line = all.lines().find(|line| line.contains("cuBLAS")).unwrap_or(&all);
            Err(format!("it does not multiply: {}", line.trim()))
        }
    }
}

/// Whether products on the GPU `device` go to cuBLAS.
pub fn is_used(device: &CubeDevice) -> bool {
    let used = USED.read().unwrap_or_else(PoisonError::into_inner);
    used.iter().any(|(tried, result)| tried == device && result.is_ok())
}

fn server(client: &Client) -> DeviceHandle<Server> {
    DeviceHandle::new(client.service_id().device)
}

/// `factor · lhs·rhs` as `dtype`: `[m, k]`, `[k, n]`, both bf16 or f32 → `[m, n]`; nothing where
/// cuBLAS is not used, or does not read them as they lie.
pub fn product(lhs: &Primitive, rhs: &Primitive, factor: f32, dtype: DType) -> Option<Primitive> {
    let call = Call::of(lhs, rhs).filter(|_| [lhs.dtype, DType::F32].contains(&dtype))?;
    let [n, m, _] = call.sizes.map(|size| size as usize);
    let y = empty_as(lhs, &[m, n].into(), dtype);
    Call { factor, ..call }.submit(lhs, rhs, &y);
    Some(y)
}

/// Adds `lhs·rhs` to `y`, which nothing else holds, and whose rows lie one behind the other:
/// `[m, k]`, `[k, n]`, `[m, n]`. Whether it did.
pub fn add_to(y: &Primitive, lhs: &Primitive, rhs: &Primitive) -> bool {
    let Some(call) = Call::of(lhs, rhs).filter(|_| y.is_contiguous()) else { return false };
    Call { kept: 1.0, ..call }.submit(lhs, rhs, y);
    true
}

/// Writes `factor · lhs·rhs` of each `b` to `y`: `[b, m, k]`, `[b, k, n]`, both bf16 or f32,
/// `[b, m, n]`, of that type or f32, each by rows or by columns, `y` by rows.
///
/// # Panics
/// Where cuBLAS is not used, or something lies otherwise.
pub fn write(y: &Primitive, lhs: &Primitive, rhs: &Primitive, factor: f32) {
    let call = Call::of(lhs, rhs).expect("cuBLAS is asked for first, and takes rows or columns");
    Call { factor, ..call }.submit(lhs, rhs, y);
}

/// How the numbers of `[b, rows, columns]` lie, or of `[rows, columns]`.
#[derive(Clone, Copy, Debug)]
struct Matrices {
    /// How many there are, their rows and their columns.
    shape: [usize; 3],
    /// Numbers from a matrix, row, column to the next.
    strides: [usize; 3],
}

impl Matrices {
    fn of(x: &Primitive) -> Self {
        let (shape, strides) = (x.meta.shape(), x.meta.strides());
        let last = |of: &[usize], first| {
            let [rows, columns] = [of[of.len() - 2], of[of.len() - 1]];
            [if of.len() == 3 { of[0] } else { first }, rows, columns]
        };
        Self { shape: last(shape, 1), strides: last(strides, 0) }
    }

    /// How the transpose is made of what lies there, read by columns, and how far its lines are
    /// apart.
    fn lines(self) -> Option<(cublasOperation_t, usize)> {
        let ([_, rows, columns], [_, down, across]) = (self.shape, self.strides);
        // Where there is one line, how far it is to the next is nothing.
        if across == 1 && (down >= columns || rows == 1) {
            return Some((cublasOperation_t::CUBLAS_OP_N, down.max(columns)));
        }
        let by_columns = down == 1 && (across >= rows || columns == 1);
        by_columns.then(|| (cublasOperation_t::CUBLAS_OP_T, across.max(rows)))
    }
}

/// A product as cuBLAS counts: by columns. What lies there by rows is the transpose, and `yᵀ` is
/// `rhsᵀ·lhsᵀ`.
#[derive(Clone, Copy, Debug)]
struct Call {
    /// Columns of `rhs`, rows of `lhs`, and what they share.
    sizes: [i32; 3],
    /// How `rhsᵀ` and `lhsᵀ` are made of what lies there.
    operations: [cublasOperation_t; 2],
    /// Numbers from one line of `rhs`, and of `lhs`, to the next.
    pitches: [i32; 2],
    /// How many products there are.
    batch: i32,
    /// What the product is multiplied by.
    factor: f32,
    /// What `y` is multiplied by before the product is added: 0 or 1.
    kept: f32,
}

/// Where a call reads and writes, and numbers of what types.
#[derive(Clone, Copy, Debug)]
struct Places {
    /// Numbers from one line of `y` to the next.
    pitch: i32,
    /// From one `rhs`, `lhs`, `y` to the next.
    strides: [i64; 3],
    /// Of what is read, and of `y`.
    types: [cudaDataType; 2],
}

impl Call {
    fn of(lhs: &Primitive, rhs: &Primitive) -> Option<Self> {
        is_used(&lhs.device).then(|| Self::new(lhs, rhs)).flatten()
    }

    fn new(lhs: &Primitive, rhs: &Primitive) -> Option<Self> {
        let (l, r) = (Matrices::of(lhs), Matrices::of(rhs));
        let meet = l.shape[2] == r.shape[1] && l.shape[0] == r.shape[0];
        if !meet || lhs.dtype != rhs.dtype {
            return None;
        }
        let [(of_rhs, rhs_pitch), (of_lhs, lhs_pitch)] = [r.lines()?, l.lines()?];
        let narrow = |size: usize| i32::try_from(size).ok().filter(|size| *size > 0);
        Some(Self {
            sizes: [narrow(r.shape[2])?, narrow(l.shape[1])?, narrow(l.shape[2])?],
            operations: [of_rhs, of_lhs],
            pitches: [narrow(rhs_pitch)?, narrow(lhs_pitch)?],
            batch: narrow(l.shape[0])?,
            factor: 1.0,
            kept: 0.0,
        })
    }

    /// Puts the product into `y`, which lies by rows, behind all work that was given to the GPU
    /// before.
    ///
    /// # Panics
    /// Where `y` has another shape, or lies otherwise.
    fn submit(self, lhs: &Primitive, rhs: &Primitive, y: &Primitive) {
        let into = Matrices::of(y);
        let by_rows = into.lines().filter(|(how, _)| *how == cublasOperation_t::CUBLAS_OP_N);
        let shape = [self.batch, self.sizes[1], self.sizes[0]].map(|size| size as usize);
        let (_, pitch) = by_rows.filter(|_| into.shape == shape).expect("a product's own place");
        let stream = StreamId::current();
        let buffers = [rhs, lhs, y].map(|x| x.handle.clone().binding());
        let places = Places {
            pitch: pitch as i32,
            strides: [rhs, lhs, y].map(|x| Matrices::of(x).strides[0] as i64),
            types: [lhs, y].map(|x| match x.dtype {
                DType::F32 => cudaDataType::CUDA_R_32F,
                _ => cudaDataType::CUDA_R_16BF,
            }),
        };
        server(&lhs.client).submit(move |server| {
            let read = if self.kept == 0.0 { &buffers[..2] } else { &buffers[..] };
            let into = vec![buffers[2].clone()];
            // What fails is held against `y`: who reads it is told.
            ExecuteScope::launching(server, KernelId::new::<Self>(), stream, read.iter(), into)
                .execute(|server| self.run(server, stream, &buffers, places));
        });
    }

    fn run(
        &self,
        server: &mut Server,
        stream: StreamId,
        buffers: &[BufferBinding; 3],
        places: Places,
    ) -> Result<(), ServerError> {
        let mut streams = server.write_streams().resolve(stream, buffers.iter())?;
        let mut pointers = [0; 3];
        for (pointer, buffer) in pointers.iter_mut().zip(buffers) {
            let memory = &mut streams.get(&buffer.stream).memory_management_gpu;
            let (start, end) = (buffer.offset_start, buffer.offset_end);
            *pointer = memory.get_resource(buffer.memory.clone(), start, end)?.ptr;
        }
        let queue = streams.current().sys;
        let state = state().map_err(failed)?;
        // SAFETY: the state and the stream live as long as the thread. The pointers are to buffers
        // that `streams` keeps, each as large as its tensor, whose strides the call was made of;
        // what is done to them later comes behind this on the stream.
        let done = unsafe {
            set_stream(state, queue.cast()).and_then(|()| self.gemm(state, pointers, places))
        };
        done.map_err(failed)
    }

    /// # Safety
    /// As `gemm_ex` and `gemm_strided_batched_ex`.
    unsafe fn gemm(
        &self,
        state: cublasHandle_t,
        pointers: [u64; 3],
        Places { pitch, strides, types: [read, written] }: Places,
    ) -> Result<(), CublasError> {
        let ([n, m, k], [how_rhs, how_lhs]) = (self.sizes, self.operations);
        let [rhs_pitch, lhs_pitch] = self.pitches;
        let [rhs, lhs, y] = pointers.map(|pointer| pointer as *mut c_void);
        let [factor, kept] = [&raw const self.factor, &raw const self.kept].map(<*const f32>::cast);
        let (f32, any) =
            (cublasComputeType_t::CUBLAS_COMPUTE_32F, cublasGemmAlgo_t::CUBLAS_GEMM_DFALT);
        // SAFETY: the caller's. The factors are read before the calls return.
        unsafe {
            if self.batch == 1 {
                return gemm_ex(
                    state, how_rhs, how_lhs, n, m, k, factor, rhs, read, rhs_pitch, lhs, read,
                    lhs_pitch, kept, y, written, pitch, f32, any,
                );
            }
            gemm_strided_batched_ex(
                state, how_rhs, how_lhs, n, m, k, factor, rhs, read, rhs_pitch, strides[0], lhs,
                read, lhs_pitch, strides[1], kept, y, written, pitch, strides[2], self.batch, f32,
                any,
            )
        }
    }
}

/// cuBLAS's state for this thread's GPU, made where there is none.
fn state() -> Result<cublasHandle_t, CublasError> {
    let found = STATE.get();
    if !found.is_null() {
        return Ok(found);
    }
    let made = create_handle()?;
    // Partial sums stay f32, as do products of f32: TF32 is another mode.
    let exact = cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    // SAFETY: the state was just made.
    unsafe { cublasSetMathMode(made, exact) }.result()?;
    STATE.set(made);
    Ok(made)
}

fn failed(error: CublasError) -> ServerError {
    ServerError::Generic { reason: said(error), backtrace: BackTrace::capture() }
}

fn said(error: CublasError) -> String {
    match error.0 {
        cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => "cuBLAS is out of device memory".into(),
        status => format!("cuBLAS says {status:?}"),
    }
}
