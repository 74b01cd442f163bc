//! The tiny checkpoints, golden batches for them, and parameters beside the reference's.

use std::path::Path;
use std::sync::LazyLock;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use vlm4d_train::error::Result;
use vlm4d_train::lanes::Lanes;
use vlm4d_train::model::config::Config;
use vlm4d_train::model::parameters::{self, Named};
use vlm4d_train::model::peft;
use vlm4d_train::model::qwen_vl::QwenVl;
use vlm4d_train::model::rope::{MediaGrid, Positions};
use vlm4d_train::model::tensor_files::TensorFiles;
use vlm4d_train::model::weights::{self, module_name, to_hub};
use vlm4d_train::recipe::{Loss, Quantize, Train};
use vlm4d_train::train::gradients::Sample;
use vlm4d_train::train::trainer::{self, Setup};

use super::{Golden, golden};

/// A tiny checkpoint, in f32.
pub fn load(name: &str) -> QwenVl {
    load_as(&golden(&format!("ckpt/{name}")), DType::F32)
}

pub fn load_as(dir: &Path, dtype: DType) -> QwenVl {
    load_quantised(dir, dtype, None)
}

pub fn load_quantised(dir: &Path, dtype: DType, quantize: Option<Quantize>) -> QwenVl {
    let (config, files) = (Config::from_dir(dir).unwrap(), TensorFiles::from_dir(dir).unwrap());
    weights::load(&config, &files, dtype, quantize, &Device::flex()).unwrap()
}

/// Processor output of one golden clip or image.
pub struct Media {
    pub pixel_values: Vec<f32>,
    pub grid_thw: [usize; 3],
}

pub fn media(name: &str) -> Media {
    let file = Golden::read(&format!("processor/{name}.safetensors"));
    let grid: Vec<usize> = file.i64("grid_thw").0.iter().map(|n| *n as usize).collect();
    Media { pixel_values: file.f32("pixel_values").0.to_vec(), grid_thw: grid.try_into().unwrap() }
}

/// One row of a golden batch: the real tokens, their labels and the media in order of appearance.
#[derive(Clone)]
pub struct Row {
    pub range: std::ops::Range<usize>,
    pub input_ids: Vec<u32>,
    pub labels: Vec<i64>,
    pub media: Vec<(String, MediaGrid)>,
}

/// Cuts a golden batch (padded on the right or left) into rows. `names` are the media of the
/// whole batch as `(images, videos)`.
pub fn rows(config: &Config, batch: &Golden, names: (&[String], &[String])) -> Vec<Row> {
    let (ids, shape) = batch.i64("input_ids");
    let mask = batch.i64("attention_mask").0;
    let (mut images, mut videos) = (names.0.iter(), names.1.iter());
    (0..shape[0])
        .map(|b| {
            let row = b * shape[1]..(b + 1) * shape[1];
            let real: Vec<usize> = row.clone().filter(|i| mask[*i] == 1).collect();
            let range = real[0]..real[real.len() - 1] + 1;
            let input_ids: Vec<u32> = ids[range.clone()].iter().map(|i| *i as u32).collect();
            let mut found = Vec::new();
            let mut at = 0;
            while at < input_ids.len() {
                let video = input_ids[at] == config.video_token_id;
                if !video && input_ids[at] != config.image_token_id {
                    at += 1;
                    continue;
                }
                let name = if video { videos.next() } else { images.next() }.unwrap().clone();
                let second_per_grid = video.then_some(1.0);
                let grid = MediaGrid { grid_thw: media(&name).grid_thw, second_per_grid };
                at += grid.tokens(&config.vision);
                found.push((name, grid));
            }
            let labels = if batch.has("labels") {
                batch.i64("labels").0[range.clone()].to_vec()
            } else {
                vec![]
            };
            Row { range, input_ids, labels, media: found }
        })
        .collect()
}

impl Row {
    pub fn grids(&self) -> Vec<MediaGrid> {
        self.media.iter().map(|(_, grid)| *grid).collect()
    }

