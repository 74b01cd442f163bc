//! Lists of images as videos: what the tools make of them, and their way through a run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::{Value, json};
use vlm4d_train::data::chat::Chat;
use vlm4d_train::data::check::check;
use vlm4d_train::data::entry::{self, Entry};
use vlm4d_train::data::image;
use vlm4d_train::data::medium::{Kind, Medium};
use vlm4d_train::data::preprocessor::{PixelBudget, PreprocessorConfig};
use vlm4d_train::data::processor::{fit, patchify};
use vlm4d_train::data::reader::Reader;
use vlm4d_train::data::split::{self, By};
use vlm4d_train::data::variant::{Shown, Variant};
use vlm4d_train::data::video::Sampling;
use vlm4d_train::eval::view::View;
use vlm4d_train::model::config::Config;
use vlm4d_train::recipe::{Control, Image, Video};

use crate::support::run::{Workplace, copy_dir, recipe, text, tiny};
use crate::support::{CHECKPOINTS, golden, json, pixel_levels};

fn data() -> PathBuf {
    golden("frames/data")
}

/// The first `n` frames of a folder.
fn list(folder: &str, n: usize, ending: &str) -> Medium {
    Medium::Frames((0..n).map(|i| format!("{folder}/{i}.{ending}").into()).collect())
}

/// The reader with which the lists were recorded.
fn reader(checkpoint: &Path, sampling: Sampling, max_pixels: usize) -> Reader {
    let vision = Config::from_dir(checkpoint).unwrap().vision;
    let video = Video { sampling, fps: 4.0, max_frames: 16, max_pixels, ..Video::default() };
    let image = Image { max_pixels: 9408, ..Image::default() };
    Reader::new(&video, &image, checkpoint, &vision).unwrap()
}

#[test]
fn rows_with_lists_equal_llama_factory() {
    let recorded = json("frames/samples.json");
    let (rows, _) = entry::read(&data(), &["lists".into()]).unwrap();
    for (family, name) in [("qwen2_vl", CHECKPOINTS[0]), ("qwen2.5_vl", CHECKPOINTS[1])] {
        let checkpoint = golden(&format!("ckpt/{name}"));
        let chat = Chat::load(&checkpoint).unwrap();
        let vision = Config::from_dir(&checkpoint).unwrap().vision;
        let reader = reader(&checkpoint, Sampling::LlamaFactory, 9408);
        let wanted = recorded[family]["rows"].as_array().unwrap();
        assert_eq!(rows.len(), wanted.len());
        for (row, wanted) in rows.iter().zip(wanted) {
            let tokens = |medium| reader.outline(&data(), medium).unwrap().0.tokens(&vision);
            let tokens: Vec<usize> = row.media.iter().map(tokens).collect();
            let encoded = chat.encode_sft(&row.messages, &tokens).unwrap();
            let encoded = json!({"input_ids": encoded.input_ids, "labels": encoded.labels});
            assert_eq!(&encoded, wanted, "{family}: {}", row.id);
        }
    }
    assert_eq!(rows[1].media, [list("right", 4, "png"), Medium::video("b.mp4")]);
}

