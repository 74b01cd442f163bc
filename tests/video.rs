//! Sampling rules, decoded bytes and errors of the video reader, against what the tools
//! themselves gave.

use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};
use vlm4d_train::data::video::{self, Sampling, VideoInfo, VideoOptions};
use vlm4d_train::hash::hex;

use crate::support::{golden, json};

fn numbers(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect()
}

fn info(frames: usize, fps: f64) -> VideoInfo {
    let duration_s = frames as f64 / fps;
    VideoInfo { frames, fps, duration_s, width: 64, height: 48, rotation: 0 }
}

fn options(sampling: Sampling, fps: f64, max_frames: usize) -> VideoOptions {
    VideoOptions { sampling, fps, max_frames, upright: false }
}

#[test]
fn sampling_equals_the_tools() {
    let rules = [
        ("qwen_vl_utils", Sampling::Qwen, 768),
        ("hf", Sampling::Hf, 768),
        ("llamafactory_maxlen128", Sampling::LlamaFactory, 128),
    ];
    let table = json("tables/frame_sampling.json");
    let rows = table["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 19);
    for row in rows {
        let video = info(
            row["total_frames"].as_u64().unwrap() as usize,
            row["video_fps"].as_f64().unwrap(),
        );
        let fps = row["fps"].as_f64().unwrap();
        for (column, sampling, max_frames) in rules {
            let found = sampling.indices(&video, fps, max_frames);
            if row[column].is_string() {
                let what = found.unwrap_err();
                assert!(what.starts_with("has 1 frame, sampling `"), "{what}");
                continue;
            }
            let expected = numbers(&row[column]);
            assert_eq!(found.as_ref(), Ok(&expected), "{column} of {row}");
            if sampling == Sampling::Qwen {
                let sample_fps = sampling.sample_fps(&video, expected.len());
                let tool = row["qwen_vl_utils_sample_fps"].as_f64().unwrap();
                assert!((sample_fps / tool - 1.0).abs() < 1e-12, "{sample_fps} {tool}");
            }
        }
    }
}

#[test]
fn vlm4d_takes_whole_seconds() {
    let indices = |video, fps, max| Sampling::Vlm4d.indices(&video, fps, max);
    // 4.9 s at 1 fps are 4 frames: linspace(0, 48, 4).
    assert_eq!(indices(info(49, 10.0), 1.0, 64), Ok(vec![0, 16, 32, 48]));
    // linspace(0, 99, 8) has the fractions 14.14, 28.28, …, 84.86, rounded down.
    assert_eq!(indices(info(100, 25.0), 2.0, 64), Ok(vec![0, 14, 28, 42, 56, 70, 84, 99]));
    // 4.9 s at 2 fps are 8 frames, not 9.
    assert_eq!(indices(info(49, 10.0), 2.0, 64).unwrap().len(), 8);
    assert_eq!(indices(info(3000, 30.0), 1.0, 64).unwrap().len(), 64);
    assert!(indices(info(9, 10.0), 1.0, 64).unwrap_err().starts_with("lasts 0.90 s"));
    // Its clock is the processor's default, whatever was sampled.
    assert_eq!(Sampling::Vlm4d.sample_fps(&info(150, 30.0), 5), 2.0);
}

#[test]
fn impossible_options_are_named() {
    let error = |s: Sampling, fps, max| s.indices(&info(30, 10.0), fps, max).unwrap_err();
    assert!(error(Sampling::Qwen, 2.0, 1).contains("`max_frames` is 1"));
    assert!(error(Sampling::LlamaFactory, 2.0, 0).contains("`max_frames` is 0"));
    for fps in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(error(Sampling::Hf, fps, 8).contains("`fps`"));
    }
}

#[test]
fn names_in_recipes() {
    let name = |s: Sampling| serde_json::to_string(&s).unwrap();
    assert_eq!(name(Sampling::Qwen), "\"qwen\"");
    assert_eq!(name(Sampling::LlamaFactory), "\"llamafactory\"");
    assert_eq!(name(Sampling::Hf), "\"hf\"");
    assert_eq!(name(Sampling::Vlm4d), "\"vlm4d\"");
}

