//! Frames → patches → vision features, computed once per video and kept. An image is a video of one
//! frame here.
//!
//! Decoding runs in threads ahead of the vision tower, and several devices share the work. What is
//! read is kept in memory up to a limit and on disk ([`Cache`]), for the rest of the run and for the
//! next: frames as they are cut into patches, and, while the vision tower is frozen, its features.
//! Where neither has them, they are made again: a run's numbers do not depend on what was kept.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::data::cache::{Cache, Key};
use crate::data::medium::{Kind, Medium};
use crate::data::reader::{Reader, Sampled};
use crate::data::variant::{Shown, Variant};
use crate::data::video::Frames;
use crate::error::{Error, Result};
use crate::lanes::Lanes;
use crate::model::host::data;
use crate::model::parameters;
use crate::model::qwen_vl::QwenVl;
use crate::model::rope::MediaGrid;
use crate::recipe::Part;
use crate::{hash, interrupt, parallel};

/// Decoded videos that may wait for the vision tower.
pub const AHEAD: usize = 4;
/// Bytes of frames and features that are kept in memory.
pub const IN_MEMORY: usize = 2 << 30;

/// How many videos are decoded at a time.
pub fn readers() -> usize {
    parallel::cores().min(AHEAD)
}

/// The error of a file of the data folder `dir`, with how to find all such.
pub fn of_many(e: Error, dir: &Path, kind: Kind) -> Error {
    let Some(fix) = e.fix() else { return e };
    let (dir, kind) = (dir.display(), kind.name());
    let help = format!("{fix}; `vlm4d-train data check {dir}` names all such {kind}s");
    e.help(help)
}

/// What the cache says about an entry of frames.
#[derive(Serialize, Deserialize)]
struct AboutFrames {
    video: String,
    len: usize,
    height: usize,
    width: usize,
    second_per_grid: Option<f64>,
    rotation: usize,
    /// Seconds that decoding and resizing took.
    cost_s: f64,
}

/// What the cache says about an entry of features.
#[derive(Serialize, Deserialize)]
struct AboutFeatures {
    video: String,
    dtype: DType,
    shape: Vec<usize>,
    grid_thw: [usize; 3],
    second_per_grid: Option<f64>,
    rotation: usize,
    /// Seconds that decoding and resizing the frames took.
    decoding_s: f64,
    /// Seconds that the vision tower took.
    tower_s: f64,
}

/// The videos and images of a run, ready for the model.
pub struct Videos {
    reader: Reader,
    dir: PathBuf,
    cache: Cache,
    /// What the vision tower's features depend on beside the frames; none where it is trained.
    tower: Option<String>,
    known: HashMap<Shown, Known>,
    memory: Mutex<Memory>,
    /// What reading the videos has come to.
    pub summary: Summary,
}

/// What has been found out about a video.
#[derive(Clone)]
struct Known {
    grid: MediaGrid,
    /// SHA-256 of its file, or of those of all its frames.
    content: String,
}

/// What reading the videos has come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Videos and images, each variant for itself.
    pub shown: usize,
    /// Those that were in the cache.
    pub from_cache: usize,
    /// Seconds of the threads that decode and resize all of them, or did when they were kept.
    pub decoding_s: f64,
    /// Seconds of the vision tower, likewise; 0 where it is trained and no features are kept.
    pub tower_s: f64,
    /// Seconds that this run spent on reading them.
    pub elapsed_s: f64,
    /// Bytes of all of them.
    pub bytes: usize,
    /// Those whose files say that a player turns their pictures, which was not done.
    pub sideways: BTreeSet<Medium>,
    /// Entries of the cache that were damaged and made anew.
    pub damaged: usize,
    /// What kept the cache from being written.
    pub trouble: Option<String>,
    /// Whether some fit neither in memory nor in the cache, and are decoded again for each use.
    pub again: bool,
}

impl Summary {
    /// Counts what another lane read.
    fn add(&mut self, other: Self) {
        self.from_cache += other.from_cache;
        self.decoding_s += other.decoding_s;
        self.tower_s += other.tower_s;
        self.bytes += other.bytes;
        self.sideways.extend(other.sideways);
    }
}

/// What is kept in memory.
#[derive(Default)]
struct Memory {
    held: usize,
    frames: HashMap<Medium, Sampled>,
    features: HashMap<Shown, TensorData>,
}

impl Memory {
    /// Whether `bytes` more fit; they then count as held.
    fn admit(&mut self, bytes: usize) -> bool {
        let fits = self.held + bytes <= IN_MEMORY;
        self.held += if fits { bytes } else { 0 };
        fits
    }
}

