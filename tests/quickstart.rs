//! The demo's experiment, shortened: the built-in checkpoint learns to see motion.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vlm4d_train::data::demo::{self, DemoOptions};

use crate::cli::{Workplace, text};

fn in_project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn metrics(place: &Workplace, stage: &str) -> Value {
    let text = fs::read_to_string(place.path(stage).join("metrics.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}
