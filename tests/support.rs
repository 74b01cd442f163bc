//! Goldens and small measures that the tests share.

pub mod model;
pub mod run;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use safetensors::SafeTensors;
use serde_json::Value;
use vlm4d_train::data::preprocessor::PreprocessorConfig;

/// A file under `tests/golden`.
pub fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// A JSON file under `tests/golden`.
pub fn json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(path)).unwrap()).unwrap()
}

/// The folder of VLM4D's question files and released outputs, if one is named.
pub fn real_files(test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("VLM4D_QA").map(PathBuf::from);
    if folder.is_none() {
        skipped(&format!("{test}: VLM4D_QA names no folder with VLM4D's files"));
    }
    folder
}

/// The level, 0 to 255, of each normalised number of a video's or image's patches.
pub fn pixel_levels(pixel_values: &[f32], config: &PreprocessorConfig) -> Vec<u8> {
    let of_channel = config.temporal_patch_size * config.patch_size * config.patch_size;
    let level = |(i, value): (usize, &f32)| {
        let c = i / of_channel % 3;
        (value * 255.0 * config.image_std[c] + 255.0 * config.image_mean[c]).round() as u8
    };
    pixel_values.iter().enumerate().map(level).collect()
}

/// The two tiny checkpoints of the true architecture.
pub const CHECKPOINTS: [&str; 2] = ["tiny-qwen2-vl", "tiny-qwen2.5-vl"];

/// The tensors of a golden file.
pub struct Golden {
    floats: BTreeMap<String, (Vec<f32>, Vec<usize>)>,
    ints: BTreeMap<String, (Vec<i64>, Vec<usize>)>,
}

impl Golden {
    /// Reads a safetensors file under `tests/golden`.
    pub fn read(path: &str) -> Self {
        Self::open(&golden(path))
    }

    /// Reads any safetensors file.
    pub fn open(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let (mut floats, mut ints) = (BTreeMap::new(), BTreeMap::new());
        for (name, view) in tensors.tensors() {
            let shape = view.shape().to_vec();
            match view.dtype() {
                safetensors::Dtype::F32 => {
                    let values =
                        view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
                    floats.insert(name, (values.collect(), shape));
                }
                safetensors::Dtype::I64 => {
                    let values =
                        view.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b));
                    ints.insert(name, (values.collect(), shape));
                }
                _ => {}
            }
        }
        Self { floats, ints }
    }

    /// The tensors whose names start with `prefix.`, without it.
    pub fn part(&self, prefix: &str) -> Self {
        fn cut<T: Clone>(all: &BTreeMap<String, T>, prefix: &str) -> BTreeMap<String, T> {
            let own = |(name, tensor): (&String, &T)| {
                Some((name.strip_prefix(prefix)?.strip_prefix('.')?.to_owned(), tensor.clone()))
            };
            all.iter().filter_map(own).collect()
        }
        Self { floats: cut(&self.floats, prefix), ints: cut(&self.ints, prefix) }
    }

    /// Names of the f32 tensors.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.floats.keys()
    }

    /// Whether there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.floats.contains_key(name) || self.ints.contains_key(name)
    }

    /// An f32 tensor and its shape.
    pub fn f32(&self, name: &str) -> (&[f32], &[usize]) {
        let (values, shape) = self.floats.get(name).unwrap_or_else(|| panic!("no golden `{name}`"));
        (values, shape)
    }

    /// An i64 tensor and its shape.
    pub fn i64(&self, name: &str) -> (&[i64], &[usize]) {
        let (values, shape) = self.ints.get(name).unwrap_or_else(|| panic!("no golden `{name}`"));
        (values, shape)
    }
}

/// Largest absolute difference; panics where the lengths differ.
pub fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "lengths differ");
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Norm of the difference over the norm of `want`.
pub fn relative_difference(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len(), "lengths differ");
    let norm =
        |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    norm(&mut got.iter().zip(want).map(|(g, w)| g - w)) / norm(&mut want.iter().copied()).max(1e-12)
}

/// The first Python of `VLM4D_PYTHON`, else `python3`, that has the package; else says that a test
/// is skipped.
pub fn python(package: &str) -> Option<String> {
    let import = format!("import {package}");
    let has = |python: &String| {
        let output = std::process::Command::new(python).args(["-c", &import]).output();
        output.is_ok_and(|output| output.status.success())
    };
    let found = pythons().into_iter().find(has);
    if found.is_none() {
        skipped(&format!("no Python with the package {package}; VLM4D_PYTHON may name one"));
    }
    found
}

/// Those that `VLM4D_PYTHON` names, with colons between them.
pub fn pythons() -> Vec<String> {
    let named = std::env::var("VLM4D_PYTHON").unwrap_or_else(|_| "python3".into());
    named.split(':').map(str::to_owned).collect()
}

/// Held by a test that draws numbers on the CPU: all threads draw from one generator.
pub fn alone() -> MutexGuard<'static, ()> {
    static DRAWS: Mutex<()> = Mutex::new(());
    DRAWS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says that a test was skipped, where the test runner does not keep it to itself: it shows what is
/// printed in tests that fail alone.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}