/// What a thread that reads ahead has for the vision tower.
enum Ahead {
    /// The features are in the cache.
    Features(Known, AboutFeatures),
    /// The frames, and whether they come from the cache.
    Frames(String, Sampled, bool),
}

impl Videos {
    /// Reads `videos`, relative to `dir`, or finds them in `cache`; `progress` is told after each,
    /// with how many are done. `model` is in training form, and the devices of `lanes` share the work.
    ///
    /// # Errors
    /// Where a video cannot be read.
    pub fn read(
        model: &QwenVl,
        lanes: &Lanes,
        reader: &Reader,
        dir: &Path,
        videos: &[Shown],
        cache: Cache,
        progress: impl Fn(usize) + Sync,
    ) -> Result<Self> {
        let start = Instant::now();
        let mut all = Self {
            reader: reader.clone(),
            dir: dir.to_owned(),
            cache,
            tower: frozen_tower(model)?,
            known: HashMap::new(),
            memory: Mutex::default(),
            summary: Summary { shown: videos.len(), ..Summary::default() },
        };
        let (n, done) = (lanes.on_devices(videos.len()), AtomicUsize::new(0));
        let read = |shown| (shown, all.read_ahead(shown));
        let parts = lanes.run(model, n, |model, lane, others| {
            let (frozen, own) = (model.valid(), videos.iter().skip(lane).step_by(n));
            let (mut known, mut summary) = (HashMap::new(), Summary::default());
            let (own, workers) = (own.collect::<Vec<_>>(), readers().div_ceil(n));
            parallel::each_ahead(
                &own,
                workers,
                AHEAD,
                |shown| read(*shown),
                |_, (shown, ahead)| {
                    interrupt::check("the decoding")?;
                    others.check()?;
                    let found = all.take_in(&frozen, shown, ahead?, &mut summary)?;
                    known.insert(shown.clone(), found);
                    progress(done.fetch_add(1, Ordering::Relaxed) + 1);
                    Ok(())
                },
            )?;
            Ok((known, summary))
        })?;
        let (mut known, mut summary) = (HashMap::new(), all.summary.clone());
        for (of_lane, told) in parts {
            known.extend(of_lane);
            summary.add(told);
        }
        // The lanes worked at once.
        summary.tower_s /= n.max(1) as f64;
        summary.elapsed_s = start.elapsed().as_secs_f64();
        summary.damaged = all.cache.damaged();
        summary.trouble = all.cache.trouble();
        let on_disk = if summary.trouble.is_none() { all.cache.limit() } else { 0 };
        summary.again = summary.bytes as u64 > IN_MEMORY as u64 + on_disk;
        (all.known, all.summary) = (known, summary);
        Ok(all)
    }

    /// Grids of `videos`, in order.
    ///
    /// # Errors
    /// Where one was not read.
    pub fn grids(&self, videos: &[Shown]) -> Result<Vec<MediaGrid>> {
        videos.iter().map(|shown| Ok(self.known(shown)?.grid)).collect()
    }

    /// Features of `videos`, in order, `[v, hidden]` each; with a tape where `model`'s vision
    /// tower is trained.
    ///
    /// # Errors
    /// Where one was not read, or has changed since.
    pub fn features(&self, model: &QwenVl, videos: &[Shown]) -> Result<Vec<Tensor<2>>> {
        let features = videos.iter().map(|shown| {
            let known = self.known(shown)?;
            if self.tower.is_none() {
                let frames = self.frames(&shown.medium, &known.content)?.0.frames;
                let patches = self.reader.patches(frames, shown)?;
                return Ok(model.features(&patches.pixel_values, patches.grid_thw));
            }
            let data = self.frozen_features(model, shown, known)?;
            let dtype = data.dtype();
            Ok(Tensor::from_data(data, (&model.device(), dtype)))
        });
        features.collect()
    }

    /// What was read as it is, by name: of an image and a video of one name the video.
    pub fn by_name(&self) -> BTreeMap<String, &Medium> {
        let plain = self.known.keys().filter(|shown| shown.variant == Variant::Plain);
        let media: BTreeSet<&Medium> = plain.map(|shown| &shown.medium).collect();
        media.into_iter().map(|medium| (medium.to_string(), medium)).collect()
    }

    /// The frames of `medium` as the model is shown them, plainly.
    ///
    /// # Errors
    /// Where it was not read, or has changed since.
    pub fn seen(&self, medium: &Medium) -> Result<Frames> {
        let shown = Shown { medium: medium.clone(), variant: Variant::Plain };
        Ok(self.frames(medium, &self.known(&shown)?.content)?.0.frames)
    }

