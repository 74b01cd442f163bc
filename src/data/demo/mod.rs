//! The demo set: small rendered videos and questions in VLM4D's layout and schema, so that the
//! whole way from data to report runs without a download.
//!
//! In: [`DemoOptions`]. Out: a folder with `QA/{real,synthetic}_mc.json`,
//! `videos_real/{davis,ego4d,youtube-vos}/*.mp4` and `videos_synthetic/*.mp4`. "Real" videos have
//! textured backdrops, shake, grain and changing light, those of ego4d a moving camera too;
//! synthetic ones are clean. Beside it [`render_lessons`], a set without motion's questions from
//! which a model without any training learns to see and to answer.
//!
//! The same options and the same ffmpeg give the same files byte for byte: all is planned in one
//! thread from the seed, and each video is encoded by one thread of libx264.

mod encode;
mod families;
mod figures;
mod lessons;
mod matter;
mod paint;
mod questions;
mod scene;
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use video_rs::ffmpeg::encoder;

use self::encode::encode;
pub use self::lessons::{LessonOptions, render_lessons};
use self::questions::{Answer, Author};
use self::scene::Scene;
use self::stage::{Source, Stage};
use crate::error::{Error, Result};
use crate::{files, interrupt, parallel};

/// Before a video's path in the question files. Source: the VLM4D dataset.
const HUB: &str = "https://huggingface.co/datasets/shijiezhou/VLM4D/resolve/main";

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
            fps: 4,
        }
    }
}

/// What was rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DemoSummary {
    /// Videos of all subsets.
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
    let subsets = plan(options);
    write_set(out, |folder| {
        let films: Vec<&Film> =
            subsets.iter().flat_map(|(_, clips)| clips).map(|clip| &clip.film).collect();
        let videos = films.len();
        encode_all(folder, &films, options, |done| progress(done, videos))?;
        files::create_dir(&folder.join("QA"))?;
        let mut questions = 0;
        for (subset, clips) in subsets {
            questions += write_questions(&folder.join(format!("QA/{subset}_mc.json")), clips)?;
        }
        Ok(DemoSummary { videos, questions })
    })
}

impl DemoOptions {
    /// Videos of all subsets.
    pub fn videos(&self) -> usize {
        self.real_videos + self.synthetic_videos
    }

    fn check(&self) -> Result<()> {
        let (width, height) = self.size;
        let wrong = if width % 2 + height % 2 > 0 || width.min(height) < 56 {
            format!("{width}x{height} is no size for the demo videos: even and at least 56x56")
        } else if self.frames() < 2 || self.fps > 60 || self.seconds > 60.0 {
            let Self { seconds, fps, .. } = self;
            format!(
                "{seconds} s at {fps} frames per second is no length for the demo videos: \
                 from 2 frames to 60 s, at most 60 frames per second"
            )
        } else if self.videos() == 0 {
            "there is no video to render: ask for one at least".to_owned()
        } else if encoder::find_by_name("libx264").is_none() {
            "this ffmpeg cannot encode H.264: it was built without libx264".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::input(wrong))
    }

    /// Width of a frame over its height.
    fn aspect(&self) -> f32 {
        self.size.0 as f32 / self.size.1 as f32
    }

    /// Frames in a video.
    fn frames(&self) -> usize {
        (self.seconds * f64::from(self.fps)).round() as usize
    }
}

/// A video to be.
struct Film {
    /// Below the data set's folder.
    path: String,
    scene: Scene,
}

/// A video to be, and what is asked about it.
struct Clip {
    film: Film,
    questions: Vec<questions::Question>,
}

/// Plans the videos of each subset.
fn plan(options: &DemoOptions) -> [(&'static str, Vec<Clip>); 2] {
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let aspect = options.aspect();
    let mut clips = |source: Source, author: &mut Author, number: usize| -> Vec<Clip> {
        (1..=number)
            .map(|index| {
                let mut stage = Stage::new(source.look(), aspect, &mut rng);
                let questions = author.ask(&mut stage);
                stage.add_extras();
                let film = Film { path: source.path(index), scene: stage.build() };
                Clip { film, questions }
            })
            .collect()
    };
    // VLM4D's proportion: 210 davis, 300 ego4d, 90 youtube-vos.
    let davis = (options.real_videos * 7 + 10) / 20;
    let youtube = (options.real_videos * 3 + 10) / 20;
    let ego4d = options.real_videos - davis - youtube;
    let mut real = clips(Source::Davis, &mut Author::new(Source::Davis), davis);
    real.extend(clips(Source::Ego4d, &mut Author::new(Source::Ego4d), ego4d));
    real.extend(clips(Source::YoutubeVos, &mut Author::new(Source::YoutubeVos), youtube));
    let synthetic =
        clips(Source::Synthetic, &mut Author::new(Source::Synthetic), options.synthetic_videos);
    [("real", real), ("synthetic", synthetic)]
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
                video: format!("{HUB}/{}", clip.film.path),
                question_type: "multiple-choice",
                question: question.text,
                choices: question.choices,
                answer: question.answer,
            });
        }
    }
    files::write_json(path, &items)?;
    Ok(items.len())
}

/// Writes the folder `out` as `content` fills it, once it is sure that nothing is in its way.
fn write_set<T>(out: &Path, content: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    if out.file_name().is_none() {
        return Err(Error::input(format!("{}: no name for a folder", out.display()))
            .help("name a folder that does not exist yet"));
    }
    files::check_free(out)?;
    out.parent().map_or(Ok(()), files::check_writable)?;
    files::write_dir(out, |folder| {
        let written = content(folder)?;
        // What has come there meanwhile stays.
        files::check_free(out)?;
        if out.exists() {
            fs::remove_dir(out).map_err(|e| files::failed(out, &e))?;
        }
        Ok(written)
    })
}

/// Encodes all videos into `folder`, one thread to each; `progress` is told how many are done.
fn encode_all(
    folder: &Path,
    films: &[&Film],
    options: &DemoOptions,
    mut progress: impl FnMut(usize),
) -> Result<()> {
    let folders: BTreeSet<&Path> =
        films.iter().filter_map(|film| Path::new(&film.path).parent()).collect();
    folders.into_iter().try_for_each(|below| files::create_dir(&folder.join(below)))?;
    let film = |film: &&Film| encode(&folder.join(&film.path), &film.scene, options);
    parallel::each(films, film, |done, encoded| {
        interrupt::check("the rendering of videos")
            .map_err(|e| e.help("the same command begins anew: nothing was kept"))?;
        encoded?;
        progress(done);
        Ok(())
    })
}
