//! Resized frames and patches, against what the Hugging Face processors and LLaMA-Factory made.

use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;
use vlm4d_train::data::medium::Kind;
use vlm4d_train::data::preprocessor::{PixelBudget, PreprocessorConfig};
use vlm4d_train::data::processor::{self, Patches};
use vlm4d_train::data::video::{self, Frames, Sampling, VideoOptions};

use crate::support::golden;

const CLIPS: [&str; 9] = [
    "vid_exact",
    "vid_odd",
    "vid_up",
    "vid_down",
    "vid_long",
    "vid_win",
    "vid_one",
    "img_a",
    "img_b",
];

fn config() -> PreprocessorConfig {
    PreprocessorConfig::from_dir(&golden("ckpt/tiny-qwen2-vl"), Kind::Video).unwrap()
}

/// The tensors of a golden file.
struct Recorded(Vec<u8>);

impl Recorded {
    fn open(path: &str) -> Self {
        Self(std::fs::read(golden(path)).unwrap())
    }

    fn shape_and_bytes(&self, name: &str) -> (Vec<usize>, &[u8]) {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        (tensor.shape().to_vec(), tensor.data())
    }

    fn frames(&self, name: &str) -> Frames {
        let (shape, bytes) = self.shape_and_bytes(name);
        Frames { rgb: bytes.to_vec(), len: shape[0], height: shape[1], width: shape[2] }
    }

    /// Frames recorded as `[t, 3, h, w]`.
    fn planar_frames(&self, name: &str) -> Frames {
        let (shape, bytes) = self.shape_and_bytes(name);
        let (height, width) = (shape[2], shape[3]);
        let plane = height * width;
        let mut rgb = Vec::new();
        for frame in bytes.chunks(3 * plane) {
            rgb.extend((0..3 * plane).map(|i| frame[i % 3 * plane + i / 3]));
        }
        Frames { rgb, len: shape[0], height, width }
    }

    fn patches(&self, values: &str, grid: &str) -> Patches {
        let (_, bytes) = self.shape_and_bytes(values);
        let pixel_values = bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        Patches {
            pixel_values: pixel_values.collect(),
            grid_thw: self.integers(grid).try_into().unwrap(),
        }
    }

    fn integers(&self, name: &str) -> Vec<usize> {
        let (_, bytes) = self.shape_and_bytes(name);
        bytes.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize).collect()
    }
}

/// The largest difference in levels, and how many values differ.
fn level_difference(a: &Frames, b: &Frames) -> (u8, usize) {
    assert_eq!((a.len, a.height, a.width), (b.len, b.height, b.width));
    assert_eq!(a.rgb.len(), b.rgb.len());
    let differences = a.rgb.iter().zip(&b.rgb).map(|(a, b)| a.abs_diff(*b));
    (differences.clone().max().unwrap(), differences.filter(|&d| d > 0).count())
}