#[test]
fn frames_equal_llamafactory() {
    let samples = json("llamafactory/lf_samples.json");
    let hashes = json("llamafactory/frames.json");
    for (model, fps) in [("qwen2_vl", 2.0), ("qwen2.5_vl", 4.0)] {
        for name in ["a", "b"] {
            let recorded = &samples[model]["videos"][format!("data/{name}.mp4")];
            let path = golden(&format!("llamafactory/data/{name}.mp4"));
            let clip = video::read(&path, &options(Sampling::LlamaFactory, fps, 16)).unwrap();
            assert_eq!(clip.video.frames as u64, recorded["total"].as_u64().unwrap());
            assert_eq!(clip.video.fps, recorded["fps"].as_f64().unwrap());
            assert_eq!(clip.video.duration_s, recorded["duration"].as_f64().unwrap());
            assert_eq!(clip.indices, numbers(&recorded["sample_indices"]));
            assert_eq!(clip.sample_fps, recorded["fps_per_video"][0].as_f64().unwrap());
            if let Some(seconds) = recorded["second_per_grid_ts"][0].as_f64() {
                assert_eq!(clip.second_per_grid_t(2), seconds);
            }

            let expected = &hashes[model][format!("data/{name}.mp4")]["sha256_rgb"];
            let digest = |i| hex(&Sha256::digest(clip.frames.frame(i)));
            let found: Vec<String> = (0..clip.frames.len).map(digest).collect();
            assert_eq!(Value::from(found), *expected, "{model} {name}: the bytes differ");
        }
    }
}

#[test]
fn probe_tells_what_the_container_says() {
    let found = video::probe(&golden("llamafactory/data/b.mp4")).unwrap();
    let (width, height) = (80, 120);
    let expected = VideoInfo { frames: 45, fps: 15.0, duration_s: 3.0, width, height, rotation: 0 };
    assert_eq!(found, expected);
}

/// The error that reading `bytes`, stored as `clip.mp4`, gives, without the file's path.
fn error_of(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.mp4");
    std::fs::write(&path, bytes).unwrap();
    error_at(&path)
}

fn error_at(path: &Path) -> String {
    let Err(error) = video::read(path, &options(Sampling::Qwen, 2.0, 16)) else {
        panic!("{}: was read", path.display());
    };
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    let prefix = format!("{}: ", path.display());
    error
        .what()
        .strip_prefix(&prefix)
        .unwrap_or_else(|| panic!("no path first: {text}"))
        .to_string()
}

#[test]
fn a_length_that_is_not_stated_is_counted() {
    let found = video::probe(&golden("videos/live.webm")).unwrap();
    assert_eq!((found.frames, found.fps, found.duration_s), (24, 24.0, 1.0));
}

#[test]
fn unreadable_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(error_at(&folder.path().join("none.mp4")), "no such file");
    assert_eq!(error_at(folder.path()), "is not a file");
    assert_eq!(error_of(b""), "the file is empty");
    let text = error_of(b"this is a text, and no video at all\n".repeat(99).as_slice());
    assert_eq!(text, "is not a video, or is cut short or damaged");
    assert_eq!(error_of(&silence()), "has no video stream");
    let picture = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x02\0\0\0\x02\x08\x02\0\0\0\xfd\xd4\x9as";
    assert_eq!(error_of(picture), "is a picture, not a video");
}