#[test]
fn patches_and_clocks_of_lists_equal_each_tools() {
    let recorded = json("frames/samples.json");
    let bytes = fs::read(golden("frames/patches.safetensors")).unwrap();
    let kept = SafeTensors::deserialize(&bytes).unwrap();
    for (tool, lists, name, sampling, max_pixels) in [
        ("qwen2_vl", "/lists", CHECKPOINTS[0], Sampling::LlamaFactory, 9408),
        ("qwen2.5_vl", "/lists", CHECKPOINTS[1], Sampling::LlamaFactory, 9408),
        ("qwen", "", CHECKPOINTS[1], Sampling::Qwen, 100_352),
        ("hf", "", CHECKPOINTS[1], Sampling::Hf, 9408),
    ] {
        let checkpoint = golden(&format!("ckpt/{name}"));
        let config = PreprocessorConfig::from_dir(&checkpoint, Kind::Video).unwrap();
        let reader = reader(&checkpoint, sampling, max_pixels);
        // decoders of JPEG round differently
        for (medium, accepted) in [
            (list("left", 3, "jpg"), 6),
            (list("right", 4, "png"), 2),
            (list("sharp", 2, "png"), 2),
        ] {
            let folder = medium.files()[0].parent().unwrap().display().to_string();
            let wanted = recorded.pointer(&format!("/{tool}{lists}/{folder}")).unwrap();
            let (grid, [decoded, fitted]) = reader.outline(&data(), &medium).unwrap();
            let sampled = reader.read(&data(), &medium).unwrap();
            assert_eq!(sampled.second_per_grid, grid.second_per_grid);
            if let Some(seconds) = wanted["second_per_grid"][0].as_f64() {
                assert_eq!(grid.second_per_grid, Some(seconds), "{tool} {folder}");
            }
            let size = image::probe(&data().join(&medium.files()[0])).unwrap();
            assert_eq!(decoded, medium.files().len() * size.height * size.width * 3);
            let padded =
                if sampling == Sampling::LlamaFactory { 0 } else { medium.files().len() % 2 };
            let frame = fitted / medium.files().len();
            let even = medium.files().len().next_multiple_of(2);
            assert_eq!(sampled.frames.rgb.len() + padded * frame, even * frame, "{tool} {folder}");
            let shown = Shown { medium, variant: Variant::Plain };
            let patches = reader.patches(sampled.frames, &shown).unwrap();
            assert_eq!(patches.grid_thw, grid.grid_thw);
            assert_eq!(json!(grid.grid_thw), wanted["grid_thw"], "{tool} {folder}");
            let got = pixel_levels(&patches.pixel_values, &config);
            let name = format!("{tool}.{folder}");
            let worst = worst_level(&kept, &name, &got);
            assert!(worst <= accepted, "{name}: {worst} levels");
        }
    }
}

