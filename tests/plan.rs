//! `plan`: sizes from headers and shapes are those that a run then has.

use std::collections::BTreeMap;

use burn::module::Module;
use vlm4d_train::data::medium::{Kind, Medium};
use vlm4d_train::data::preprocessor::{PixelBudget, PreprocessorConfig};
use vlm4d_train::data::processor::{fit, patchify};
use vlm4d_train::data::reader::Reader;
use vlm4d_train::data::video::{self, Sampling, VideoOptions};
use vlm4d_train::model::config::Config;
use vlm4d_train::model::{parameters, peft};
use vlm4d_train::recipe::{Image, Lora, Part, TargetModules};

use crate::support::model::load;
use crate::support::run::{Workplace, demo_data, recipe, text, tiny};
use crate::support::{CHECKPOINTS, golden};

#[test]
fn headers_give_the_grid_that_reading_gives() {
    let checkpoint = tiny();
    let config = PreprocessorConfig::from_dir(&checkpoint, Kind::Video).unwrap();
    let vision = Config::from_dir(&checkpoint).unwrap().vision;
    let folder = demo_data().join("videos_real/davis");
    let clips = [golden("llamafactory/data/a.mp4"), golden("llamafactory/data/b.mp4")];
    let demo = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let videos: Vec<_> = demo.chain(clips).collect();
    assert!(videos.len() > 2);
    for sampling in [Sampling::Qwen, Sampling::LlamaFactory, Sampling::Hf, Sampling::Vlm4d] {
        for (max_frames, max_pixels) in [(4, 9408), (7, 50_176), (64, 200_704)] {
            let video = vlm4d_train::recipe::Video {
                sampling,
                max_frames,
                max_pixels,
                ..vlm4d_train::recipe::Video::default()
            };
            let reader = Reader::new(&video, &Image::default(), &checkpoint, &vision).unwrap();
            let budget =
                PixelBudget::new(sampling, Kind::Video, None, max_pixels, &config).unwrap();
            for path in &videos {
                let (grid, bytes) = reader.outline(&folder, &Medium::video(path)).unwrap();
                let options = VideoOptions { sampling, fps: video.fps, max_frames, upright: false };
                let clip = video::read(path, &options).unwrap();
                let seconds = clip.second_per_grid_t(config.temporal_patch_size);
                assert_eq!(bytes[0], clip.frames.rgb.len());
                let fitted = fit(clip.frames, Kind::Video, sampling, &config, budget).unwrap();
                let patches = patchify(&fitted, &config).unwrap();
                assert_eq!(grid.grid_thw, patches.grid_thw, "{sampling:?} {}", path.display());
                assert_eq!(grid.second_per_grid, Some(seconds));
            }
        }
    }
}

#[test]
fn shapes_give_the_adapter_that_is_attached() {
    let all = Some(vec![Part::Language, Part::Vision, Part::Merger]);
    let regex = TargetModules::Pattern(".*".into());
    for checkpoint in CHECKPOINTS {
        let config = Config::from_dir(&golden(&format!("ckpt/{checkpoint}"))).unwrap();
        for recipe in [
            Lora::default(),
            Lora { r: 3, use_dora: true, scope: all.clone(), ..Lora::default() },
            Lora { target_modules: regex.clone(), ..Lora::default() },
            Lora { from: Some(golden(&format!("kinds/{checkpoint}/all_dora"))), ..Lora::default() },
        ] {
            let mut planned = BTreeMap::<Part, usize>::new();
            for (name, n) in peft::sizes(&recipe, &config).unwrap() {
                *planned.entry(Part::of(&name)).or_default() += n;
            }
            let mut model = load(checkpoint);
            match &recipe.from {
                Some(dir) => drop(peft::load(&mut model, dir, 0.0).unwrap()),
                None => drop(peft::attach(&mut model, &recipe, 0).unwrap()),
            }
            let attached = parameters::count_by_part(&model.train())
                .into_iter()
                .map(|(part, c)| (part, c.trained));
            let attached: BTreeMap<_, _> = attached.filter(|(_, n)| *n > 0).collect();
            assert_eq!(planned, attached, "{checkpoint}");
        }
    }
}

#[test]
fn a_plan_says_what_a_run_then_does_and_writes_nothing() {
    let recipe = recipe(&tiny(), demo_data(), "grad_accum = 4\nepochs = 2.0");
    let place = Workplace::new(&recipe);
    let plan = |extra: &[&str]| place.with(&[&["plan", "recipes/r.toml"], extra].concat());
    let output = plan(&[]);
    let planned = text(&output.stdout);
    assert!(output.status.success(), "{planned}{}", text(&output.stderr));
    for word in ["tokens ", "reading ", "before ", "training ", "after ", "peak ", "fits "] {
        assert!(planned.lines().any(|line| line.starts_with(word)), "no `{word}` in\n{planned}");
    }
    assert!(!place.path("").exists(), "something was written");
    // Too little memory: refused, with what to lower.
    let output = plan(&["--memory", "0.01"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("the run needs about") && stderr.contains("lower "), "{stderr}");
    // The lines about model and data are the run's own, and so is the number of steps.
    let output = place.run();
    let ran = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for start in ["model ", "       language", "data "] {
        let line =
            |text: &str| text.lines().find(|line| line.starts_with(start)).map(str::to_owned);
        assert_eq!(line(&planned), line(&ran));
    }
    let steps = place.losses().len();
    assert!(planned.contains(&format!("steps  {steps} of 4 samples")), "{planned}");
}

#[test]
fn what_is_kept_of_many_samples_is_planned() {
    let training = |epochs: usize| {
        let recipe = recipe(&tiny(), demo_data(), &format!("epochs = {epochs}"));
        let place = Workplace::new(&recipe.replace("[video]", "shuffle_choices = true\n[video]"));
        let planned = text(&place.with(&["plan", "recipes/r.toml"]).stdout);
        let line = planned.lines().find_map(|line| line.strip_prefix("training "));
        let line = line.unwrap_or_else(|| panic!("{planned}"));
        let (mib, _) = line.trim().split_once(" MiB").unwrap();
        mib.parse::<f64>().unwrap()
    };
    // In 100 epochs a question has its choices in all of 24 orders.
    assert!(training(100) > training(1) + 1.0);
}
