//! What is said where a GPU's driver, compiler or memory is wanting.

use vlm4d_train::device::cuda::Found;
use vlm4d_train::error::{Error, Kind};
use vlm4d_train::report::terminal::Terminal;
use vlm4d_train::run;

use crate::support::run::{Workplace, demo_data, recipe, tiny};

const WHOLE: Found =
    Found { built_for: 13_040, driver: Some(13_000), gpus: 1, nvrtc: Some(12_080), refused: None };

/// What is said, and how to mend it.
fn said(found: &Found) -> String {
    let error = found.check().unwrap_err();
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

#[test]
fn each_missing_part_is_named_with_its_cure() {
    WHOLE.check().unwrap();
    let without_driver = said(&Found { driver: None, gpus: 0, ..WHOLE });
    assert!(without_driver.contains("no NVIDIA driver") && without_driver.contains("apt-get"));
    let old = said(&Found { driver: Some(11_040), ..WHOLE });
    assert!(old.contains("is for CUDA 11.4, which is too old") && old.contains("driver 525"));
    let other = said(&Found { driver: Some(12_040), ..WHOLE });
    assert!(
        other.contains("built for CUDA 13.4, and the NVIDIA driver is for CUDA 12.4"),
        "{other}"
    );
    assert!(other.contains("CUDARC_CUDA_VERSION=12040"), "{other}");
    assert!(said(&Found { gpus: 0, ..WHOLE }).contains("shows no GPU"));
    let without_nvrtc = said(&Found { nvrtc: None, ..WHOLE });
    assert!(without_nvrtc.contains("no NVRTC") && without_nvrtc.contains("CUDA toolkit 13.0"));
    assert!(without_nvrtc.contains("pip install"));
    let older = Found { built_for: 12_080, driver: Some(12_080), nvrtc: None, ..WHOLE };
    assert!(!said(&older).contains("pip install"), "the packages of CUDA 12 have other names");
    let newer = said(&Found { nvrtc: Some(13_020), ..WHOLE });
    assert!(newer.contains("NVRTC is 13.2, and the driver is for CUDA 13.0"), "{newer}");
    let log = "probe.cu(3): catastrophic error: cannot open source file \"mma.h\"";
    let refused = said(&Found { refused: Some(log.into()), ..WHOLE });
    assert!(refused.contains(log) && refused.contains("CUDA_PATH"));
    let log = "nvrtc: error: invalid value for --gpu-architecture (-arch)";
    let unknown = said(&Found { refused: Some(log.into()), ..WHOLE });
    assert!(unknown.contains("NVRTC 12.8 does not know this GPU"), "{unknown}");
    assert!(unknown.contains("newer CUDA toolkit; the driver takes 13.0"), "{unknown}");
}

#[test]
fn full_memory_says_what_the_plan_expects_and_what_to_lower() {
    // As `IoError::OutOfMemory` of cubecl arrives through `ExecutionError`.
    let reason = "An error happened during execution\nCaused by:\n  Several failures at once\nCaused by:\n  \
                  The bytes were never written (failure #7, still claiming 1 buffer(s))\nCaused \
                  by:\n  out of device memory allocating 2147483648 bytes\n   0: cubecl::alloc\n";
    let full = || Error::device(reason);
    assert_eq!((full().kind(), full().exit_code()), (Kind::OutOfMemory, 1));
    let told = "the device's memory is full: out of device memory allocating 2147483648 bytes";
    assert_eq!(full().to_string(), told);
    assert_eq!(Error::device("an illegal address").kind(), Kind::Run);

    let place = Workplace::new(&recipe(&tiny(), demo_data(), ""));
    let path = place.0.path().join("recipes/r.toml");
    let fix = |work: &dyn Fn() -> vlm4d_train::error::Result<()>| {
        let error = run::explained(&path, true, &Terminal, work).unwrap_err();
        assert_eq!(error.kind(), Kind::OutOfMemory);
        error.fix().unwrap_or_default().to_owned()
    };
    let returned = fix(&|| Err(full()));
    assert!(returned.contains("`plan` expects") && returned.contains("weights"), "{returned}");
    assert!(returned.contains("lower video.max_pixels or video.max_frames"), "{returned}");
    assert_eq!(fix(&|| panic!("{reason}")), returned);
    let other = run::explained(&path, true, &Terminal, || Err::<(), _>(Error::run("else")));
    assert_eq!(other.unwrap_err(), Error::run("else"));
}
