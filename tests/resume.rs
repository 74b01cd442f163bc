//! Runs that are killed, stopped or out of disk go on to the numbers of one that was not.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rand::RngExt as Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::support::run::{Workplace, copy_dir, demo_data, recipe, text, tiny};

const ADAPTER: &str = "adapter/adapter_model.safetensors";

/// A run with a checkpoint after every `save_steps` steps.
fn run_of(steps: usize, save_steps: usize) -> String {
    let train = format!(
        "max_steps = {steps}\ngrad_accum = 1\nsave_steps = {save_steps}\nweight_decay = 0.1"
    );
    // samples differ from epoch to epoch
    let augmented = "shuffle_choices = true\nmirror = 0.5\n[video]";
    recipe(&tiny(), demo_data(), &train).replace("[video]", augmented)
}

fn start(place: &Workplace) -> Child {
    place.command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until `condition` holds; false where the run ended before it did.
fn wait_until(child: &mut Child, condition: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_mins(2), "nothing happens");
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    true
}

fn checkpoints(place: &Workplace) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(place.path("checkpoints")).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn is_partial(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "partial")
}

/// The step of the newest whole checkpoint; 0 where there is none.
fn saved(place: &Workplace) -> usize {
    let names = checkpoints(place).into_iter().filter(|path| !is_partial(path));
    let step =
        |path: PathBuf| path.file_name()?.to_str()?.strip_prefix("step-")?.parse::<usize>().ok();
    names.filter_map(step).max().unwrap_or(0)
}

fn assert_same(got: &Workplace, want: &Workplace) {
    assert_eq!(got.losses(), want.losses());
    let [a, b] = [got, want].map(|place| std::fs::read(place.path(ADAPTER)).unwrap());
    assert!(a == b, "the adapters differ");
}

fn whole(recipe: &str) -> Workplace {
    let place = Workplace::new(recipe);
    let output = place.run();
    assert!(output.status.success(), "{}", text(&output.stderr));
    place
}

#[test]
fn a_run_killed_twenty_times_ends_as_if_it_had_not_been() {
    let recipe = run_of(60, 1);
    let whole = whole(&recipe);
    let killed = Workplace::new(&recipe);
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut within_checkpoints = 0;
    for kill in 0..20 {
        let mut child = start(&killed);
        let from = saved(&killed);
        let alive = match kill % 4 {
            // While inputs are read, the test questions asked, or the run taken up.
            0 => true,
            // In a step.
            1 | 2 => {
                let further = rng.random_range(1..3);
                wait_until(&mut child, || saved(&killed) >= from + further)
            }
            // While a checkpoint is written.
            _ => wait_until(&mut child, || {
                saved(&killed) > from && checkpoints(&killed).iter().any(|path| is_partial(path))
            }),
        };
        if kill % 4 != 3 {
            std::thread::sleep(Duration::from_millis(rng.random_range(0..60)));
        }
        assert!(alive && child.try_wait().unwrap().is_none(), "kill {kill}: the run was over");
        child.kill().unwrap();
        child.wait().unwrap();
        within_checkpoints += usize::from(checkpoints(&killed).iter().any(|path| is_partial(path)));
    }
    assert!(within_checkpoints > 0, "no kill fell into the writing of a checkpoint");
    let output = killed.run();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("goes on from"), "{}", text(&output.stdout));
    assert_same(&killed, &whole);
}

#[test]
fn ctrl_c_ends_the_step_saves_and_says_how_to_go_on() {
    let recipe = run_of(40, 1000);
    let whole = whole(&recipe);
    let stopped = Workplace::new(&recipe);
    let mut command = stopped.command();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(wait_until(&mut child, || stopped.path("log.jsonl").exists()
        && stopped.losses().len() >= 3));
    let interrupt = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupt.unwrap().success());
    let output = child.wait_with_output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    let steps = stopped.losses().len();
    assert!(stderr.contains(&format!("stopped after step {steps} of 40")), "{stderr}");
    assert!(stderr.contains("start the same command again to go on"), "{stderr}");
    assert_eq!(saved(&stopped), steps);
    assert!(stopped.run().status.success());
    assert_same(&stopped, &whole);
}