    pub fn features(&self, model: &QwenVl) -> Vec<Tensor<2>> {
        let feature = |(name, grid): &(String, MediaGrid)| {
            model.features(&media(name).pixel_values, grid.grid_thw)
        };
        self.media.iter().map(feature).collect()
    }
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// The samples of a golden batch, with their vision features recomputed from golden pixels.
pub struct Batch {
    pub samples: Vec<Sample>,
    pub rows: Vec<Row>,
}

impl Batch {
    pub fn read(model: &QwenVl, file: &str, images: &[String], videos: &[String]) -> Self {
        let golden = Golden::read(file);
        let rows = rows(&model.config, &golden, (images, videos));
        let sample = |row: &Row| Sample {
            id: file.into(),
            input_ids: row.input_ids.clone(),
            labels: row.labels.clone(),
            positions: Positions::new(&model.config, &row.input_ids, &row.grids()).unwrap(),
        };
        Self { samples: rows.iter().map(sample).collect(), rows }
    }

    /// `n` samples: these over and over, each later one with one label less.
    pub fn repeat(&self, n: usize) -> Self {
        let (mut samples, mut rows) = (Vec::new(), Vec::new());
        for i in 0..n {
            let from = i % self.samples.len();
            let mut sample = self.samples[from].clone();
            let labelled = sample.labels.iter_mut().filter(|label| **label >= 0);
            labelled.take(i / self.samples.len()).for_each(|label| *label = -100);
            samples.push(sample);
            rows.push(self.rows[from].clone());
        }
        Self { samples, rows }
    }

    /// Ids, grids and features of row `i`.
    pub fn prompt(&self, model: &QwenVl, i: usize) -> (Vec<u32>, Vec<MediaGrid>, Vec<Tensor<2>>) {
        let row = &self.rows[i];
        (row.input_ids.clone(), row.grids(), row.features(model))
    }
}

impl trainer::Media for Batch {
    fn features(&self, model: &QwenVl, i: usize) -> Result<Vec<Tensor<2>>> {
        Ok(self.rows[i].features(model))
    }
}

/// One optimiser step over the whole batch, with LLaMA-Factory's (and transformers') loss.
pub fn one_batch(samples: usize, recompute: bool) -> Train {
    Train {
        batch_size: samples,
        grad_accum: 1,
        loss: Loss::MicroBatch,
        shuffle: false,
        recompute,
        ..Train::default()
    }
}

/// What a single CPU has.
pub static ONE_DEVICE: LazyLock<Lanes> = LazyLock::new(|| Lanes::new(&[Device::flex()]).unwrap());

pub fn setup<'a>(
    train: &'a Train,
    samples: &'a [Sample],
    media: &'a dyn trainer::Media,
) -> Setup<'a> {
    Setup {
        train,
        seed: 0,
        lora: None,
        samples,
        epochs: vec![(0..samples.len()).collect()],
        media,
        lanes: &ONE_DEVICE,
        checkpoints: Path::new("unused").into(),
        validator: None,
    }
}

/// The tiny checkpoint with the adapter `weights`, a golden file, in training form.
pub fn with_adapter(name: &str, weights: &str) -> QwenVl {
    let dir = tempfile::tempdir().unwrap();
    let config = golden(&format!("{name}/adapter_step_5/adapter_config.json"));
    std::fs::copy(config, dir.path().join("adapter_config.json")).unwrap();
    std::fs::copy(golden(weights), dir.path().join("adapter_model.safetensors")).unwrap();
    let mut model = load(name);
    peft::load(&mut model, dir.path(), 0.0).unwrap();
    model.train()
}

/// For each of `got`, parameters of `model` or what belongs to them, its name, its numbers in the
/// hub's layout, and those of `{prefix}{key}` in `want`, which has as many. Where a golden keeps every
/// 11th number, so do these.
pub fn beside(
    model: &QwenVl,
    got: &Named,
    want: &Golden,
    prefix: &str,
) -> Vec<(String, Vec<f32>, Vec<f32>)> {
    let key = |name: &str| match name.contains(".lora_") {
        true => format!("{prefix}base_model.model.{}", module_name(name)),
        false => format!("{prefix}{name}"),
    };
    let mut both = Vec::new();
    for parameter in parameters::list(model) {
        let Some(tensor) = got.get(&parameter.name) else { continue };
        let mut flat = to_hub(&parameter.name, &parameter.shape, values(tensor.clone()));
        let want = want.f32(&key(&parameter.name)).0.to_vec();
        if want.len() < flat.len() {
            flat = flat.into_iter().step_by(11).collect();
        }
        both.push((parameter.name, flat, want));
    }
    assert_eq!(both.len(), got.len());
    let wanted = |name: &&String| name.starts_with(prefix) && !name.starts_with("__");
    assert_eq!(both.len(), want.names().filter(wanted).count(), "as many as the reference has");
    both
}
