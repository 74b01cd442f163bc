//! TensorBoard's event files: scalars, text, and the mark of a run that goes on.
//!
//! Records are written by `tensorboard-rs`, whose own writer has a thread that panics where the
//! disk is full; here that is an error as everywhere.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use protobuf::{Message, RepeatedField};
use tensorboard_proto::event::{Event, SessionLog, SessionLog_SessionStatus};
use tensorboard_proto::summary::{
    Summary, Summary_Value, SummaryMetadata, SummaryMetadata_PluginData,
};
use tensorboard_proto::tensor::TensorProto;
use tensorboard_proto::tensor_shape::{TensorShapeProto, TensorShapeProto_Dim};
use tensorboard_proto::types::DataType;
use tensorboard_rs::record_writer::RecordWriter;

use crate::error::{Error, Result};
use crate::files::failed;

/// One event file.
pub struct Board {
    path: PathBuf,
    writer: RecordWriter<File>,
}

impl Board {
    /// Starts an event file of its own in `dir`. What other files there say of the steps behind
    /// `last_step` is void, since the run goes on from there, and so are its accuracies.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn open(dir: &Path, last_step: usize) -> Result<Self> {
        let accuracies = dir.join(ACCURACIES);
        match std::fs::remove_file(&accuracies) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed(&accuracies, &e)),
            _ => {}
        }
        let (path, file) = new_file(dir)?;
        let mut board = Self::new(path, file)?;
        let mut start = SessionLog::new();
        start.set_status(SessionLog_SessionStatus::START);
        let mut event = Event::new();
        event.set_session_log(start);
        board.write(event, last_step + 1)?;
        Ok(board)
    }

    /// Starts the file of the accuracies of the run in `dir`, in the place of an earlier one.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn of_accuracies(dir: &Path) -> Result<Self> {
        let path = dir.join(ACCURACIES);
        let file = File::create(&path).map_err(|e| failed(&path, &e))?;
        Self::new(path, file)
    }

    fn new(path: PathBuf, file: File) -> Result<Self> {
        let mut board = Self { path, writer: RecordWriter::new(file) };
        let mut version = Event::new();
        version.set_file_version("brain.Event:2".to_owned());
        board.write(version, 0)?;
        Ok(board)
    }

    /// Adds a number.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn scalar(&mut self, tag: &str, value: f64, step: usize) -> Result<()> {
        let mut summary = Summary_Value::new();
        summary.set_tag(tag.to_owned());
        summary.set_simple_value(value as f32);
        self.summary(summary, step)
    }

    /// Adds text, shown as Markdown.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn text(&mut self, tag: &str, markdown: &str, step: usize) -> Result<()> {
        let mut plugin = SummaryMetadata_PluginData::new();
        plugin.set_plugin_name("text".to_owned());
        let mut metadata = SummaryMetadata::new();
        metadata.set_plugin_data(plugin);
        let mut dimension = TensorShapeProto_Dim::new();
        dimension.set_size(1);
        let mut shape = TensorShapeProto::new();
        shape.set_dim(RepeatedField::from_vec(vec![dimension]));
        let mut tensor = TensorProto::new();
        tensor.set_dtype(DataType::DT_STRING);
        tensor.set_tensor_shape(shape);
        tensor.set_string_val(RepeatedField::from_vec(vec![markdown.as_bytes().to_vec()]));
        let mut summary = Summary_Value::new();
        summary.set_tag(tag.to_owned());
        summary.set_metadata(metadata);
        summary.set_tensor(tensor);
        self.summary(summary, step)
    }

    fn summary(&mut self, value: Summary_Value, step: usize) -> Result<()> {
        let mut summary = Summary::new();
        summary.set_value(RepeatedField::from_vec(vec![value]));
        let mut event = Event::new();
        event.set_summary(summary);
        self.write(event, step)
    }

    fn write(&mut self, mut event: Event, step: usize) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        event.set_wall_time(now.as_secs_f64());
        event.set_step(step as i64);
        let bytes = event.write_to_bytes().map_err(|e| Error::run(format!("an event: {e}")))?;
        self.writer.write(&bytes).map_err(|e| failed(&self.path, &e))
    }
}

/// What the names of event files begin with; their second follows.
const NAMED: &str = "events.out.tfevents.";
/// The file of a finished run's accuracies. It sorts behind those of the steps: a TensorBoard that
/// watches has come to their end when it opens this one, and looks at no earlier one any more.
const ACCURACIES: &str = "events.out.tfevents.accuracies.vlm4d-train";

/// A new file whose name TensorBoard knows and sorts behind the earlier ones, also where the clock
/// was put back.
fn new_file(dir: &Path) -> Result<(PathBuf, File)> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let entries = std::fs::read_dir(dir).map_err(|e| failed(dir, &e))?;
    let second = |name: &OsStr| -> Option<u64> {
        name.to_str()?.strip_prefix(NAMED)?.split('.').next()?.parse().ok()
    };
    let latest = entries.flatten().filter_map(|entry| second(&entry.file_name())).max();
    let behind = latest.map_or(0, |latest| latest.saturating_add(1));
    let (second, nanoseconds) = (now.as_secs().max(behind), now.subsec_nanos());
    let path = dir.join(format!("{NAMED}{second:010}.{nanoseconds:09}.vlm4d-train"));
    let file = OpenOptions::new().append(true).create_new(true).open(&path);
    match file {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => new_file(dir),
        Err(e) => Err(failed(&path, &e)),
        Ok(file) => Ok((path, file)),
    }
}
