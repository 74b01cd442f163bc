//! Awkward files: each sampled frame is the one that `PyAV` decodes at its place, however little is
//! decoded for it; what cannot be read whole is refused.

use std::fs;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};
use vlm4d_train::data::video::{self, Clip, Frames, Sampling, VideoOptions};
use vlm4d_train::hash::hex;

use crate::support::golden;

fn options(sampling: Sampling, fps: f64, max_frames: usize) -> VideoOptions {
    VideoOptions { sampling, fps, max_frames, upright: false }
}

/// A golden video, sampled.
fn read(name: &str, options: &VideoOptions) -> Clip {
    video::read(&golden("videos").join(name), options).unwrap()
}

/// `PyAV` 18 converts these with ffmpeg 8's swscale, which interpolates the chroma of interlaced
/// pictures and of odd sizes otherwise than ffmpeg 5's. Their frames are compared with those of
/// decoding all of the file.
const OTHER_CHROMA: [&str; 2] = ["interlaced.mp4", "odd.webm"];

/// By file: height, width and the hash of each frame.
fn goldens() -> Vec<(String, usize, usize, Vec<String>)> {
    let text = fs::read_to_string(golden("videos/frames.json")).unwrap();
    let files: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    let side = |file: &Value, name: &str| file[name].as_u64().unwrap() as usize;
    files
        .iter()
        .map(|(name, file)| {
            let hashes = file["sha256_rgb"].as_array().unwrap();
            let hashes = hashes.iter().map(|h| h.as_str().unwrap().to_owned()).collect();
            (name.clone(), side(file, "height"), side(file, "width"), hashes)
        })
        .collect()
}

#[test]
fn every_sampled_frame_is_the_one_that_pyav_decodes() {
    let files = goldens();
    assert_eq!(files.len(), 23);
    for (name, height, width, mut hashes) in files {
        if OTHER_CHROMA.contains(&name.as_str()) {
            let every = options(Sampling::LlamaFactory, 1000.0, 1000);
            let all = video::read_whole(&golden("videos").join(&name), &every).unwrap().frames;
            assert_eq!(all.len, hashes.len());
            hashes = (0..all.len).map(|i| hex(&Sha256::digest(all.frame(i)))).collect();
        }
        let mut seen = vec![false; hashes.len()];
        for sampling in [Sampling::Hf, Sampling::LlamaFactory, Sampling::Qwen] {
            for max_frames in [2, 3, 5, 7, 11, 16, 30, 1000] {
                let clip = read(&name, &options(sampling, 1000.0, max_frames));
                assert_eq!(clip.video.frames, hashes.len(), "{name}");
                assert_eq!((clip.frames.height, clip.frames.width), (height, width), "{name}");
                for (slot, &i) in clip.indices.iter().enumerate() {
                    let found = hex(&Sha256::digest(clip.frames.frame(slot)));
                    assert_eq!(found, hashes[i], "{name}: frame {i} of {:?}", clip.indices);
                    seen[i] = true;
                }
            }
        }
        assert!(seen.iter().all(|seen| *seen), "{name}: not every frame was tried");
    }
}

#[test]
fn only_what_is_needed_is_decoded() {
    let decoded = |name: &str, max_frames| {
        read(name, &options(Sampling::LlamaFactory, 1000.0, max_frames)).decoded
    };
    // Frames 0, 59 and 119 of ten groups of 12: the first of one, and what the last of two need.
    assert!(decoded("closed_gops.mp4", 3) <= 1 + 12 + 12);
    // All are in one group, but those that none refers to are left out.
    assert!(decoded("one_gop.mp4", 3) < 90, "{}", decoded("one_gop.mp4", 3));
    for name in ["open_gops.mp4", "open_gops.mkv", "hevc.mp4", "vp9.webm", "transport.ts"] {
        let all = decoded(name, 1000);
        assert!(decoded(name, 2) <= all / 2, "{name}: {} of {all}", decoded(name, 2));
    }
    assert_eq!(decoded("motion_jpeg.avi", 3), 3);
}

