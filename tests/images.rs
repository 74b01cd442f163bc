//! Image files → pixels, patches, ids and labels, as the tools that they come from make them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::SafeTensors;
use vlm4d_train::data::chat::Chat;
use vlm4d_train::data::entry;
use vlm4d_train::data::image;
use vlm4d_train::data::medium::{Kind, Medium};
use vlm4d_train::data::preprocessor::{PixelBudget, PreprocessorConfig};
use vlm4d_train::data::processor::{fit, patchify};
use vlm4d_train::data::reader::Reader;
use vlm4d_train::data::video::Sampling;
use vlm4d_train::model::config::Config;
use vlm4d_train::recipe::{Image, Video};

use crate::support::{CHECKPOINTS, golden, json, pixel_levels};

fn data() -> PathBuf {
    golden("images/data")
}

/// The levels of each tensor of a golden file, and its shape.
fn levels(path: &str) -> BTreeMap<String, (Vec<u8>, Vec<usize>)> {
    let bytes = std::fs::read(golden(path)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors().into_iter();
    tensors.map(|(name, t)| (name, (t.data().to_vec(), t.shape().to_vec()))).collect()
}

/// Decoders of JPEG round differently.
fn accepted(name: &str) -> u8 {
    if name.contains(".jpg") && name != "png.jpg" { 4 } else { 0 }
}

#[test]
fn pixels_equal_each_tools() {
    let pixels = levels("images/pixels.safetensors");
    for (name, (wanted, shape)) in &pixels {
        let (file, sampling, upright) = match name.rsplit_once('.') {
            Some((file, "transformers")) => (file, Sampling::Hf, true),
            Some((file, "qwen_vl_utils")) => (file, Sampling::Qwen, false),
            _ if pixels.contains_key(&format!("{name}.qwen_vl_utils")) => {
                (&**name, Sampling::LlamaFactory, false)
            }
            _ => (&**name, Sampling::Qwen, false),
        };
        let (frames, rotation) = image::read(&data().join(file), sampling, upright).unwrap();
        assert_eq!([frames.height, frames.width, 3][..], *shape, "{name}");
        let worst = frames.rgb.iter().zip(wanted).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst.unwrap() <= accepted(file), "{name}: {worst:?} levels");
        let turned = [("turned.jpg", 90), ("flipped.jpg", 90), ("over.jpg", 180)];
        let turned = turned.into_iter().find(|(turned, _)| *turned == file);
        assert_eq!(rotation, turned.map_or(0, |(_, degrees)| degrees), "{name}");
    }
}

#[test]
fn headers_tell_the_size_before_any_turn() {
    for (name, size, rotation) in [("turned.jpg", (45, 61), 90), ("half.png", (56, 84), 0)] {
        let info = image::probe(&data().join(name)).unwrap();
        assert_eq!(((info.height, info.width), info.rotation), (size, rotation), "{name}");
    }
}

#[test]
fn what_is_no_image_is_refused() {
    let error = |path: PathBuf| image::probe(&path).unwrap_err().to_string();
    let told = error(data().join("b.mp4"));
    assert!(told.contains("b.mp4: cannot be read as an image: "), "{told}");
    assert!(told.contains("\n  help: JPEG, PNG, WebP, GIF and BMP are read"), "{told}");
    assert!(error(data().join("gone.png")).ends_with("gone.png: no such file"));
    let folder = tempfile::tempdir().unwrap();
    let cut = folder.path().join("cut.png");
    let whole = std::fs::read(data().join("half.png")).unwrap();
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let deep = folder.path().join("deep.png");
    ::image::ImageBuffer::from_pixel(2, 2, ::image::Luma([300_u16])).save(&deep).unwrap();
    assert!(error(deep).contains("deep.png: has more than 8 bits a channel"));
    let told = image::read(&cut, Sampling::Qwen, false).unwrap_err().to_string();
    assert!(told.contains("cut.png: cannot be read as an image: "), "{told}");
}

