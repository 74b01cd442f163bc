//! The demo set: small rendered videos and questions in VLM4D's layout and schema, so that the
//! whole way from data to report runs without a download.
//!
//! In: [`DemoOptions`]. Out: a folder with `QA/{real,synthetic}_mc.json`,
//! `videos_real/{davis,ego4d,youtube-vos}/*.mp4` and `videos_synthetic/*.mp4`. "Real" videos have
//! textured backdrops, shake, grain and changing light, those of ego4d a moving camera too;
//! synthetic ones are clean.
//!
//! The same options and the same ffmpeg give the same files byte for byte: all is planned in one thread from the seed,
//! and each video is encoded by one thread of libx264.

mod figures;
mod paint;
mod questions;
mod world;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use video_rs::encode::Settings;
use video_rs::ffmpeg::{encoder, util::log};
use video_rs::frame::PixelFormat;
use video_rs::{Encoder, Frame, Options, Time};

use self::questions::{Answer, Author};
use self::world::{Scene, Source, Stage};
use crate::error::{Error, Result};

/// Before a video's path in the question files. Source: the VLM4D dataset.
const HUB: &str = "https://huggingface.co/datasets/shijiezhou/VLM4D/resolve/main";

/// Seconds that the last frame comes after a video's end.
///
/// The encoder gives the last packet no duration, so the frames are spread up to the very end. The
/// container tells the end in milliseconds, rounded up: a little later than a whole one, the last
/// frame lies before the end and readers show it.
const TAIL: f64 = 0.0004;

/// What to render.
#[derive(Clone, Debug, PartialEq)]
pub struct DemoOptions {
    /// Decides everything random.
    pub seed: u64,
    /// Videos of the real set, over its three sources in VLM4D's proportion.
    pub real_videos: usize,
    /// Videos of the synthetic set.
    pub synthetic_videos: usize,
    /// Width and height of a frame in pixels, both even.
    pub size: (u32, u32),
    /// Length of a video.
    pub seconds: f64,
    /// Frames per second.
    pub fps: u32,
}

impl Default for DemoOptions {
    /// 120 videos of 3 s: 4 × 3 merged patches of 28 pixels at half their size.
    fn default() -> Self {
        Self {
            seed: 42,
            real_videos: 60,
            synthetic_videos: 60,
            size: (224, 168),
            seconds: 3.0,
            fps: 8,
        }
    }
}

/// What was rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DemoSummary {
    /// Videos, real and synthetic.
    pub videos: usize,
    /// Questions on them.
    pub questions: usize,
}

/// Renders the demo set into the folder `out`.
///
/// It is written beside `out` first and renamed when complete. `progress` is told after each
/// video how many are done and how many there are.
///
/// # Errors
/// Input: `out` exists and is not an empty folder, or an option makes no video. Run: a file
/// cannot be written or encoded.
pub fn render(
    out: &Path,
    options: &DemoOptions,
    mut progress: impl FnMut(usize, usize),
) -> Result<DemoSummary> {
    options.check()?;
    let draft = Draft::beside(out)?;
    let [real, synthetic] = plan(options);
    let total = real.len() + synthetic.len();
    for (done, clip) in real.iter().chain(&synthetic).enumerate() {
        encode(&draft.folder.join(&clip.path), &clip.scene, options)?;
        progress(done + 1, total);
    }
    let real_questions = write_questions(&draft.folder.join("QA/real_mc.json"), real)?;
    let synthetic_questions =
        write_questions(&draft.folder.join("QA/synthetic_mc.json"), synthetic)?;
    draft.publish(out)?;
    Ok(DemoSummary { videos: total, questions: real_questions + synthetic_questions })
}

impl DemoOptions {
    fn check(&self) -> Result<()> {
        let (width, height) = self.size;
        let wrong = if width % 2 + height % 2 > 0 || width.min(height) < 56 {
            format!("{width}x{height} is no size for the demo videos: even and at least 56x56")
        } else if self.frames() < 4 || self.fps > 60 || self.seconds > 60.0 {
            let Self { seconds, fps, .. } = self;
            format!(
                "{seconds} s at {fps} frames per second is no length for the demo videos: \
                 from 4 frames to 60 s, at most 60 frames per second"
            )
        } else if self.real_videos + self.synthetic_videos == 0 {
            "the demo set needs at least one video".to_owned()
        } else if encoder::find_by_name("libx264").is_none() {
            "this ffmpeg cannot encode H.264: it was built without libx264".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::input(wrong))
    }

    /// Frames in a video.
    fn frames(&self) -> usize {
        (self.seconds * f64::from(self.fps)).round() as usize
    }
}

/// A video to be, and what is asked about it.
struct Clip {
    /// Below the data set's folder.
    path: String,
    scene: Scene,
    questions: Vec<questions::Question>,
}

/// Plans the real and the synthetic videos.
fn plan(options: &DemoOptions) -> [Vec<Clip>; 2] {
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let aspect = options.size.0 as f32 / options.size.1 as f32;
    let mut exo = Author::new(Source::Davis);
    let mut ego = Author::new(Source::Ego4d);
    let mut synthetic = Author::new(Source::Synthetic);
    let mut clips = |source: Source, author: &mut Author, number: usize| -> Vec<Clip> {
        (1..=number)
            .map(|index| {
                let mut stage = Stage::new(source, aspect, &mut rng);
                let questions = author.ask(&mut stage);
                stage.add_extras();
                Clip { path: source.path(index), scene: stage.build(), questions }
            })
            .collect()
    };
    // VLM4D's proportion: 210 davis, 300 ego4d, 90 youtube-vos.
    let davis = (options.real_videos * 7 + 10) / 20;
    let youtube = (options.real_videos * 3 + 10) / 20;
    let mut real = clips(Source::Davis, &mut exo, davis);
    real.extend(clips(Source::Ego4d, &mut ego, options.real_videos - davis - youtube));
    real.extend(clips(Source::YoutubeVos, &mut exo, youtube));
    [real, clips(Source::Synthetic, &mut synthetic, options.synthetic_videos)]
}

