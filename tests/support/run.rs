//! The program as its users start it, what it is started on, and made-up runs of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;
use vlm4d_train::data::demo::{self, DemoOptions};
use vlm4d_train::data::split::{By, Split};
use vlm4d_train::data::vlm4d::{Format, PromptStyle};
use vlm4d_train::eval::predict::{self, Prediction};
use vlm4d_train::recipe::{Provenance, Recipe};

use super::golden;

/// The program, to be started in `dir`.
pub fn program(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vlm4d-train"));
    command.current_dir(dir);
    command
}

/// A small rendered data set, made once.
pub fn demo_data() -> &'static Path {
    static DATA: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, data) = DATA.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("demo");
        let options =
            DemoOptions { real_videos: 10, synthetic_videos: 4, ..DemoOptions::default() };
        demo::render(&data, &options, |_, _| ()).unwrap();
        (dir, data)
    });
    data
}

/// A recipe on `data`, with `extra` in `[train]`.
pub fn recipe(model: &Path, data: &Path, extra: &str) -> String {
    format!(
        "[model]\npath = {:?}\n[data]\npath = {:?}\n[video]\nmax_frames = 4\nmax_pixels = 9408\n\
         [lora]\n[train]\nlr = 1e-3\n{extra}\n[eval]\nmax_new_tokens = 4\n",
        model.display().to_string(),
        data.display().to_string(),
    )
}

/// A folder to work in, with `recipes/r.toml` in it.
pub struct Workplace(pub TempDir);

impl Workplace {
    pub fn new(recipe: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("recipes")).unwrap();
        std::fs::write(dir.path().join("recipes/r.toml"), recipe).unwrap();
        Self(dir)
    }

    pub fn command(&self) -> Command {
        let mut command = program(self.0.path());
        command.arg("recipes/r.toml");
        command
    }

    pub fn run(&self) -> Output {
        self.command().output().unwrap()
    }

    /// Runs the program with these arguments alone.
    pub fn with(&self, args: &[&str]) -> Output {
        program(self.0.path()).args(args).output().unwrap()
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.0.path().join("runs/r").join(path)
    }

    pub fn losses(&self) -> Vec<(u64, f64)> {
        let text = std::fs::read_to_string(self.path("log.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|l| (l["step"].as_u64().unwrap(), l["loss"].as_f64().unwrap())).collect()
    }
}

pub fn tiny() -> PathBuf {
    golden("ckpt/tiny-qwen2.5-vl")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &target),
            false => std::fs::write(target, std::fs::read(entry.path()).unwrap()).unwrap(),
        }
    }
}

/// Writes a `split.json` into `dir` for as many questions as VLM4D has.
pub fn write_vlm4d_split(dir: &Path, subsets: &[&str]) {
    let split = |subset: &&str| {
        let n = if *subset == "real" { 1_371 } else { 445 };
        let train: Vec<String> = (0..n).map(|i| format!("{subset}/validation_{i}")).collect();
        let [val, test, left_out] = [vec![], vec![], vec![]];
        let split = Split { seed: 42, by: By::Video, train, val, test, left_out };
        ((*subset).to_owned(), split)
    };
    let all: BTreeMap<String, Split> = subsets.iter().map(split).collect();
    std::fs::write(dir.join("split.json"), serde_json::to_string(&all).unwrap()).unwrap();
}

/// A finished run's folder, without the weights, on VLM4D's questions.
pub struct RunFolder<'a> {
    pub model: &'a str,
    pub train: &'a [&'a str],
    pub seed: u64,
    /// Keys of `data.split`.
    pub split: &'a str,
    /// Further lines of the recipe's `[data]`.
    pub data: &'a str,
    /// Further lines of the recipe's `[train]`.
    pub extra: &'a str,
    /// How many of every ten questions are answered rightly before and after.
    pub right: [usize; 2],
    /// Number of the first test question.
    pub first: usize,
    /// Hashes of question files and videos.
    pub made_from: [&'a str; 2],
}

impl Default for RunFolder<'_> {
    fn default() -> Self {
        Self {
            model: "data/models/Qwen2-VL-7B-Instruct",
            train: &["real"],
            seed: 42,
            split: "seed = 42",
            data: "",
            extra: "",
            right: [3, 6],
            first: 0,
            made_from: ["data", "videos"],
        }
    }
}

/// Test questions of a made-up run.
pub const QUESTIONS: usize = 80;

impl RunFolder<'_> {
    /// Writes it as `root/name`.
    pub fn write(&self, root: &Path, name: &str) -> PathBuf {
        let dir = root.join(name);
        let text = format!(
            "seed = {}\n[model]\npath = {:?}\n[data]\npath = \"data/vlm4d\"\ntrain = {:?}\n\
             split = {{ {} }}\n{}\n[lora]\n[train]\n{}\n",
            self.seed, self.model, self.train, self.split, self.data, self.extra
        );
        let mut recipe = Recipe::from_text(&text, "made up").unwrap();
        recipe.provenance = Some(Provenance {
            version: "0".into(),
            rules: 1,
            device: "cpu".into(),
            model_sha256: format!("hash of {}", self.model),
            data_sha256: self.made_from[0].into(),
            videos_sha256: self.made_from[1].into(),
            adapter_sha256: None,
        });
        for (stage, right) in ["before", "after"].into_iter().zip(self.right) {
            std::fs::create_dir_all(dir.join(stage)).unwrap();
            let predictions = self.predictions(right, stage == "after");
            predict::write(&dir.join(stage).join("predictions.jsonl"), &predictions).unwrap();
        }
        std::fs::write(dir.join("recipe.toml"), recipe.to_toml().unwrap()).unwrap();
        write_vlm4d_split(&dir, &[self.train, &["real"]].concat());
        dir
    }

    fn predictions(&self, right: usize, late: bool) -> Vec<Prediction> {
        let mut all = Vec::new();
        for i in self.first..self.first + QUESTIONS {
            for format in Format::ALL {
                // The seed turns which questions are answered rightly after training.
                let turn = if late { self.seed as usize } else { 0 };
                let correct = (i * 7 + turn) % 10 < right;
                let letter = if correct { "A" } else { "B" };
                let text = if correct { "left" } else { "right" };
                let answer = if format == Format::Mc { letter } else { text };
                all.push(Prediction {
                    id: format!("real/validation_{i}"),
                    subset: "real".into(),
                    source: if i % 2 == 0 { "davis" } else { "ego4d" }.into(),
                    group: if i % 2 == 0 { "exo-centric" } else { "ego-centric" }.into(),
                    video: format!("videos_real/davis/{}.mp4", i / 2),
                    cluster: None,
                    shown: None,
                    format,
                    prompt: PromptStyle::Do,
                    rotation: None,
                    question: format!("Where does number {i} go?"),
                    choices: ["left", "right", "up", "down"].map(str::to_owned).into(),
                    gold: "left".into(),
                    response: answer.into(),
                    extracted: Some(answer.into()),
                    correct,
                    grader: "rules".into(),
                    letter_logprobs: None,
                    n_video_tokens: 4,
                });
            }
        }
        all
    }
}
