//! The cache of frames and features: entries come back whole or not at all, and what was kept
//! changes no number.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use burn::tensor::{DType, Device};
use vlm4d_train::data::cache::{Cache, Key};
use vlm4d_train::data::medium::Medium;
use vlm4d_train::data::reader::Reader;
use vlm4d_train::data::variant::{Shown, Variant};
use vlm4d_train::features::{Summary, Videos, readers};
use vlm4d_train::hash;
use vlm4d_train::model::host::host;
use vlm4d_train::model::linear::Weight;
use vlm4d_train::model::nf4::Nf4;
use vlm4d_train::model::peft;
use vlm4d_train::model::qwen_vl::QwenVl;
use vlm4d_train::recipe::{Image, Lora, Quantize, TargetModules, Video};
use vlm4d_train::report::terminal::saved;

use crate::support::model::{ONE_DEVICE, load, load_quantised};
use crate::support::{golden, max_difference};

fn key(i: usize) -> Key {
    Key::new("test", &i)
}

/// The entries of a cache folder.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<PathBuf> = files.collect();
    files.sort();
    files
}

#[test]
fn an_entry_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(&dir.path().join("a/b"), 1 << 20);
    assert_eq!(cache.get::<String>(&key(1)), None);
    assert!(!dir.path().join("a").exists(), "made before there is anything to keep");
    for (i, content) in [&b""[..], b"\n", &[0, 255, 10, 13].repeat(999)].into_iter().enumerate() {
        cache.put(&key(i), &"what it is\nin two lines", content);
        let about = "what it is\nin two lines".to_owned();
        assert_eq!(cache.about(&key(i)), Some(about.clone()));
        assert_eq!(cache.get(&key(i)), Some((about, content.to_vec())));
    }
    assert_eq!((cache.damaged(), cache.trouble()), (0, None));
    assert_eq!(Cache::new(cache.dir(), 0).get::<String>(&key(1)), None, "it is switched off");
}

#[test]
fn a_damaged_entry_is_removed_wherever_the_damage_is() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path(), 1 << 20);
    let put = || cache.put(&key(7), &[1, 2, 3], b"some content");
    put();
    let path = entries(dir.path()).remove(0);
    let whole = fs::read(&path).unwrap();
    let line = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(cache.about::<Vec<u32>>(&key(7)).is_some(), at >= line, "byte {at} is wrong");
        fs::write(&path, &bytes).unwrap();
        assert_eq!(cache.get::<Vec<u32>>(&key(7)), None, "byte {at} is wrong and it was read");
        assert!(!path.exists());
        fs::write(&path, &whole[..at]).unwrap();
        assert_eq!(cache.about::<Vec<u32>>(&key(7)), None, "cut at {at} and it was read");
        assert!(!path.exists());
    }
    assert_eq!(cache.damaged(), 2 * whole.len() + line);
    // Another entry under this name is no good either.
    cache.put(&key(8), &[1, 2, 3], b"some content");
    fs::rename(entries(dir.path()).remove(0), &path).unwrap();
    assert_eq!(cache.get::<Vec<u32>>(&key(7)), None);
    put();
    assert_eq!(cache.get(&key(7)), Some((vec![1_u32, 2, 3], b"some content".to_vec())));
}

#[test]
fn what_was_not_used_for_longest_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path(), 10_000);
    let content = vec![1; 1000];
    for i in 0..8 {
        cache.put(&key(i), &(), &content);
        // The clock of a file system may be coarse.
        let age = Duration::from_secs(1000 - i as u64);
        let path = entries(dir.path())
            .into_iter()
            .max_by_key(|p| fs::metadata(p).unwrap().modified().unwrap());
        fs::File::open(path.unwrap()).unwrap().set_modified(SystemTime::now() - age).unwrap();
    }
    assert!(cache.get::<()>(&key(0)).is_some(), "the oldest is used again");
    for i in 8..11 {
        cache.put(&key(i), &(), &content);
    }
    let held: u64 = entries(dir.path()).iter().map(|p| fs::metadata(p).unwrap().len()).sum();
    assert!(held <= 10_000, "{held} bytes are held");
    let kept: Vec<usize> = (0..11).filter(|i| cache.about::<()>(&key(*i)).is_some()).collect();
    assert!(kept.contains(&0) && kept.contains(&10) && !kept.contains(&1), "{kept:?}");
    // What is larger than the whole cache is not taken in, and throws nothing out.
    cache.put(&key(99), &(), &vec![1; 20_000]);
    assert_eq!(entries(dir.path()).len(), kept.len());
}