    /// SHA-256 over names and contents of all videos and images.
    pub fn sha256(&self) -> String {
        // A list's names stand in one, as a file's does. An image and a list of it alone share theirs:
        // in the media's order the list's content stands, which tells the image's too.
        let name = |medium: &Medium| {
            PathBuf::from(medium.names().collect::<Vec<_>>().join(OsStr::new("\n")))
        };
        let known = self.known.iter().map(|(shown, known)| (&shown.medium, &known.content));
        let sorted = known.collect::<BTreeMap<_, _>>().into_iter();
        let named = sorted.map(|(medium, content)| (name(medium), content));
        hash::text(&format!("{:?}", named.collect::<BTreeMap<_, _>>()))
    }

    /// The data folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the cache is.
    pub fn cache_dir(&self) -> Option<&Path> {
        self.cache.is_on().then(|| self.cache.dir())
    }

    fn known(&self, shown: &Shown) -> Result<&Known> {
        let missing = || Error::run(format!("{}: was not read", shown.medium));
        self.known.get(shown).ok_or_else(missing)
    }

    /// Whatever of a video the vision tower needs to have: nothing, or the frames.
    fn read_ahead(&self, shown: &Shown) -> Result<Ahead> {
        let content = self.content(&shown.medium)?;
        if let Some(key) = self.features_key(shown, &content)
            && let Some(about) = self.cache.about::<AboutFeatures>(&key)
        {
            let AboutFeatures { grid_thw, second_per_grid, .. } = about;
            let grid = MediaGrid { grid_thw, second_per_grid };
            return Ok(Ahead::Features(Known { grid, content }, about));
        }
        let (sampled, cached) = self.frames(&shown.medium, &content)?;
        Ok(Ahead::Frames(content, sampled, cached))
    }

    /// SHA-256 of a file, or of those of all frames of a list.
    fn content(&self, medium: &Medium) -> Result<String> {
        let of = |file: &PathBuf| hash::file(&self.dir.join(file));
        match medium {
            Medium::Image(file) | Medium::Video(file) => of(file),
            Medium::Frames(files) => {
                Ok(hash::text(&files.iter().map(of).collect::<Result<String>>()?))
            }
        }
    }

    /// Makes the features of what was read ahead, where they are missing.
    fn take_in(
        &self,
        frozen: &QwenVl,
        shown: &Shown,
        ahead: Ahead,
        summary: &mut Summary,
    ) -> Result<Known> {
        let (content, sampled, cached) = match ahead {
            Ahead::Features(known, about) => {
                summary.from_cache += 1;
                self.note_rotation(shown, about.rotation, summary);
                summary.decoding_s += about.decoding_s;
                summary.tower_s += about.tower_s;
                summary.bytes += about.dtype.size() * about.shape.iter().product::<usize>();
                return Ok(known);
            }
            Ahead::Frames(content, sampled, cached) => (content, sampled, cached),
        };
        self.note_rotation(shown, sampled.rotation, summary);
        summary.decoding_s += sampled.cost_s;
        let known = Known { grid: self.reader.grid(&sampled), content };
        if self.tower.is_none() {
            summary.from_cache += usize::from(cached);
            summary.bytes += sampled.frames.rgb.len();
        } else {
            let (data, tower_s) = self.make_features(frozen, shown, &known, sampled)?;
            summary.tower_s += tower_s;
            summary.bytes += data.as_bytes().len();
        }
        Ok(known)
    }

    fn note_rotation(&self, shown: &Shown, rotation: usize, summary: &mut Summary) {
        if rotation > 0 && !self.reader.is_upright(shown.medium.kind()) {
            summary.sideways.insert(shown.medium.clone());
        }
    }

    /// The frames of a video or image, and whether they were kept: from memory, the cache, or the
    /// file, whose content must be the one that is known.
    fn frames(&self, medium: &Medium, content: &str) -> Result<(Sampled, bool)> {
        if let Ok(memory) = self.memory.lock()
            && let Some(sampled) = memory.frames.get(medium)
        {
            return Ok((sampled.clone(), true));
        }
        let key = self.reader.key(content, medium.kind());
        let found =
            self.cache.get(&key).and_then(|(about, rgb): (AboutFrames, _)| about.frames(rgb));
        let cached = found.is_some();
        let sampled = match found {
            Some(sampled) => sampled,
            None => self.decode(medium, content, &key)?,
        };
        // Where features are kept, the frames have done their work.
        if self.tower.is_none()
            && let Ok(mut memory) = self.memory.lock()
            && memory.admit(sampled.frames.rgb.len())
        {
            memory.frames.insert(medium.clone(), sampled.clone());
        }
        Ok((sampled, cached))
    }