#[test]
fn a_jpeg_without_its_end_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let read = |jpeg: &[u8]| {
        let path = folder.path().join("a.jpg");
        std::fs::write(&path, jpeg).unwrap();
        image::read(&path, Sampling::Qwen, false).map(|(frames, _)| frames)
    };
    // a segment that holds a thumbnail with an end of its own
    let thumbnail = b"\xFF\xE1\x00\x08\xFF\xDA\x01\x02\xFF\xD9";
    for name in ["photo.jpg", "sharp.jpg", "grey.jpg"] {
        let whole = std::fs::read(data().join(name)).unwrap();
        let frames = read(&whole).unwrap();
        let with = |part: &[u8]| [&whole[..2], part, &whole[2..]].concat();
        for cut in [1, 2, 3, 100, whole.len() / 2] {
            for jpeg in [&whole, &with(thumbnail)] {
                let error = read(&jpeg[..jpeg.len() - cut]).expect_err("is refused");
                assert!(error.what().ends_with("a.jpg: the image is cut short"), "{error}");
            }
        }
        // Pillow takes these: a film or a depth map behind the picture, bytes that fill
        for odd in [
            with(thumbnail),
            with(b"\xFF\xFF"),
            [&whole[..], b"ftyp\xFF\xDA\x00\x08"].concat(),
            [&whole[..], &whole[..]].concat(),
        ] {
            assert!(read(&odd).unwrap() == frames, "{name}");
        }
    }
}

/// LLaMA-Factory's settings when the rows were recorded.
fn settings(fps: f64) -> (Video, Image) {
    let sampling = Sampling::LlamaFactory;
    let video = Video { sampling, fps, max_frames: 16, max_pixels: 9408, ..Video::default() };
    (video, Image { max_pixels: 9408, ..Image::default() })
}

#[test]
fn rows_with_images_equal_llama_factory() {
    let recorded = json("images/samples.json");
    let (rows, _) = entry::read(&data(), &["pictures".into()]).unwrap();
    assert_eq!(rows.len(), 3);
    for (family, fps, name) in
        [("qwen2_vl", 2.0, CHECKPOINTS[0]), ("qwen2.5_vl", 4.0, CHECKPOINTS[1])]
    {
        let checkpoint = golden(&format!("ckpt/{name}"));
        let chat = Chat::load(&checkpoint).unwrap();
        let config = Config::from_dir(&checkpoint).unwrap();
        let (video, image) = settings(fps);
        let reader = Reader::new(&video, &image, &checkpoint, &config.vision).unwrap();
        for (row, wanted) in rows.iter().zip(recorded[family]["rows"].as_array().unwrap()) {
            let tokens = |medium: &Medium| {
                let (grid, _) = reader.outline(&data(), medium).unwrap();
                assert_eq!(grid.second_per_grid.is_none(), !medium.is_video());
                grid.tokens(&config.vision)
            };
            let tokens: Vec<usize> = row.media.iter().map(tokens).collect();
            let encoded = chat.encode_sft(&row.messages, &tokens).unwrap();
            let encoded = serde_json::json!({
                "input_ids": encoded.input_ids,
                "labels": encoded.labels,
            });
            assert_eq!(&encoded, wanted, "{family}: {}", row.id);
        }
    }
    assert_eq!(rows[1].media, [Medium::video("b.mp4"), Medium::image("small.png")]);
}

#[test]
fn patches_of_images_equal_llama_factory() {
    let recorded = json("images/samples.json");
    for (family, name) in [("qwen2_vl", CHECKPOINTS[0]), ("qwen2.5_vl", CHECKPOINTS[1])] {
        let config =
            PreprocessorConfig::from_dir(&golden(&format!("ckpt/{name}")), Kind::Image).unwrap();
        let sampling = Sampling::LlamaFactory;
        let budget = PixelBudget::new(sampling, Kind::Image, None, 9408, &config).unwrap();
        assert_eq!(budget.min_pixels, 1024);
        for (file, (wanted, _)) in levels(&format!("images/levels_{family}.safetensors")) {
            let (frames, _) = image::read(&data().join(&file), sampling, false).unwrap();
            let frames = fit(frames, Kind::Image, sampling, &config, budget).unwrap();
            let patches = patchify(&frames, &config).unwrap();
            let grid = serde_json::json!(patches.grid_thw);
            assert_eq!(grid, recorded[family]["grids"][&file], "{file}");
            let got = pixel_levels(&patches.pixel_values, &config);
            let worst = got.iter().zip(&wanted).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            // resizing twice, of what is within 4 levels
            assert!(worst <= 2 + accepted(&file), "{family} {file}: {worst} levels");
        }
    }
}