#[test]
fn a_killed_runs_leavings_go() {
    let dir = tempfile::tempdir().unwrap();
    for (name, hours) in [("old.entry.1-1.partial", 48), ("new.entry.1-1.partial", 1)] {
        let file = fs::File::create(dir.path().join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(hours)).unwrap();
    }
    Cache::new(dir.path(), 1 << 20).put(&key(1), &(), b"x");
    let names = entries(dir.path());
    assert!(!names.iter().any(|p| p.ends_with("old.entry.1-1.partial")));
    assert!(names.iter().any(|p| p.ends_with("new.entry.1-1.partial")));
}

#[test]
fn runs_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let content = |i: usize| vec![i as u8; 5_000 + i];
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                // Each as a run of its own; the limit makes them throw out each other's entries.
                let cache = Cache::new(dir.path(), 60_000);
                for round in 0..40 {
                    let i = round % 16;
                    if let Some((about, found)) = cache.get::<usize>(&key(i)) {
                        assert_eq!((about, found), (i, content(i)));
                    }
                    cache.put(&key(i), &i, &content(i));
                }
                assert_eq!((cache.damaged(), cache.trouble()), (0, None));
            });
        }
    });
    assert!(entries(dir.path()).iter().all(|p| p.extension().unwrap() == "entry"));
}

#[test]
fn a_folder_that_cannot_be_written_is_told() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    for place in ["file", "file/cache"] {
        let cache = Cache::new(&dir.path().join(place), 1 << 20);
        cache.put(&key(1), &(), b"x");
        assert_eq!(cache.trouble().as_deref(), Some("not a folder"));
        assert_eq!(cache.get::<()>(&key(1)), None);
    }
}

/// Both golden clips, plain and mirrored.
fn shown() -> Vec<Shown> {
    let videos = ["a.mp4", "b.mp4"].map(Medium::video);
    let mut all = Shown::all(&videos, Variant::Plain);
    all.extend(Shown::all(&videos, Variant::Mirrored));
    all
}

fn read(model: &QwenVl, dir: &Path, video: &Video, cache: Cache) -> Videos {
    let checkpoint = golden("ckpt/tiny-qwen2.5-vl");
    let reader = Reader::new(video, &Image::default(), &checkpoint, &model.config.vision).unwrap();
    Videos::read(model, &ONE_DEVICE, &reader, dir, &shown(), cache, |_| ()).unwrap()
}

fn features(videos: &Videos, model: &QwenVl) -> Vec<Vec<f32>> {
    let features = videos.features(model, &shown()).unwrap();
    features.into_iter().map(|f| host(f.inner()).unwrap()).collect()
}

fn video() -> Video {
    Video { max_frames: 4, max_pixels: 9408, ..Video::default() }
}