/// A second of silence as a WAV file.
fn silence() -> Vec<u8> {
    let (rate, samples) = (8000_u32, 8000_u32);
    let mut wav = Vec::new();
    wav.extend(b"RIFF");
    wav.extend((36 + samples).to_le_bytes());
    wav.extend(b"WAVEfmt ");
    wav.extend(16_u32.to_le_bytes());
    wav.extend([1, 0, 1, 0]); // PCM, one channel
    wav.extend(rate.to_le_bytes());
    wav.extend(rate.to_le_bytes());
    wav.extend([1, 0, 8, 0]); // one byte a sample
    wav.extend(b"data");
    wav.extend(samples.to_le_bytes());
    wav.resize(wav.len() + samples as usize, 128);
    wav
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    // With its index at the end, a file that lacks a part of it cannot even be opened.
    let bytes = std::fs::read(golden("llamafactory/data/a.mp4")).unwrap();
    let text = "is not a video, or is cut short or damaged";
    let index = bytes.windows(4).position(|w| w == b"moov").unwrap() - 4;
    assert_eq!(error_of(&bytes[..index]), text);
    for lost in [100, 300, 500, 700, 900, 1100] {
        let error = error_of(&bytes[..bytes.len() - lost]);
        assert!(error == text || error.starts_with("has no "), "{error}");
    }
    // With its index first, it opens and plays to the cut.
    let bytes = index_first(&bytes);
    for tenths in 3..10 {
        let error = error_of(&bytes[..bytes.len() * tenths / 10]);
        assert!(error.contains("cut short") || error.contains("damaged"), "{error}");
    }
    let error = error_of(&bytes[..bytes.len() - 1]);
    assert!(error.contains(" of 40 frames: the file is cut short"), "{error}");
}

#[test]
fn a_file_cut_between_two_frames_is_refused() {
    let bytes = index_first(&std::fs::read(golden("llamafactory/data/a.mp4")).unwrap());
    let sizes = bytes.windows(4).position(|w| w == b"stsz").unwrap();
    let last = be_u32(&bytes, sizes + 16 + 4 * 39);
    let error = error_of(&bytes[..bytes.len() - last as usize]);
    assert!(error.contains(" of 40 frames: the file is cut short"), "{error}");
}

#[test]
fn damaged_frames_are_refused() {
    let mut bytes = index_first(&std::fs::read(golden("llamafactory/data/a.mp4")).unwrap());
    let half = bytes.len() / 2;
    bytes[half..half + 2000].fill(0);
    let error = error_of(&bytes);
    assert!(error.starts_with("cannot be decoded after "), "{error}");
}

#[test]
fn a_transport_stream_may_lack_a_piece() {
    const PIECE: usize = 188;
    let mut bytes = std::fs::read(golden("videos/transport.ts")).unwrap();
    let half = bytes.len() / PIECE / 2 * PIECE;
    bytes.drain(half..half + PIECE);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lossy.ts");
    std::fs::write(&path, bytes).unwrap();
    let clip = video::read(&path, &options(Sampling::Qwen, 24.0, 100)).unwrap();
    assert!(clip.video.frames > 55, "{} of 60 frames", clip.video.frames);
}