    fn decode(&self, medium: &Medium, content: &str, key: &Key) -> Result<Sampled> {
        let sampled = self.reader.read(&self.dir, medium);
        let sampled = sampled.map_err(|e| of_many(e, &self.dir, medium.kind()))?;
        if self.content(medium)? != content {
            let name = self.dir.join(medium.to_string());
            return Err(Error::run(format!("{}: has changed during the run", name.display()))
                .help("start the same command again"));
        }
        let Frames { len, height, width, .. } = sampled.frames;
        let Sampled { second_per_grid, rotation, cost_s, .. } = sampled;
        let video = medium.to_string();
        let about = AboutFrames { video, len, height, width, second_per_grid, rotation, cost_s };
        self.cache.put(key, &about, &sampled.frames.rgb);
        Ok(sampled)
    }

    /// The frozen tower's features: from memory, the cache, or made.
    fn frozen_features(&self, model: &QwenVl, shown: &Shown, known: &Known) -> Result<TensorData> {
        if let Ok(memory) = self.memory.lock()
            && let Some(data) = memory.features.get(shown)
        {
            return Ok(data.clone());
        }
        let key = self.features_key(shown, &known.content);
        if let Some((about, bytes)) = key.and_then(|key| self.cache.get::<AboutFeatures>(&key))
            && let Ok(data) = TensorData::try_from_bytes_vec(bytes, about.shape, about.dtype)
        {
            self.remember(shown, &data);
            return Ok(data);
        }
        let (sampled, _) = self.frames(&shown.medium, &known.content)?;
        Ok(self.make_features(&model.valid(), shown, known, sampled)?.0)
    }

    /// Runs the frozen tower on `sampled` and keeps the result; returns it with the seconds that
    /// it took.
    fn make_features(
        &self,
        frozen: &QwenVl,
        shown: &Shown,
        known: &Known,
        sampled: Sampled,
    ) -> Result<(TensorData, f64)> {
        let start = Instant::now();
        let patches = self.reader.patches(sampled.frames, shown)?;
        let data = data(frozen.features(&patches.pixel_values, patches.grid_thw))?;
        let tower_s = start.elapsed().as_secs_f64();
        if let Some(key) = self.features_key(shown, &known.content) {
            let about = AboutFeatures {
                video: shown.medium.to_string(),
                dtype: data.dtype(),
                shape: data.shape().to_vec(),
                grid_thw: patches.grid_thw,
                second_per_grid: sampled.second_per_grid,
                rotation: sampled.rotation,
                decoding_s: sampled.cost_s,
                tower_s,
            };
            self.cache.put(&key, &about, data.as_bytes());
        }
        self.remember(shown, &data);
        Ok((data, tower_s))
    }

    fn remember(&self, shown: &Shown, data: &TensorData) {
        if let Ok(mut memory) = self.memory.lock()
            && !memory.features.contains_key(shown)
            && memory.admit(data.as_bytes().len())
        {
            memory.features.insert(shown.clone(), data.clone());
        }
    }

    /// Names the features of a video under the frozen tower; none where it is trained.
    fn features_key(&self, shown: &Shown, content: &str) -> Option<Key> {
        let tower = self.tower.as_ref()?;
        let frames = self.reader.key(content, shown.medium.kind());
        Some(Key::new("features", &(frames, shown.variant, tower)))
    }
}

impl AboutFrames {
    /// The frames whose pixels are `rgb`; nothing where some are missing.
    fn frames(&self, rgb: Vec<u8>) -> Option<Sampled> {
        let Self { len, height, width, second_per_grid, rotation, cost_s, .. } = *self;
        let whole = rgb.len() == len * height * width * 3;
        let frames = Frames { rgb, len, height, width };
        whole.then_some(Sampled { frames, second_per_grid, rotation, cost_s })
    }
}

/// What the features of a frozen vision tower depend on beside the frames: its architecture, its
/// weights and where they are computed. None where the tower is trained or carries an adapter.
fn frozen_tower(model: &QwenVl) -> Result<Option<String>> {
    let parameters = parameters::list(&model.visual);
    if parameters.iter().any(|p| p.trained || p.name.contains(".lora_")) {
        return Ok(None);
    }
    let mut weights = parameters::fingerprints(&model.visual)?;
    for (layer, weight) in parameters::quantised(model) {
        if Part::of(&layer) != Part::Language {
            weights.insert(layer, weight.fingerprint()?);
        }
    }
    let place = (model.device(), std::env::consts::ARCH);
    Ok(Some(format!("{:?}", (&model.config.vision, weights, place))))
}