#[test]
fn features_are_the_same_from_wherever_they_come() {
    let dir = tempfile::tempdir().unwrap();
    let data = golden("llamafactory/data");
    let model = load("tiny-qwen2.5-vl");
    let cache = || Cache::new(dir.path(), 1 << 30);
    let cold = read(&model, &data, &video(), cache());
    assert_eq!((cold.summary.shown, cold.summary.from_cache), (4, 0));
    let expected = features(&cold, &model);
    assert!(expected[0] != expected[2], "a mirrored clip has other features");
    let warm = read(&model, &data, &video(), cache());
    assert_eq!(warm.summary.from_cache, 4);
    assert_eq!(warm.grids(&shown()).unwrap(), cold.grids(&shown()).unwrap());
    assert!(features(&warm, &model) == expected);
    let off = read(&model, &data, &video(), Cache::new(dir.path(), 0));
    assert_eq!(off.summary.from_cache, 0);
    assert!(features(&off, &model) == expected);
    // Damaged or lost after it was found: made again.
    let warm = read(&model, &data, &video(), cache());
    for (i, path) in entries(dir.path()).iter().enumerate() {
        let mut bytes = fs::read(path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        match i % 2 {
            0 => fs::write(path, bytes).unwrap(),
            _ => fs::remove_file(path).unwrap(),
        }
    }
    assert!(features(&warm, &model) == expected);
    let warm = read(&model, &data, &video(), cache());
    assert_eq!((warm.summary.from_cache, warm.summary.damaged), (4, 0));
}

#[test]
fn the_hash_of_the_media_does_not_vary() {
    let model = load("tiny-qwen2.5-vl");
    let checkpoint = golden("ckpt/tiny-qwen2.5-vl");
    let image = Image { max_pixels: 9408, ..Image::default() };
    let reader = Reader::new(&video(), &image, &checkpoint, &model.config.vision).unwrap();
    let sha256 = |dir: &Path, media: &[Medium]| {
        let shown = Shown::all(media, Variant::Plain);
        let off = Cache::new(dir, 0);
        Videos::read(&model, &ONE_DEVICE, &reader, dir, &shown, off, |_| ()).unwrap().sha256()
    };
    let data = golden("frames/data");
    let of = |name: &str| hash::file(&data.join(name)).unwrap();
    let two = of("right/0.png") + &of("right/1.png");
    let names = |n: usize| (0..n).map(|i| format!("right/{i}.png").into()).collect();
    let media = [Medium::image("right/0.png"), Medium::Frames(names(2)), Medium::video("b.mp4")];
    // as runs have kept it since there are lists
    let kept = format!(
        "{{\"b.mp4\": {:?}, \"right/0.png\": {:?}, \"right/0.png\\nright/1.png\": {:?}}}",
        of("b.mp4"),
        of("right/0.png"),
        hash::text(&two)
    );
    assert_eq!(sha256(&data, &media), hash::text(&kept));
    let alone = [Medium::image("right/0.png"), Medium::Frames(names(1))];
    let first = sha256(&data, &alone);
    for _ in 0..20 {
        assert_eq!(sha256(&data, &alone), first);
    }
}

#[test]
fn what_keeping_saves_is_time_that_passes() {
    let readers = readers() as f64;
    let summary = |decoding_s: f64, tower_s: f64| Summary {
        shown: 10,
        decoding_s: decoding_s * readers,
        tower_s,
        elapsed_s: 20.0,
        ..Summary::default()
    };
    assert_eq!(saved(&summary(5.0, 20.0), 30), 40.0, "twice more what it took");
    assert_eq!(saved(&summary(20.0, 5.0), 30), 40.0, "as many at once as read");
    // Whatever was made and whatever was found, the rest is what this run did not do.
    for (from_cache, elapsed_s) in [(5, 10.0), (10, 1.0)] {
        let kept = Summary { from_cache, elapsed_s, ..summary(5.0, 20.0) };
        assert_eq!(saved(&kept, 30) + elapsed_s, 60.0, "{from_cache} from the cache");
    }
}

#[test]
fn what_was_kept_costs_what_it_took_to_make() {
    let dir = tempfile::tempdir().unwrap();
    let model = load("tiny-qwen2.5-vl");
    let read = || {
        let cache = Cache::new(dir.path(), 1 << 30);
        read(&model, &golden("llamafactory/data"), &video(), cache).summary
    };
    let equal = |a: f64, b: f64| (a - b).abs() < 1e-9;
    let cold = read();
    assert!(cold.decoding_s > 0.0 && cold.tower_s > 0.0);
    let warm = read();
    assert!(equal(warm.decoding_s, cold.decoding_s) && equal(warm.tower_s, cold.tower_s));
    // Lost features take the tower again, and what decoding their frames took still counts, as kept.
    let again = || {
        for path in entries(dir.path()) {
            if path.to_string_lossy().contains("features-") {
                fs::remove_file(path).unwrap();
            }
        }
        read()
    };
    let (once, twice) = (again(), again());
    assert_eq!((once.from_cache, twice.from_cache), (0, 0));
    assert!(once.tower_s > 0.0 && once.decoding_s > 0.0);
    assert!(equal(once.decoding_s, twice.decoding_s), "decoded anew");
}

#[test]
fn other_settings_weights_or_files_find_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    for name in ["a.mp4", "b.mp4"] {
        fs::copy(golden("llamafactory/data").join(name), data.path().join(name)).unwrap();
    }
    let model = load("tiny-qwen2.5-vl");
    let found = |model: &QwenVl, video: &Video| {
        let videos = read(model, data.path(), video, Cache::new(dir.path(), 1 << 30));
        videos.summary.from_cache
    };
    assert_eq!(found(&model, &video()), 0);
    assert_eq!(found(&model, &video()), 4);
    assert_eq!(found(&model, &Video { fps: 1.5, ..video() }), 0);
    assert_eq!(found(&model, &Video { max_frames: 2, ..video() }), 0);
    assert_eq!(found(&model, &Video { max_pixels: 3136, ..video() }), 0);
    let mut other = model.clone();
    let weight = &mut other.visual.patch_embed.proj.weight;
    *weight = weight.val().mul_scalar(1.001).into();
    assert_eq!(found(&other, &video()), 0);
    // The same weights in four bits, and others.
    let checkpoint = golden("ckpt/tiny-qwen2.5-vl");
    let mut other = load_quantised(&checkpoint, DType::F32, Some(Quantize::Nf4));
    assert_eq!(found(&other, &video()), 0);
    assert_eq!(found(&other, &video()), 4);
    let layer = &mut other.visual.blocks[1].attn.proj;
    let [i, o] = layer.shape();
    let scaled = host(layer.weight.val().transpose().mul_scalar(1.1)).unwrap();
    layer.weight = Weight::Nf4(Nf4::new(scaled, [o, i], DType::F32, &Device::flex()));
    assert_eq!(found(&other, &video()), 0);
    // The same name with another content.
    fs::copy(data.path().join("a.mp4"), data.path().join("b.mp4")).unwrap();
    let videos = read(&model, data.path(), &video(), Cache::new(dir.path(), 1 << 30));
    assert_eq!(videos.summary.from_cache, 4, "what counts is the content");
    let same = features(&videos, &model);
    assert!(same[0] == same[1]);
}

