//! What CUDA needs at run time: the driver, NVRTC, which compiles the kernels, and the headers
//! that they include.

use crate::error::{Error, Result};

/// CUDA 12.0, the oldest whose driver and compiler are used.
const OLDEST: u32 = 12_000;
/// The oldest driver that has all that a program for CUDA 13 asks it for
/// (`cuEventElapsedTime_v2`, with which kernels are timed).
const OLDEST_OF_13: u32 = 12_080;
/// The Python packages that bring NVRTC and the headers of CUDA 13.
const WHEELS: &str = "nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl";

/// What a machine has of it. Versions are as CUDA counts them, 1000 · major + 10 · minor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The CUDA that this program was built for.
    pub built_for: u32,
    /// The newest CUDA that the driver runs; none where there is no driver.
    pub driver: Option<u32>,
    /// GPUs that the driver shows.
    pub gpus: usize,
    /// NVRTC's version; none where there is no such library.
    pub nvrtc: Option<u32>,
    /// Why NVRTC could not compile a small kernel with the headers, where it could not.
    pub refused: Option<String>,
}

impl Found {
    /// Whether kernels can be compiled and run.
    ///
    /// # Errors
    /// What is missing or too old, and how to install it.
    pub fn check(&self) -> Result<()> {
        let missing = |what: String, fix: String| Err(Error::input(what).help(fix));
        let Some(driver) = self.driver else {
            return missing(
                "there is no NVIDIA driver (libcuda.so.1)".into(),
                "install one (Debian: `apt-get install nvidia-driver`; a container is started with \
                 `--gpus all`), or set model.device = \"cpu\""
                    .into(),
            );
        };
        if driver < OLDEST {
            return missing(
                format!("the NVIDIA driver is for CUDA {}, which is too old", version(driver)),
                "install driver 525 or newer; 580 or newer for CUDA 13".into(),
            );
        }
        if driver < OLDEST_OF_13 && self.built_for >= 13_000 {
            return missing(
                format!(
                    "this program was built for CUDA {}, and the NVIDIA driver is for CUDA {}",
                    version(self.built_for),
                    version(driver)
                ),
                format!(
                    "build it again with CUDARC_CUDA_VERSION={} in the environment, or install \
                     driver 570 or newer",
                    // The bindings know no 12.7.
                    driver.min(12_060)
                ),
            );
        }
        if self.gpus == 0 {
            return missing(
                format!("the NVIDIA driver (CUDA {}) shows no GPU", version(driver)),
                "see what `nvidia-smi` says, and CUDA_VISIBLE_DEVICES; or set model.device = \
                 \"cpu\""
                    .into(),
            );
        }
        let Some(nvrtc) = self.nvrtc else {
            return missing(
                "there is no NVRTC (libnvrtc.so), which compiles the GPU's kernels".into(),
                format!(
                    "install the CUDA toolkit {0} or older{1}, and put the library's folder into \
                     LD_LIBRARY_PATH",
                    version(driver),
                    or_wheels(driver)
                ),
            );
        };
        if nvrtc > driver || nvrtc < OLDEST {
            return missing(
                format!(
                    "NVRTC is {}, and the driver is for CUDA {}: it does not run what that compiles",
                    version(nvrtc),
                    version(driver)
                ),
                format!(
                    "install the CUDA toolkit {} (12.0 or newer, not newer than the driver), or \
                     another driver",
                    version(driver)
                ),
            );
        }
        match &self.refused {
            None => Ok(()),
            Some(log) if log.contains("--gpu-architecture") => missing(
                format!("NVRTC {} does not know this GPU: {log}", version(nvrtc)),
                format!(
                    "install a newer CUDA toolkit; the driver takes {} or older",
                    version(driver)
                ),
            ),
            Some(log) => missing(
                format!("NVRTC {} cannot compile a kernel: {log}", version(nvrtc)),
                format!(
                    "CUDA_PATH must name a folder whose include/ has CUDA's headers of version {0}: \
                     install the toolkit {0}{1}",
                    version(nvrtc),
                    or_wheels(nvrtc)
                ),
            ),
        }
    }
}