fn difference(a: &Patches, b: &Patches) -> f32 {
    assert_eq!(a.grid_thw, b.grid_thw);
    assert_eq!(a.pixel_values.len(), b.pixel_values.len());
    let pairs = a.pixel_values.iter().zip(&b.pixel_values);
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// What one of 255 levels amounts to after normalising, and a little.
fn one_level() -> f32 {
    1.0 / (255.0 * 0.261_302_6) + 1e-5
}

fn index(name: &str) -> Value {
    let text = std::fs::read(golden("processor/index.json")).unwrap();
    serde_json::from_slice::<Value>(&text).unwrap()[name].clone()
}

fn number(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

fn budget(row: &Value) -> PixelBudget {
    PixelBudget { min_pixels: number(&row["min_pixels"]), max_pixels: number(&row["max_pixels"]) }
}

#[test]
fn smart_resize_equals_the_tools() {
    let table = |name: &str| -> Vec<Value> {
        serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
    };
    let hf = table("tables/smart_resize_hf.json");
    let utils = table("tables/smart_resize_qwen_vl_utils.json");
    assert_eq!((hf.len(), utils.len()), (88, 88));
    for (sampling, rows) in [(Sampling::Hf, hf), (Sampling::Qwen, utils)] {
        for row in rows {
            let (h, w, factor) = (number(&row["h"]), number(&row["w"]), number(&row["factor"]));
            let found = processor::smart_resize(h, w, factor, sampling, budget(&row));
            match (number(&row["out"][0]), number(&row["out"][1])) {
                // what nothing can be resized to
                (0, _) | (_, 0) => assert!(found.is_err(), "{row}"),
                size => assert_eq!(found, Ok(size), "{row}"),
            }
        }
    }
}

#[test]
fn narrow_pictures_are_refused() {
    let bounds = PixelBudget { min_pixels: 3136, max_pixels: 50176 };
    let size = |h, w, sampling| processor::smart_resize(h, w, 28, sampling, bounds);
    for sampling in [Sampling::Qwen, Sampling::Hf] {
        assert!(size(2, 400, sampling).is_ok());
        for (h, w) in [(1, 201), (402, 2), (0, 10)] {
            let error = size(h, w, sampling).unwrap_err();
            assert!(error.to_string().contains("at most 200 times"), "{error}");
        }
    }
    let error = size(27, 5000, Sampling::Qwen).unwrap_err();
    let wanted = "a picture of 5000×27 pixels cannot be resized to 3024×0: a side is out of range";
    assert_eq!(error.what(), wanted);
}

#[test]
fn llamafactory_refuses_what_it_cannot_resize() {
    let bounds = PixelBudget { min_pixels: 256, max_pixels: 1000 };
    let sampling = Sampling::LlamaFactory;
    let planned = processor::fitted_size(2010, 1, sampling, &config(), bounds).unwrap_err();
    let frames = Frames { rgb: vec![7; 2010 * 3], len: 1, height: 2010, width: 1 };
    let read = processor::fit(frames, Kind::Image, sampling, &config(), bounds).unwrap_err();
    assert_eq!(planned, read);
    let wanted = "a picture of 1×2010 pixels cannot be resized to 0×1417: a side is out of range";
    assert_eq!(planned.what(), wanted);
}

#[test]
fn resized_frames_within_one_level() {
    let (mut different, mut all) = (0, 0);
    for name in CLIPS {
        let recorded = Recorded::open(&format!("processor/{name}.safetensors"));
        let raw = recorded.frames("frames_u8_thwc");
        let expected = recorded.planar_frames("resized_u8_tchw");
        let resized = processor::resize(&raw, expected.height, expected.width).unwrap();
        let (most, n) = level_difference(&resized, &expected);
        assert!(most <= 1, "{name}: {most} levels from torchvision");
        different += n;
        all += resized.rgb.len();
    }
    // None on x86-64. The other order of the two passes is as far as 8 levels away.
    assert!(different * 1000 < all, "{different} of {all} values differ");
}

#[test]
fn patches_equal_hugging_face() {
    let config = config();
    for name in CLIPS {
        let recorded = Recorded::open(&format!("processor/{name}.safetensors"));
        let expected = recorded.patches("pixel_values", "grid_thw");
        let resized = recorded.planar_frames("resized_u8_tchw");
        let found = processor::patchify(&resized, &config).unwrap();
        let most = difference(&found, &expected);
        assert!(most <= 2e-6, "{name}: patches differ by {most}");

        let raw = recorded.frames("frames_u8_thwc");
        let bounds = budget(&index(name));
        let fitted = processor::fit(raw, Kind::Video, Sampling::Hf, &config, bounds).unwrap();
        let found = processor::patchify(&fitted, &config).unwrap();
        let most = difference(&found, &expected);
        assert!(most <= one_level(), "{name}: from raw frames they differ by {most}");
    }
}

#[test]
fn patches_equal_llamafactory() {
    let config = config();
    let video_max_pixels = 9408;
    let bounds =
        PixelBudget::new(Sampling::LlamaFactory, Kind::Video, None, video_max_pixels, &config)
            .unwrap();
    for (model, fps) in [("qwen2_vl", 2.0), ("qwen2.5_vl", 4.0)] {
        for name in ["a", "b"] {
            let clip = format!("llamafactory/data/{name}.mp4");
            let options = VideoOptions {
                sampling: Sampling::LlamaFactory,
                fps,
                max_frames: 16,
                upright: false,
            };
            let raw = video::read(&golden(&clip), &options).unwrap().frames;
            let file = format!("llamafactory/frames_{model}_{name}.safetensors");
            let recorded = Recorded::open(&file);
            let first = processor::llamafactory_resize(raw.clone(), bounds).unwrap();
            let (most, _) = level_difference(&first, &recorded.frames("lf_resized_thwc"));
            assert!(most <= 1, "{file}: {most} levels from LLaMA-Factory");

            let fitted =
                processor::fit(raw, Kind::Video, Sampling::LlamaFactory, &config, bounds).unwrap();
            let found = processor::patchify(&fitted, &config).unwrap();
            let expected = recorded.patches("pixel_values_videos_rows", "video_grid_thw");
            let patch = found.pixel_values.len() / found.grid_thw.iter().product::<usize>();
            let rows = recorded.integers("rows").into_iter();
            let some = rows.flat_map(|row| &found.pixel_values[row * patch..(row + 1) * patch]);
            let found = Patches { pixel_values: some.copied().collect(), ..found };
            let most = difference(&found, &expected);
            // A level gained in the first pass can meet one gained in the second.
            assert!(most <= 2.0 * one_level(), "{file}: patches differ by {most}");
        }
    }
}

#[test]
fn llamafactory_extremes() {
    let size = |h: usize, w: usize, len: usize| {
        let frames = Frames { rgb: vec![7; len * h * w * 3], len, height: h, width: w };
        let bounds = PixelBudget { min_pixels: 256, max_pixels: 65536 };
        let resized = processor::llamafactory_resize(frames, bounds).unwrap();
        assert!(resized.rgb.iter().all(|&v| v == 7));
        (resized.len, resized.height, resized.width)
    };
    assert_eq!(size(100, 100, 3), (4, 100, 100)); // odd: the last one twice
    assert_eq!(size(4, 9, 2), (2, 28, 28)); // 10×24 to reach 256 pixels, then both sides to 28
    assert_eq!(size(5, 7000, 2), (2, 28, 5040)); // 250 to 1 after the sides: 180 to 1
    assert_eq!(size(480, 854, 2), (2, 191, 341)); // √(65536 / 409920)
}

#[test]
fn budgets() {
    let config = config();
    let new = |s, min, max| PixelBudget::new(s, Kind::Video, min, max, &config);
    let bounds = |min_pixels, max_pixels| Ok(PixelBudget { min_pixels, max_pixels });
    assert_eq!(new(Sampling::Qwen, None, 200_704), bounds(100_352, 200_704));
    assert_eq!(new(Sampling::Qwen, None, 50_176), bounds(50_176, 50_176));
    assert_eq!(new(Sampling::LlamaFactory, None, 65_536), bounds(256, 65_536));
    assert_eq!(new(Sampling::Vlm4d, None, 65_536), bounds(3136, 65_536));
    assert_eq!(new(Sampling::Hf, Some(784), 65_536), bounds(784, 65_536));
    assert!(new(Sampling::Hf, Some(2), 1).unwrap_err().to_string().contains("above `max_pixels`"));
    assert!(new(Sampling::Qwen, None, 0).is_err());
}

#[test]
fn ragged_frames_are_refused() {
    let frames =
        |len, height, width| Frames { rgb: vec![0; len * height * width * 3], len, height, width };
    for ragged in [frames(2, 42, 56), frames(2, 56, 14), frames(0, 56, 56), frames(2, 0, 56)] {
        let error = processor::patchify(&ragged, &config()).unwrap_err();
        assert!(error.to_string().contains("multiples of 28"), "{error}");
    }
    assert!(processor::resize(&frames(1, 4, 4), 0, 28).is_err());
}

/// `preprocessor_config.json` of the released checkpoints, with `changes` merged in.
fn parse(changes: &Value) -> Result<PreprocessorConfig, String> {
    let path = golden("ckpt/tiny-qwen2-vl/preprocessor_config.json");
    let mut file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        file[key] = value.clone();
        if value == "absent" {
            file.as_object_mut().unwrap().remove(key);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("preprocessor_config.json");
    std::fs::write(&path, file.to_string()).unwrap();
    PreprocessorConfig::from_dir(folder.path(), Kind::Video).map_err(|e| {
        let prefix = path.display().to_string();
        e.to_string().strip_prefix(&prefix).expect("the path comes first").to_string()
    })
}

#[test]
fn configs_in_their_spellings() {
    use serde_json::json;
    let own = parse(&json!({})).unwrap();
    assert_eq!(own.pixels, PixelBudget { min_pixels: 3136, max_pixels: 12_845_056 });
    assert_eq!((own.patch_size, own.temporal_patch_size, own.merge_size), (14, 2, 2));
    let size = json!({"min_pixels": "absent", "max_pixels": "absent",
        "size": {"shortest_edge": 4096, "longest_edge": 65536}, "fps": null, "resample": 3});
    let newer = parse(&size).unwrap();
    assert_eq!(newer.pixels, PixelBudget { min_pixels: 4096, max_pixels: 65536 });
    let both = json!({"size": {"min_pixels": 1, "max_pixels": 2}});
    assert_eq!(parse(&both).unwrap(), own);
    let defaults = json!({"patch_size": "absent", "temporal_patch_size": "absent",
        "merge_size": "absent", "image_mean": "absent", "image_std": "absent"});
    assert_eq!(parse(&defaults).unwrap(), own);
}

#[test]
fn wrong_configs_are_named() {
    use serde_json::json;
    let error = |changes: Value| parse(&changes).unwrap_err();
    assert!(error(json!({"min_pixels": "absent"})).contains("neither `min_pixels`"));
    assert_eq!(error(json!({"merge_size": 0})), ": `merge_size` is 0, expected a positive number");
    assert!(error(json!({"min_pixels": 9, "max_pixels": 8})).contains("above `max_pixels`"));
    assert!(error(json!({"image_std": [1.0, 0.0, 1.0]})).contains("`image_std`"));
    assert!(error(json!({"do_resize": false})).contains("`do_resize` is false"));
    assert!(error(json!({"resample": 2})).contains("`resample` is 2"));
    assert!(error(json!({"rescale_factor": 1.0})).contains("`rescale_factor` is 1"));
    let missing = PreprocessorConfig::from_dir(Path::new("none"), Kind::Video).unwrap_err();
    assert!(missing.to_string().starts_with("none: no processor for videos\n  help: a checkpoint"));
}

/// What transformers 5.23 saves, less what does not matter here.
const OF_VERSION_5: &str = r#"{
  "image_processor": {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 8},
  "processor_class": "Qwen2_5_VLProcessor",
  "video_processor": {
    "do_normalize": true, "do_rescale": true, "do_resize": true, "do_sample_frames": false,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_frames": 768, "merge_size": 2, "patch_size": 14, "resample": 3,
    "rescale_factor": 0.00392156862745098, "return_metadata": false,
    "size": {"longest_edge": 12845056, "shortest_edge": 3136},
    "temporal_patch_size": 2, "video_processor_type": "Qwen2VLVideoProcessor"
  }
}"#;

#[test]
fn configs_are_looked_for_where_transformers_does() {
    let written: Value = serde_json::from_str(OF_VERSION_5).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &Value| {
        std::fs::write(folder.path().join(name), content.to_string()).unwrap();
    };
    let read = || PreprocessorConfig::from_dir(folder.path(), Kind::Video);
    let with_side = |side: usize| {
        let mut changed = written["video_processor"].clone();
        changed["patch_size"] = side.into();
        changed
    };
    write("processor_config.json", &written);
    assert_eq!(read().unwrap(), config());
    write("preprocessor_config.json", &with_side(16));
    write("video_preprocessor_config.json", &with_side(18));
    assert_eq!(read().unwrap(), config());
    write("processor_config.json", &serde_json::json!({"processor_class": "Qwen2VLProcessor"}));
    assert_eq!(read().unwrap().patch_size, 18);
    std::fs::remove_file(folder.path().join("video_preprocessor_config.json")).unwrap();
    assert_eq!(read().unwrap().patch_size, 16);
    let of_images = || PreprocessorConfig::from_dir(folder.path(), Kind::Image);
    assert_eq!(of_images().unwrap().patch_size, 16);
    write("processor_config.json", &serde_json::json!({"image_processor": with_side(20)}));
    assert_eq!(of_images().unwrap().patch_size, 20);
    write("processor_config.json", &serde_json::json!({"video_processor": {"merge_size": 2}}));
    let error = read().unwrap_err().to_string();
    assert!(error.contains("/processor_config.json: neither `min_pixels`"), "{error}");
}