#[test]
fn a_file_that_changes_during_the_run_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| {
        fs::copy(golden("llamafactory/data").join(from), data.path().join(to)).unwrap();
    };
    copy("a.mp4", "a.mp4");
    copy("b.mp4", "b.mp4");
    let dir = tempfile::tempdir().unwrap();
    let model = load("tiny-qwen2.5-vl");
    let cache = || Cache::new(dir.path(), 1 << 30);
    read(&model, data.path(), &video(), cache());
    let videos = read(&model, data.path(), &video(), cache());
    fs::remove_dir_all(dir.path()).unwrap();
    copy("a.mp4", "b.mp4");
    let Err(error) = videos.features(&model, &shown()) else { panic!("it was used") };
    assert!(error.to_string().contains("b.mp4: has changed during the run"), "{error}");
}

#[test]
fn frames_are_kept_where_the_vision_tower_is_trained() {
    use burn::module::Module;
    use burn::tensor::Tensor;

    let dir = tempfile::tempdir().unwrap();
    let data = golden("llamafactory/data");
    let mut model = load("tiny-qwen2.5-vl");
    let pattern = r".*visual\.blocks\.\d+\.attn\.qkv".to_owned();
    let lora = Lora { target_modules: TargetModules::Pattern(pattern), ..Lora::default() };
    peft::attach(&mut model, &lora, 1).unwrap();
    let model = model.train();
    let cold = read(&model, &data, &video(), Cache::new(dir.path(), 1 << 30));
    let tensors = cold.features(&model, &shown()).unwrap();
    assert!(tensors.iter().all(Tensor::is_tracked), "there is no tape");
    let expected = features(&cold, &model);
    let warm = read(&model, &data, &video(), Cache::new(dir.path(), 1 << 30));
    assert_eq!(warm.summary.from_cache, 4);
    assert!(features(&warm, &model) == expected);
    // The frozen tower's features are not these.
    let frozen = load("tiny-qwen2.5-vl");
    let videos = read(&frozen, &data, &video(), Cache::new(dir.path(), 1 << 30));
    assert_eq!(videos.summary.from_cache, 0);
    // B is zero: the adapter changes nothing yet.
    for (found, expected) in features(&videos, &frozen).iter().zip(&expected) {
        assert!(max_difference(found, expected) < 1e-5);
    }
}