/// Runs `place` where no file may grow beyond `kib`.
fn run_with_files_up_to(place: &Workplace, kib: usize) -> Output {
    let command = place.command();
    let arguments = command.get_args().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let program = command.get_program().to_string_lossy().into_owned();
    // Ignored, the signal becomes an error of the write, as a full disk is.
    let script = format!("trap '' XFSZ; ulimit -f {kib}; exec {program} {arguments}");
    Command::new("bash")
        .arg("-c")
        .arg(script)
        .current_dir(command.get_current_dir().unwrap())
        .output()
        .unwrap()
}

#[test]
fn a_full_disk_is_an_error_that_loses_no_checkpoint() {
    let recipe = run_of(30, 5);
    let whole = whole(&recipe);
    let full = Workplace::new(&recipe);
    let mut child = start(&full);
    assert!(wait_until(&mut child, || saved(&full) >= 5));
    child.kill().unwrap();
    child.wait().unwrap();
    let step = saved(&full);
    let content =
        |file: &str| std::fs::read(full.path(&format!("checkpoints/step-{step}/{file}"))).unwrap();
    let files = ["trained.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors"];
    let before = files.map(content);
    // Enough for the log, too little for a checkpoint.
    let kib = before[0].len() / 1024 - 1;
    let output = run_with_files_up_to(&full, kib);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("checkpoints/.step-"), "{stderr}");
    assert!(stderr.contains("cannot be written: File too large"), "{stderr}");
    assert!(stderr.contains("a run goes on where it stopped"), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert!(before == files.map(content), "the last checkpoint has changed");
    assert!(full.run().status.success());
    assert_same(&full, &whole);
}

#[test]
fn a_run_goes_on_with_what_it_began_with() {
    let first = Workplace::new(&run_of(1, 1));
    assert!(first.run().status.success());
    let adapter = first.path("adapter");
    let from =
        |more: &str| run_of(2, 1).replace("[lora]", &format!("[lora]\nfrom = {adapter:?}{more}"));
    let place = Workplace::new(&from(""));
    let rewrite =
        |recipe: &str| std::fs::write(place.0.path().join("recipes/r.toml"), recipe).unwrap();
    let output = place.run();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("note   r 8, alpha 16, "), "{}", text(&output.stdout));
    // As if it had been killed in its report.
    std::fs::remove_file(place.path("report.md")).unwrap();
    // What changes no result may be changed; anything else is named.
    rewrite(&from("").replace("save_steps = 1", "save_steps = 7"));
    assert!(place.run().status.success());
    std::fs::remove_file(place.path("report.md")).unwrap();
    rewrite(&from("").replace("lr = 1e-3", "lr = 0.5"));
    let output = place.run();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("`train.lr` is 0.001 there and 0.5 here"), "{stderr}");
    // The adapter that it starts from is trained anew in the meantime.
    rewrite(&from(""));
    std::fs::remove_dir_all(first.path("")).unwrap();
    let other = format!("seed = 7\n{}", run_of(1, 1));
    std::fs::write(first.0.path().join("recipes/r.toml"), other).unwrap();
    assert!(first.run().status.success());
    let output = place.run();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("was begun with another adapter\n"), "{stderr}");
}

#[test]
fn a_run_goes_on_with_its_own_data_and_model() {
    let dir = tempfile::tempdir().unwrap();
    let [data, model] = ["data", "model"].map(|name| dir.path().join(name));
    copy_dir(demo_data(), &data);
    copy_dir(&tiny(), &model);
    let recipe_of = |model: &Path, data: &Path| recipe(model, data, "max_steps = 1");
    let place = whole(&recipe_of(&model, &data));
    std::fs::remove_file(place.path("report.md")).unwrap();
    for (file, what) in [
        (data.join("QA/real_mc.json"), "data"),
        (data.join("videos_real/davis/demo-001.mp4"), "set of videos or images"),
        (model.join("config.json"), "model"),
    ] {
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, [&bytes[..], b"\n"].concat()).unwrap();
        let output = place.run();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(&format!("was begun with another {what}\n")), "{stderr}");
        std::fs::write(&file, bytes).unwrap();
    }
    // Moved, it is found where a link leads to it.
    let moved = dir.path().join("moved");
    std::fs::rename(&model, &moved).unwrap();
    let recipe = place.0.path().join("recipes/r.toml");
    let [begun, now] = [&model, &moved].map(|model| recipe_of(model, &data));
    std::fs::write(&recipe, now).unwrap();
    let stderr = text(&place.run().stderr);
    assert!(stderr.contains("help: if it was only moved, make a link to it"), "{stderr}");
    std::os::unix::fs::symlink(&moved, &model).unwrap();
    std::fs::write(&recipe, begun).unwrap();
    assert!(place.run().status.success());
}