impl Source {
    /// Path of its video number `index` below the data set's folder.
    fn path(self, index: usize) -> String {
        match self {
            Self::Davis => format!("videos_real/davis/demo-{index:03}.mp4"),
            Self::Ego4d => format!("videos_real/ego4d/clip_{index:03}.mp4"),
            Self::YoutubeVos => format!("videos_real/youtube-vos/youtube{index:03}.mp4"),
            Self::Synthetic => format!("videos_synthetic/synth_{index:03}.mp4"),
        }
    }
}

/// Paints and encodes one video as H.264.
fn encode(path: &Path, scene: &Scene, options: &DemoOptions) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::run(format!("{}: cannot encode the video: {error}", path.display()))
    };
    let (width, height) = (options.size.0 as usize, options.size.1 as usize);
    // The encoder would otherwise report on every video; what fails is returned.
    log::set_level(log::Level::Quiet);
    let mut encoder =
        Encoder::new(path, settings(width, height, scene.grain > 0.0)).map_err(|e| failed(&e))?;
    let last = options.frames() - 1;
    let end = options.frames() as f64 / f64::from(options.fps) + TAIL;
    for index in 0..=last {
        let t = index as f32 / last as f32;
        let pixels = paint::paint(scene, t, [width, height]);
        let frame = Frame::from_shape_vec((height, width, 3), pixels).map_err(|e| failed(&e))?;
        let time = Time::from_secs_f64(end * index as f64 / last as f64);
        encoder.encode(&frame, time).map_err(|e| failed(&e))?;
    }
    encoder.finish().map_err(|e| failed(&e))
}

/// The encoder's settings; the grain of the real videos takes the loss, clean ones stay clean.
fn settings(width: usize, height: usize, grainy: bool) -> Settings {
    let settings = [
        ("preset", "veryfast"),
        ("crf", if grainy { "27" } else { "18" }),
        // More threads would cut the frames differently on another machine.
        ("threads", "1"),
        // With its macroblock trees the encoder's choices vary from run to run, and with the
        // fastest code from processor to processor.
        ("x264-params", "mbtree=0:cpu-independent=1"),
    ];
    let settings = HashMap::from(settings.map(|(key, value)| (key.to_owned(), value.to_owned())));
    Settings::preset_h264_custom(width, height, PixelFormat::YUV420P, Options::from(settings))
}

/// A question as it stands in the file.
#[derive(Serialize)]
struct Item {
    id: String,
    video: String,
    question_type: &'static str,
    question: String,
    choices: BTreeMap<char, Answer>,
    answer: Answer,
}

/// Writes the clips' questions as VLM4D does; ids restart in each file. Out: how many there are.
fn write_questions(path: &Path, clips: Vec<Clip>) -> Result<usize> {
    let mut items = Vec::new();
    for clip in clips {
        for question in clip.questions {
            items.push(Item {
                id: format!("validation_{}", items.len() + 1),
                video: format!("{HUB}/{}", clip.path),
                question_type: "multiple-choice",
                question: question.text,
                choices: question.choices,
                answer: question.answer,
            });
        }
    }
    let text = serde_json::to_string_pretty(&items)
        .map_err(|e| Error::run(format!("{}: {e}", path.display())))?;
    fs::write(path, text + "\n").map_err(|e| cannot("write", path, &e))?;
    Ok(items.len())
}

/// The folder beside the wanted one, removed again unless it is published.
struct Draft {
    folder: PathBuf,
}

impl Draft {
    /// Makes the folder, with its subfolders, once it is sure that `out` is free.
    fn beside(out: &Path) -> Result<Self> {
        let Some(name) = out.file_name() else {
            return Err(Error::input(format!("{}: no name for a folder", out.display()))
                .help("name a folder that does not exist yet"));
        };
        check_free(out)?;
        let hidden = format!(".{}.{}.partial", name.to_string_lossy(), std::process::id());
        let draft = Self { folder: out.with_file_name(hidden) };
        for part in [
            "QA",
            "videos_real/davis",
            "videos_real/ego4d",
            "videos_real/youtube-vos",
            "videos_synthetic",
        ] {
            let folder = draft.folder.join(part);
            fs::create_dir_all(&folder).map_err(|e| cannot("make", &folder, &e))?;
        }
        Ok(draft)
    }

    /// Moves the folder to `out`.
    fn publish(self, out: &Path) -> Result<()> {
        check_free(out)?;
        if out.exists() {
            fs::remove_dir(out).map_err(|e| cannot("replace", out, &e))?;
        }
        fs::rename(&self.folder, out).map_err(|e| cannot("make", out, &e))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After publishing there is nothing left; after an error, the error matters more.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Refuses anything but a free path or an empty folder.
fn check_free(out: &Path) -> Result<()> {
    if !out.exists() {
        return Ok(());
    }
    let help = "choose another folder, or remove this one first";
    if !out.is_dir() {
        return Err(Error::input(format!("{}: not a folder", out.display())).help(help));
    }
    let mut entries = fs::read_dir(out).map_err(|e| cannot("read", out, &e))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => {
            Err(Error::input(format!("{}: the folder is not empty", out.display())).help(help))
        }
    }
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::run(format!("{}: cannot {what} it: {error}", path.display()))
}