/// The largest difference in levels between patches and those that were kept under `name`.
fn worst_level(kept: &SafeTensors, name: &str, got: &[u8]) -> u8 {
    let part = |part: &str| kept.tensor(&format!("{name}.{part}")).unwrap();
    let (rows, levels) = (part("rows"), part("levels"));
    let width = levels.shape()[1];
    let rows = rows.data().as_chunks::<8>().0.iter().map(|row| i64::from_le_bytes(*row) as usize);
    let got = rows.flat_map(|row| &got[row * width..(row + 1) * width]);
    got.zip(levels.data()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn sharp_frames_and_images_equal_qwen_vl_utils() {
    let bytes = fs::read(golden("frames/patches.safetensors")).unwrap();
    let kept = SafeTensors::deserialize(&bytes).unwrap();
    let budget = PixelBudget { min_pixels: 3136, max_pixels: 6000 };
    let sharp = list("sharp", 2, "png");
    let files: Vec<PathBuf> = sharp.files().iter().map(|file| data().join(file)).collect();
    for (name, kind, n) in
        [("qwen_video.sharp", Kind::Video, 2), ("qwen_image.sharp", Kind::Image, 1)]
    {
        let config = PreprocessorConfig::from_dir(&tiny(), kind).unwrap();
        let (frames, _) = image::read_frames(&files[..n], Sampling::Qwen, false).unwrap();
        let frames = fit(frames, kind, Sampling::Qwen, &config, budget).unwrap();
        assert_eq!((frames.height, frames.width), (56, 84));
        let patches = patchify(&frames, &config).unwrap();
        let worst = worst_level(&kept, name, &pixel_levels(&patches.pixel_values, &config));
        assert!(worst <= 1, "{name}: {worst} levels");
    }
}

#[test]
fn a_list_is_named_by_its_ends() {
    let named =
        |files: &[&str]| Medium::Frames(files.iter().map(PathBuf::from).collect()).to_string();
    let bear = list("bear", 82, "jpg").to_string();
    assert!(bear.starts_with("bear/0.jpg … 81.jpg (82, "), "{bear}");
    assert!(named(&["a/1.png", "b/1.png"]).starts_with("a/1.png … b/1.png (2, "));
    assert_eq!(named(&["a.png"]), "a.png (1)");
    assert_ne!(named(&["0.png", "1.png", "3.png"]), named(&["0.png", "2.png", "3.png"]));
}

#[test]
fn frames_are_turned_as_their_files_say() {
    let turned = vec![golden("images/data/turned.jpg"); 2];
    for (upright, size) in [(false, (45, 61)), (true, (61, 45))] {
        assert_eq!(image::probe_frames(&turned, upright).unwrap(), size);
        let (frames, rotation) = image::read_frames(&turned, Sampling::Qwen, upright).unwrap();
        assert_eq!(((frames.height, frames.width), frames.len, rotation), (size, 2, 90));
    }
}

#[test]
fn frames_of_two_sizes_are_refused() {
    let medium = Medium::Frames(vec!["left/0.jpg".into(), "right/0.png".into()]);
    let reader = reader(&tiny(), Sampling::LlamaFactory, 9408);
    for error in [reader.outline(&data(), &medium).err(), reader.read(&data(), &medium).err()] {
        let told = error.unwrap().to_string();
        let wanted = "right/0.png: has 31×20 pixels, and the first frame of its video 121×90";
        assert!(told.contains(wanted), "{told}");
    }
}

/// Ten lists of three frames in `dir`, one row on each, and an eleventh on the beginning of the first.
fn rows(dir: &Path) -> Vec<Value> {
    let row = |i: usize, n: usize| {
        let videos: Vec<String> = (0..n).map(|j| format!("{i}/{j}.png")).collect();
        json!({"videos": [videos], "conversations": [
            {"from": "human", "value": "<video>Where to?"},
            {"from": "gpt", "value": "To the left."}]})
    };
    for i in 0..10 {
        fs::create_dir_all(dir.join(i.to_string())).unwrap();
        for j in 0..3 {
            let color = [20 * i, 100 * j, 50].map(|level| level as u8);
            write_frame(&dir.join(format!("{i}/{j}.png")), 61, color);
        }
    }
    (0..10).map(|i| row(i, 3)).chain([row(0, 2)]).collect()
}

fn write_frame(path: &Path, width: u32, color: [u8; 3]) {
    ::image::RgbImage::from_pixel(width, 45, ::image::Rgb(color)).save(path).unwrap();
}

fn write_rows(dir: &Path, rows: &[Value]) {
    fs::write(dir.join("rows.json"), json!(rows).to_string()).unwrap();
    let info = json!({"lists": {"file_name": "rows.json", "formatting": "sharegpt",
        "columns": {"videos": "videos"}}});
    fs::write(dir.join("dataset_info.json"), info.to_string()).unwrap();
}

#[test]
fn lists_that_share_a_frame_are_one_video_to_split_controls_and_intervals() {
    let dir = tempfile::tempdir().unwrap();
    let mut rows = rows(dir.path());
    write_frame(&dir.path().join("0/3.png"), 61, [9; 3]);
    rows.push(rows[10].clone());
    rows[11]["videos"] = json!([["0/2.png", "0/3.png"]]);
    write_rows(dir.path(), &rows);
    let (entries, _) = entry::read(dir.path(), &["lists".into()]).unwrap();
    // 10 and 11 share no frame with each other, but both with 0
    let clusters: Vec<Option<String>> = entries.iter().map(|e| e.cluster.clone()).collect();
    let first = Some(entries[0].video());
    assert_eq!(clusters, [vec![None; 10], vec![first.clone(), first]].concat());
    for seed in 0..30 {
        let drawn = split::split(&entries, seed, 0.5, 0.0, By::Video).unwrap();
        let tested = |id: &str| drawn["lists"].test.iter().any(|other| other == id);
        assert_eq!(tested("lists/0"), tested("lists/10"), "seed {seed}");
        assert_eq!(tested("lists/0"), tested("lists/11"), "seed {seed}");
        let two = [&entries[0], &entries[1], &entries[10], &entries[11]];
        let view = View::of(Control::WrongVideo, two.into_iter(), seed).unwrap();
        for entry in [&entries[0], &entries[10], &entries[11]] {
            assert_eq!(view.shown(entry)[0].medium, entries[1].media[0], "seed {seed}");
        }
    }
}

#[test]
fn what_is_no_list_of_frames_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (videos, wanted) in [
        (json!([[]]), "row 0: `videos` holds a list without frames"),
        (json!([["0/0.png", 3]]), "row 0: `videos` holds what is not a path"),
        (json!([["0/0.png", "0/9.png"]]), "0/9.png: no such file"),
        (json!(["0/0.png", "0/1.png"]), "row 0: 1 `<video>` in its messages, but 2 video(s)"),
    ] {
        let mut rows = rows(dir.path());
        rows[0]["videos"] = videos;
        write_rows(dir.path(), &rows);
        let error = entry::read(dir.path(), &["lists".into()]).unwrap_err().to_string();
        assert!(error.contains(wanted), "no `{wanted}` in {error}");
    }
}

#[test]
fn lists_go_through_the_whole_run() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    write_rows(&data, &rows(&data));
    // of the same size as coded
    fs::copy(golden("images/data/turned.jpg"), data.join("5/0.png")).unwrap();
    let recipe = recipe(&tiny(), &data, "max_steps = 2\ngrad_accum = 1").replacen(
        "[video]",
        "train = [\"lists\"]\nmirror = 0.5\nsplit = { test = 0.4 }\n[video]",
        1,
    );
    let place = Workplace::new(
        &(recipe + "controls = [\"no_video\", \"shuffled\", \"reversed\", \"wrong_video\"]"),
    );
    let plan = place.with(&["plan", "recipes/r.toml"]);
    assert!(plan.status.success(), "{}", text(&plan.stderr));
    let run = || {
        let _ = fs::remove_dir_all(place.path(""));
        let output = place.run();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let said = run();
    assert!(said.contains("data   lists 11 questions on 11 videos: "), "{said}");
    let turned =
        ") would be turned by a viewer and are used as coded, as Pillow and LLaMA-Factory do";
    assert!(said.contains(turned), "{said}");
    let report = fs::read_to_string(place.path("report.html")).unwrap();
    let asked = |file: &str| -> BTreeMap<String, Value> {
        let lines = fs::read_to_string(place.path("after").join(file)).unwrap();
        let predictions = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        predictions.map(|p| (p["id"].as_str().unwrap().to_owned(), p)).collect()
    };
    for (id, prediction) in asked("predictions.jsonl") {
        let row = id.strip_prefix("lists/").unwrap();
        let name = match row {
            "10" => list("0", 2, "png"),
            row => list(row, 3, "png"),
        };
        let name = name.to_string();
        assert_eq!(prediction["video"], name);
        let cluster = (row == "10").then(|| list("0", 3, "png").to_string());
        assert_eq!(prediction["cluster"], json!(cluster));
        let video = format!("{{\"name\":\"{name}\",\"href\":null,\"strip\":{{");
        assert!(report.contains(&video), "no {video}");
    }
    for wrong in asked("predictions_wrong_video.jsonl").into_values() {
        assert!(wrong["shown"].as_str().unwrap().contains(".png … "), "{wrong}");
        assert_ne!(wrong["shown"], wrong["video"]);
    }
    // what was kept serves until any of the frames changes
    assert!(run().contains(", 0 made in "));
    write_frame(&data.join("3/1.png"), 61, [200; 3]);
    assert!(!run().contains(", 0 made in "));

    let recipe = place.0.path().join("recipes/r.toml");
    let written = fs::read_to_string(&recipe).unwrap();
    fs::write(&recipe, written.replace("[video]", "[video]\nupright = true")).unwrap();
    let output = place.with(&["plan", "recipes/r.toml"]);
    let said = text(&output.stderr);
    assert!(
        said.contains("5/1.png: has 61×45 pixels, and the first frame of its video 45×61"),
        "{said}"
    );
    let output = place.with(&["data", "check", &data.display().to_string()]);
    let said = text(&output.stdout);
    for frame in ["5/1.png", "5/2.png"] {
        let told = format!(
            "{frame}: a viewer turns it by 0 degrees, and the first frame of its video by 90: \
             video.upright = true refuses that list"
        );
        assert!(said.contains(&told), "{said}");
    }

    let shorter = written.replace("max_frames = 4", "max_frames = 2");
    fs::write(&recipe, shorter).unwrap();
    let output = place.with(&["plan", "recipes/r.toml"]);
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(said.contains(".png … 2.png (3, "), "{said}");
    assert!(said.contains("): a list of 3 frames, and video.max_frames is 2"), "{said}");
}

#[test]
fn a_list_is_split_as_a_file_is() {
    let entries = |medium: fn(usize) -> Medium| -> Vec<Entry> {
        let of = |(i, clip): (usize, usize)| Entry {
            id: format!("set/{i}"),
            subset: "set".into(),
            media: vec![medium(clip)],
            ..Entry::default()
        };
        [0, 0, 0, 1, 1].into_iter().enumerate().map(of).collect()
    };
    let lists = entries(|clip| list(&clip.to_string(), 3, "png"));
    let files = entries(|clip| Medium::video(format!("{clip}.mp4")));
    for seed in 0..20 {
        let [lists, files] = [&lists, &files].map(|e| split::split(e, seed, 0.5, 0.0, By::Video));
        assert_eq!(lists.unwrap(), files.unwrap(), "seed {seed}");
    }
}

#[test]
fn check_reads_a_shared_frame_once() {
    let dir = tempfile::tempdir().unwrap();
    write_rows(dir.path(), &rows(dir.path()));
    let mut seen = (0, 0);
    let checked = check(dir.path(), &[], |done, all| seen = (done, all)).unwrap();
    assert_eq!(seen, (30, 30));
    assert!(checked.problems.is_empty());
}

#[test]
fn check_reads_every_frame() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    copy_dir(&self::data(), &data);
    // a path may hold what parts it from the fault
    fs::rename(data.join("left/1.jpg"), data.join("left/1: 2.jpg")).unwrap();
    let rows = fs::read_to_string(data.join("rows.json")).unwrap();
    fs::write(data.join("rows.json"), rows.replace("left/1.jpg", "left/1: 2.jpg")).unwrap();
    fs::write(data.join("left/1: 2.jpg"), "").unwrap();
    let whole = fs::read(data.join("left/2.jpg")).unwrap();
    fs::write(data.join("left/2.jpg"), &whole[..whole.len() / 2]).unwrap();
    write_frame(&data.join("right/2.png"), 5, [0; 3]);
    let output = Workplace::new("").with(&["data", "check", &data.display().to_string()]);
    let told = text(&output.stdout);
    for wanted in [
        "left/1: 2.jpg\n  cannot be read as an image: ",
        "left/2.jpg\n  the image is cut short",
        "right/2.png\n  has 5×45 pixels, and the first frame of its video 31×20",
    ] {
        assert!(told.contains(wanted), "no `{wanted}` in\n{told}");
    }
    assert!(text(&output.stderr).contains("3 questions on 3 videos and 1 images: 3 problem(s)"));
}