#[test]
fn qwen_counts_more_frames_than_the_container_says() {
    let mut bytes = std::fs::read(golden("llamafactory/data/a.mp4")).unwrap();
    let times = bytes.windows(4).position(|w| w == b"stts").unwrap();
    assert_eq!(be_u32(&bytes, times + 12), 40, "a.mp4 has 40 frames");
    bytes[times + 12..times + 16].copy_from_slice(&20_u32.to_be_bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("more.mp4");
    std::fs::write(&path, bytes).unwrap();
    let last =
        |sampling| video::read(&path, &options(sampling, 1.0, 4)).unwrap().indices.last().copied();
    assert_eq!((last(Sampling::Qwen), last(Sampling::LlamaFactory)), (Some(39), Some(19)));
}

#[test]
fn frames_hidden_by_an_edit_list_do_not_count() {
    let mut bytes = std::fs::read(golden("llamafactory/data/a.mp4")).unwrap();
    let list = bytes.windows(4).position(|w| w == b"elst").unwrap();
    let duration = list + 12;
    assert_eq!(be_u32(&bytes, duration), 4000, "a.mp4 lasts 4 s");
    bytes[duration..duration + 4].copy_from_slice(&2000_u32.to_be_bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("half.mp4");
    std::fs::write(&path, bytes).unwrap();
    let clip = video::read(&path, &options(Sampling::Qwen, 2.0, 4)).unwrap();
    assert_eq!(clip.video.frames, 20);
    assert_eq!(clip.indices, [0, 6, 13, 19]);
}

fn be_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// The same mp4 with `moov`, the index, before `mdat`, the frames.
fn index_first(mp4: &[u8]) -> Vec<u8> {
    let mut boxes = Vec::new();
    let mut rest = mp4;
    while !rest.is_empty() {
        let (head, tail) = rest.split_at(be_u32(rest, 0) as usize);
        boxes.push(head.to_vec());
        rest = tail;
    }
    let at = boxes.iter().position(|b| &b[4..8] == b"moov").unwrap();
    let mut moov = boxes.remove(at);
    let shift = u32::try_from(moov.len()).unwrap();
    let offsets = moov.windows(4).position(|w| w == b"stco").unwrap() + 12;
    for i in 0..be_u32(&moov, offsets - 4) as usize {
        let at = offsets + 4 * i;
        let moved = be_u32(&moov, at) + shift;
        moov[at..at + 4].copy_from_slice(&moved.to_be_bytes());
    }
    boxes.insert(1, moov);
    boxes.concat()
}

#[test]
fn the_tagged_color_matrix_is_used() {
    let bytes = std::fs::read(golden("llamafactory/data/a.mp4")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bt709.mp4");
    std::fs::write(&path, tag_bt709(&bytes)).unwrap();
    let options = options(Sampling::Qwen, 1.0, 4);
    let bt709 = video::read(&path, &options).unwrap().frames.rgb;
    let untagged = video::read(&golden("llamafactory/data/a.mp4"), &options).unwrap().frames.rgb;
    let (mut sum, mut pixels) = (0.0, 0);
    for (found, bt601) in bt709.chunks(3).zip(untagged.chunks(3)) {
        // A clipped channel does not tell the picture's own values.
        if [found, bt601].concat().iter().any(|v| !(4..=251).contains(v)) {
            continue;
        }
        let expected = bt601_as_bt709(bt601);
        sum += (0..3).map(|c| (f64::from(found[c]) - expected[c]).abs()).sum::<f64>();
        pixels += 1;
    }
    assert!(pixels > 10_000, "{pixels} pixels are unclipped");
    let mean = sum / f64::from(3 * pixels);
    assert!(mean < 1.0, "the channels differ by {mean} levels on average");
}

/// RGB decoded with BT.601's matrix, as BT.709's would have given it.
fn bt601_as_bt709(rgb: &[u8]) -> [f64; 3] {
    let [r, g, b] = [0, 1, 2].map(|c| f64::from(rgb[c]));
    let y = 0.299 * r + 0.587 * g + 0.114 * b;
    let (blue, red) = ((b - y) / (2.0 - 0.228), (r - y) / (2.0 - 0.598));
    let (kr, kb) = (0.2126, 0.0722);
    let (r, b) = (y + red * (2.0 - 2.0 * kr), y + blue * (2.0 - 2.0 * kb));
    [r, (y - kr * r - kb * b) / (1.0 - kr - kb), b]
}

/// The same mp4 with a `colr` box in its sample entry that says BT.709.
fn tag_bt709(mp4: &[u8]) -> Vec<u8> {
    let mut mp4 = mp4.to_vec();
    let tag = b"\0\0\0\x13colrnclx\0\x01\0\x01\0\x01\0";
    let start =
        |name: &[u8; 4], bytes: &[u8]| bytes.windows(4).position(|w| w == name).unwrap() - 4;
    let entry = start(b"avc1", &mp4[start(b"moov", &mp4)..]) + start(b"moov", &mp4);
    let end = entry + be_u32(&mp4, entry) as usize;
    let grown = [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"];
    let mut boxes: Vec<usize> = grown.iter().map(|name| start(name, &mp4)).collect();
    boxes.push(entry);
    for at in boxes {
        let size = be_u32(&mp4, at) + u32::try_from(tag.len()).unwrap();
        mp4[at..at + 4].copy_from_slice(&size.to_be_bytes());
    }
    mp4.splice(end..end, tag.iter().copied());
    mp4
}
