//! The model: architecture under the hub's names, adapters, and how weights get in and out.

mod adapter_files;
pub mod attention;
pub mod config;
pub mod cost;
pub mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod dropout;
pub mod host;
pub mod hub;
pub mod initial;
pub mod kv_cache;
pub mod language;
pub mod linear;
pub mod lora;
pub mod nf4;
pub mod norm;
pub mod parameters;
pub mod peft;
pub mod qwen_vl;
pub(crate) mod record;
pub mod rope;
mod targets;
pub mod tensor_files;
pub mod vision;
pub mod weights;