/// What may be installed in place of the toolkit of `version`: before CUDA 13 the packages have
/// other names, and their headers lie in several folders.
fn or_wheels(version: u32) -> String {
    if version < 13_000 {
        String::new()
    } else {
        format!(", or `pip install {WHEELS}` of that version")
    }
}

fn version(number: u32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// Looks for all of it, by the names under which it will be loaded; `index` is the GPU that is to be
/// used, of `gpus`.
#[cfg(feature = "cuda")]
pub fn find(gpus: usize, index: usize) -> Found {
    use cudarc::{driver, nvrtc};

    // SAFETY: asks whether a library can be loaded, which runs the library's own start-up code
    // alone; the versions are written into numbers that outlive the calls, and only asked for
    // where the library is there.
    let (driver, nvrtc) = unsafe {
        let has_driver = driver::sys::is_culib_present();
        let (mut number, mut major, mut minor) = (0, 0, 0);
        let driver = has_driver
            && driver::sys::cuDriverGetVersion(&raw mut number)
                == driver::sys::cudaError_enum::CUDA_SUCCESS;
        let nvrtc = nvrtc::sys::is_culib_present()
            && nvrtc::sys::nvrtcVersion(&raw mut major, &raw mut minor)
                == nvrtc::sys::nvrtcResult::NVRTC_SUCCESS;
        (driver.then_some(number as u32), nvrtc.then_some((1000 * major + 10 * minor) as u32))
    };
    let built_for = driver::sys::CUDA_VERSION;
    let refused = nvrtc.and_then(|_| {
        // Without a driver nothing may be asked of it.
        let [own, family] = architectures((driver.is_some() && index < gpus).then_some(index));
        // As burn: a GPU that is newer than the compiler has what the first of its family has.
        let error = compile(&own).err()?;
        if own == family { Some(error) } else { compile(&family).err() }
    });
    Found { built_for, driver, gpus, nvrtc, refused }
}

/// What burn has kernels for GPU `index` compiled for, by NVRTC's names: the GPU itself, and the
/// first of its family. The oldest with tensor cores for bf16 where there is no GPU.
#[cfg(feature = "cuda")]
fn architectures(index: Option<usize>) -> [String; 2] {
    use cudarc::driver::result::device;
    use cudarc::driver::sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };

    let of = |attribute| {
        let gpu = device::get(index? as i32).ok()?;
        // SAFETY: the driver has just named the device.
        unsafe { device::get_attribute(gpu, attribute).ok() }
    };
    let (major, minor) = of(MAJOR).zip(of(MINOR)).unwrap_or((8, 0));
    let own = if major >= 9 { "a" } else { "" };
    let first = if major > 9 { 0 } else { minor };
    [minor, first].map(|minor| format!("sm_{major}{minor}{own}"))
}

/// Compiles a kernel for `architecture` that includes what those of burn do.
#[cfg(feature = "cuda")]
fn compile(architecture: &str) -> std::result::Result<(), String> {
    use cudarc::nvrtc::{CompileError, CompileOptions, compile_ptx_with_opts};

    let kernel = "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n#include <mma.h>\n\
                  #include <cooperative_groups.h>\n#include <cuda/barrier>\n\
                  extern \"C\" __global__ void probe(__nv_bfloat16 *x) {\n\
                  x[0] = __float2bfloat16(1.0f); }\n";
    let toolkit = cubecl_cuda::install::cuda_path()
        .ok_or("CUDA_PATH is not set, and there is no /usr/local/cuda")?;
    let include = toolkit.join("include");
    let include_paths =
        [&include, &include.join("cccl")].map(|path| path.display().to_string()).to_vec();
    let options = vec![format!("--gpu-architecture={architecture}")];
    let options = CompileOptions { include_paths, options, ..CompileOptions::default() };
    match compile_ptx_with_opts(kernel, options) {
        Ok(_) => Ok(()),
        Err(CompileError::CompileError { log, .. }) => {
            let log = log.to_string_lossy().into_owned();
            let line = log.lines().find(|line| line.contains("error")).unwrap_or(&log);
            Err(line.trim().to_owned())
        }
        Err(other) => Err(format!("{other:?}")),
    }
}
