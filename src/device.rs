//! `model.device` and `model.dtype` → where and in what type the model runs.

pub mod cuda;

use burn::tensor::{DType, Device};

use crate::error::{Error, Result};
use crate::model::cpu;
use crate::recipe::{Devices, Dtype, Model};

/// Devices and what to call them.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The devices, without autodiff; at least one.
    pub devices: Vec<Device>,
    /// `cpu`, `cuda:0`, `cuda:0 without cuBLAS` or `cuda:0, cuda:1`.
    pub name: String,
    /// Type of weights and activations.
    pub dtype: DType,
    /// What the user should know of the choice.
    pub note: Option<String>,
}

/// Whether a recipe would run on the CPU, and its type of weights and activations, without any
/// accelerator being touched: `auto` is a GPU where the program is built for one.
///
/// # Errors
/// Where the device's name is none.
pub fn planned(model: &Model) -> Result<(bool, DType)> {
    let on_cpu = wanted(model, cfg!(feature = "cuda"))?.is_empty();
    Ok((on_cpu, dtype(model.dtype, on_cpu)))
}

/// The type of weights and activations that `wanted` is.
fn dtype(wanted: Dtype, on_cpu: bool) -> DType {
    match wanted {
        Dtype::Auto if on_cpu => DType::F32,
        Dtype::Auto | Dtype::Bf16 => DType::BF16,
        Dtype::F32 => DType::F32,
    }
}

/// The GPUs that a recipe asks for, by number; none for the CPU. `auto` is the first GPU where `any`
/// is there.
fn wanted(model: &Model, any: bool) -> Result<Vec<usize>> {
    let indices = |name: &String| match &**name {
        "cpu" => Ok(vec![]),
        "auto" => Ok(if any { vec![0] } else { vec![] }),
        name => Ok(vec![gpu_index(name)?]),
    };
    Ok(model.device.names().iter().map(indices).collect::<Result<Vec<_>>>()?.concat())
}

/// `N` of `cuda:N`.
fn gpu_index(name: &str) -> Result<usize> {
    let index = name.strip_prefix("cuda:").and_then(|index| index.parse().ok());
    index.ok_or_else(|| {
        Error::input(format!("`model.device` is `{name}`"))
            .of_key("model.device")
            .help("auto, cpu, cuda:0, or [\"cuda:0\", \"cuda:1\"]")
    })
}

/// The devices that a recipe asks for.
///
/// # Errors
/// Where one is not there, or something that it needs is missing; none is put in its place.
pub fn choose(model: &Model) -> Result<Chosen> {
    keep_kernels();
    let gpus = gpus();
    let wanted = wanted(model, !gpus.is_empty())?;
    if wanted.is_empty() {
        let (devices, dtype) = (vec![Device::flex()], dtype(model.dtype, true));
        let note = if model.device == Devices::default() { why_no_gpu() } else { None };
        return Ok(Chosen { devices, name: "cpu".into(), dtype, note });
    }
    let dtype = dtype(model.dtype, false);
    let (mut devices, mut names, mut note) = (vec![], vec![], None);
    for index in wanted {
        prepare_cuda(gpus.len(), index, dtype)?;
        let device = gpus.get(index).cloned().ok_or_else(|| no_such_gpu(index))?;
        let why = why_no_cublas(&device);
        // Other products round otherwise: what is gone on with has the same.
        let products = if why.is_some() { " without cuBLAS" } else { "" };
        names.push(format!("cuda:{index}{products}"));
        devices.push(device);
        note = note.or(why);
    }
    Ok(Chosen { devices, name: names.join(", "), dtype, note })
}

/// Bytes that this process holds of the memory that `device` has; 0 where the system does not say.
pub fn memory_bytes(device: &Device) -> u64 {
    if !cpu::is(device.clone()) {
        return device.memory_pool_usage().map_or(0, |usage| usage.bytes_reserved);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Has burn keep the kernels that it compiled beside its choices among them, in `~/.cache/cubecl`:
/// compiling hundreds is minutes of a first run. Within a Rust project it would else keep them in
/// that one's `target`, for each project anew and until `cargo clean`. Without line tables, which
/// this program's own would ask for; `cubecl.toml` and `CUBECL_…` say the rest, as burn documents it.
#[cfg(feature = "cuda")]
fn keep_kernels() {
    use cubecl_runtime::config::{CubeClRuntimeConfig, cache::CacheConfig};
    use cubek::config::RuntimeConfig;

    let mut config = CubeClRuntimeConfig::from_current_dir();
    config.compilation.cache = true;
    config.compilation.debug_info.get_or_insert_default();
    if matches!(config.environment.path, CacheConfig::Target) {
        config.environment.path = CacheConfig::Global;
    }
    // Set once in a process; later runs in it have the same.
    CubeClRuntimeConfig::try_set(config.override_from_env());
}

#[cfg(not(feature = "cuda"))]
fn keep_kernels() {}

#[cfg(feature = "cuda")]
fn gpus() -> Vec<Device> {
    Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec()
}

#[cfg(not(feature = "cuda"))]
fn gpus() -> Vec<Device> {
    vec![]
}

/// Checks what kernels need, and lets f32 be f32: products of f32 matrices would else be rounded
/// to TF32 (10 bits), which PyTorch by default does not do either.
#[cfg(feature = "cuda")]
fn prepare_cuda(gpus: usize, index: usize, dtype: DType) -> Result<()> {
    use cubek::config::{CubekConfig, MatmulConfig, RuntimeConfig};

    cuda::find(gpus, index).check()?;
    let allow_tf32 = dtype != DType::F32;
    // Set once in a process: a second run in it has the first one's.
    if !CubekConfig::try_set(CubekConfig { matmul: MatmulConfig { allow_tf32 } })
        && MatmulConfig::get().allow_tf32 != allow_tf32
    {
        return Err(Error::input("one program cannot compute in bf16 and in f32 on a GPU")
            .help("give recipes of different model.dtype to programs of their own"));
    }
    Ok(())
}

#[cfg(not(feature = "cuda"))]
#[expect(clippy::unnecessary_wraps, reason = "as with CUDA")]
fn prepare_cuda(_gpus: usize, _index: usize, _dtype: DType) -> Result<()> {
    Ok(())
}

/// Why a program for GPUs uses none.
#[cfg(feature = "cuda")]
fn why_no_gpu() -> Option<String> {
    cuda::find(0, 0).check().err().map(|e| format!("runs on the CPU: {e}"))
}

#[cfg(not(feature = "cuda"))]
fn why_no_gpu() -> Option<String> {
    None
}

/// What the user should know where matrices are not multiplied by cuBLAS on `device`.
#[cfg(feature = "cuda")]
fn why_no_cublas(device: &Device) -> Option<String> {
    let why = crate::model::cuda::why_no_cublas(device)?;
    Some(format!("matrices are multiplied by burn's kernels and not by cuBLAS: {why}"))
}

#[cfg(not(feature = "cuda"))]
fn why_no_cublas(_device: &Device) -> Option<String> {
    None
}

fn no_such_gpu(index: usize) -> Error {
    let what = format!("`model.device` is `cuda:{index}`, and there is no such GPU here");
    Error::input(what).of_key("model.device").help(if cfg!(feature = "cuda") {
        "check `nvidia-smi`, or set device = \"cpu\""
    } else {
        "this program was built without CUDA: build it with --features cuda, or set device = \"cpu\""
    })
}