#[test]
fn a_second_process_is_kept_out() {
    let place = Workplace::new(&run_of(40, 1000));
    let mut first = start(&place);
    assert!(wait_until(&mut first, || place.path("before").exists()));
    let output = place.run();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("runs/r: another process is at work in it"), "{stderr}");
    first.kill().unwrap();
    first.wait().unwrap();
    // A process that was killed keeps nobody out.
    assert!(place.run().status.success());
}

#[test]
fn what_is_missing_or_damaged_is_made_again() {
    let place = whole(&run_of(2, 1));
    let predictions = ["before/predictions.jsonl", "after/predictions.jsonl"];
    let content = |file: &str| std::fs::read(place.path(file)).unwrap();
    let files = [ADAPTER, predictions[0], predictions[1], "before/predictions_no_video.jsonl"];
    let wanted = files.map(content);
    let again = |told: &str| {
        let output = place.run();
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains(told), "{}", text(&output.stdout));
        assert!(files.map(content) == wanted, "something is not what it was");
    };
    again("done before; its results:");
    std::fs::remove_file(place.path(predictions[1])).unwrap();
    again("not whole any more");
    std::fs::write(place.path(ADAPTER), &wanted[0][..wanted[0].len() / 2]).unwrap();
    again("not whole any more");
    let first = wanted[1].iter().position(|byte| *byte == b'\n').unwrap();
    std::fs::write(place.path(predictions[0]), &wanted[1][..=first]).unwrap();
    again("before/predictions.jsonl does not answer the questions: they are asked again");
    std::fs::write(place.path(files[3]), "").unwrap();
    again("before/predictions_no_video.jsonl does not answer the questions");
    for stage in ["before", "after"] {
        std::fs::remove_file(place.path(&format!("{stage}/predictions_no_video.jsonl"))).unwrap();
    }
    again("not whole any more");
    std::fs::remove_file(place.path("report.html")).unwrap();
    again("not whole any more");
    assert!(place.path("report.html").exists());
}

#[test]
fn a_run_needs_its_recipe_and_split() {
    let recipe = run_of(1, 1);
    let place = whole(&recipe);
    let refused = |told: &str| {
        let output = place.run();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(told), "{stderr}");
    };
    let other = recipe.replace("[lora]", "[lora]\nr = 2");
    std::fs::write(place.0.path().join("recipes/r.toml"), other).unwrap();
    refused("another recipe: `lora.r` is 8 there and 2 here, `lora.alpha` is 16.0 there and 4.0");
    std::fs::write(place.0.path().join("recipes/r.toml"), recipe).unwrap();
    std::fs::remove_file(place.path("report.md")).unwrap();
    let split = std::fs::read(place.path("split.json")).unwrap();
    std::fs::remove_file(place.path("split.json")).unwrap();
    refused("runs/r/split.json: no such file\n  help: put back what it was begun with");
    std::fs::write(place.path("split.json"), split).unwrap();
    std::fs::remove_file(place.path("recipe.toml")).unwrap();
    refused("runs/r: holds a run without recipe.toml");
}

#[test]
fn a_place_that_cannot_be_written_is_told_first() {
    let place = Workplace::new(&run_of(1, 1));
    std::fs::write(place.0.path().join("file"), "").unwrap();
    for arguments in ["recipes/r.toml --runs file", "eval recipes/r.toml --out file"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vlm4d-train"));
        command.args(arguments.split(' ')).current_dir(place.0.path());
        let output = command.output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("error: file: not a folder\n"), "{stderr}");
        assert!(!text(&output.stdout).contains("model  "), "{}", text(&output.stdout));
    }
}