#[test]
fn frames_count_by_their_order_where_the_rate_varies() {
    let clip = read("variable_rate.mp4", &options(Sampling::Hf, 1000.0, 6));
    assert_eq!(clip.indices, [0, 10, 20, 30, 40, 50]);
    // 60 frames in 60 · 80 / 1200 s.
    assert!((clip.video.duration_s - 4.0).abs() < 0.2, "{}", clip.video.duration_s);
    assert!((clip.video.fps - 15.0).abs() < 1.0, "{}", clip.video.fps);
}

#[test]
fn pixels_are_taken_for_square() {
    // Tagged as 4:3 pixels; all tools use the coded picture.
    let clip = read("anamorphic.mp4", &options(Sampling::Qwen, 2.0, 2));
    assert_eq!((clip.frames.height, clip.frames.width), (64, 96));
}

/// `a.mp4` with the matrix of its track's header replaced by this `[a, b, c, d]`.
fn tagged(dir: &Path, matrix: [i32; 4]) -> std::path::PathBuf {
    let mut bytes = fs::read(golden("llamafactory/data/a.mp4")).unwrap();
    let header = bytes.windows(4).position(|w| w == b"tkhd").unwrap();
    assert_eq!(bytes[header + 4], 0, "version 0");
    let start = header + 44;
    let [a, b, c, d] = matrix.map(|x| x << 16);
    for (i, x) in [a, b, 0, c, d, 0, 0, 0, 1 << 30].into_iter().enumerate() {
        bytes[start + 4 * i..start + 4 * i + 4].copy_from_slice(&x.to_be_bytes());
    }
    let path = dir.join("tagged.mp4");
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_rotation_is_followed_where_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let plain = options(Sampling::Qwen, 1.0, 2);
    let coded = video::read(&golden("llamafactory/data/a.mp4"), &plain).unwrap();
    assert_eq!(coded.video.rotation, 0);
    let (h, w) = (coded.frames.height, coded.frames.width);
    let pixel = |frames: &Frames, y: usize, x: usize| {
        let at = (y * frames.width + x) * 3;
        frames.frame(1)[at..at + 3].to_vec()
    };
    for (matrix, rotation) in
        [([0, 1, -1, 0], 90), ([-1, 0, 0, -1], 180), ([0, -1, 1, 0], 270), ([1, 0, 0, 1], 0)]
    {
        let path = tagged(dir.path(), matrix);
        let clip = video::read(&path, &plain).unwrap();
        assert_eq!(clip.video.rotation, rotation);
        assert!(clip.frames == coded.frames, "it is the coded picture, as PyAV gives it");
        let upright = video::read(&path, &VideoOptions { upright: true, ..plain }).unwrap().frames;
        let size = if rotation % 180 == 0 { (h, w) } else { (w, h) };
        assert_eq!((upright.height, upright.width), size);
        // The pixel at the coded picture's top left, and one beside it.
        for x in [0, 5] {
            let (y, x_new) = match rotation {
                90 => (x, h - 1),
                180 => (h - 1, w - 1 - x),
                270 => (w - 1 - x, 0),
                _ => (0, x),
            };
            assert_eq!(pixel(&upright, y, x_new), pixel(&coded.frames, 0, x), "by {rotation}");
        }
    }
}

#[test]
fn sound_alone_is_refused() {
    let path = golden("videos/sound_only.mp4");
    let error = video::read(&path, &options(Sampling::Qwen, 2.0, 4)).unwrap_err();
    assert_eq!(error.to_string(), format!("{}: has no video stream", path.display()));
}

#[test]
fn a_broken_tail_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["closed_gops.mp4", "open_gops.mkv", "vp9.webm", "mpeg4.avi", "motion_jpeg.avi"] {
        let whole = fs::read(golden("videos").join(name)).unwrap();
        let path = dir.path().join(name);
        for share in [50, 70] {
            fs::write(&path, &whole[..whole.len() * share / 100]).unwrap();
            let Err(error) = video::read(&path, &options(Sampling::Qwen, 2.0, 4)) else {
                panic!("{name}: {share} % of it were read");
            };
            assert_eq!(error.exit_code(), 2);
            let text = error.to_string();
            assert!(text.starts_with(&path.display().to_string()), "{text}");
            assert!(text.contains("cut short") || text.contains("damaged"), "{text}");
        }
    }
}
