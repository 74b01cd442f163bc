#!/usr/bin/env python3
"""One command for a machine with a GPU: builds, checks the numbers, measures, prints one table.

    benches/gpu.sh                                    Qwen2-VL-2B on cuda:0, all stages
    benches/gpu.sh --shape 7b 2.5-7b --keep           the 7B models of both families
    benches/gpu.sh --stage parity speed --shape 7b    some stages alone
    benches/gpu.sh --ours train --limit 240 --budget 500                 without Rust, in ten minutes
    benches/gpu.sh --device cpu --shape tiny 2.5-tiny --profile short    how the script is tested

Stages, by shape:
  build       our benchmark with the feature `cuda`; with `--ours FILE` that program, which needs nothing
              but the C library: `cargo bench --no-run --features cuda --bench train` elsewhere, `strip`
  write       a random checkpoint of the true shape in bf16, an adapter for it, samples
  parity      features, logits, gradients of each adapter matrix, and the losses of 20 steps of two samples:
              ours on the device in f32 against ours on the CPU and against transformers + PEFT;
              in bf16 no farther from f32 than twice what transformers + PEFT is
  speed       training: tokens/s, share of the GPU's peak (MFU), peak memory, both sides in turn
  answers     evaluation: freeform answers of 16 tokens, and single letters, a second, one or eight at once
  experiment  answers, training, answers again: seconds of the whole, loading included

Every command's result is one JSON file under --out, with all of them in results.json; a command
that succeeded with the same program before is not run again (`--again` does). No command takes
longer than --limit seconds: one that does fails, the rest goes on. With VLM4D_CUBLAS=0 in the
environment, and another --out, products are burn's and not cuBLAS's. The network is not needed once
cargo's registry is filled. Needs torch, transformers and peft; `--without-hf` leaves their side out.

MFU counts the arithmetic that training needs without any saving, the same for both sides: 4 per
weight of the language model and of its head and token, 6 per weight of the adapter and token,
6 · layers · width · tokens² for causal attention, and the vision tower forward; over --peak-tflops.
"""
import argparse
import importlib.metadata as metadata
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import gpu_machine as machine
from gpu_machine import Missing

HERE = pathlib.Path(__file__).resolve().parent
STAGES = ["build", "write", "parity", "speed", "answers", "experiment"]
SHAPES = ["2b", "7b", "2.5-3b", "2.5-7b", "nano", "2.5-nano", "tiny", "2.5-tiny"]
# Samples of a step whose numbers are compared: ours go through the model together.
PARITY_ACCUMULATE = 2
# The first bar: our tokens/s over transformers', at no more memory.
BAR = 0.7
# bf16 with f32 accumulation, no sparsity. Source: NVIDIA's data sheets.
PEAKS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "RTX 4090": 165}

# What f32 may differ by, relative: sums are added in another order, nothing else.
LIMITS = {"features": 2e-4, "logits": 5e-4, "gradients": 2e-3, "loss": 1e-5, "losses": 5e-4}
# How much farther from f32 our bf16 may be than theirs, and what is never too far.
BF16_FACTOR = 2.0
BF16_FLOOR = {"features": 1e-3, "logits": 1e-3, "gradients": 1e-3, "loss": 1e-3, "losses": 1e-3}

# Name, our benchmark's options; name, transformers' options.
OURS = {
    "features kept, recomputed": ["--recompute"],
    "features kept, activations kept": [],
    "features anew, recomputed": ["--fresh-features", "--recompute"],
    "batches of 4, activations kept": ["--batch-size", "4"],
}
THEIRS = {
    "checkpointing": ["--checkpointing"],
    "activations kept": [],
    "batches of 4, checkpointing": ["--checkpointing", "--batch-size", "4"],
}


class Failed(Exception):
    """A command that did not succeed; its file says why."""


class Runner:
    """Runs commands, keeps their results."""

    def __init__(self, arguments, environment, nvml):
        self.arguments, self.environment, self.nvml = arguments, environment, nvml
        self.out, self.ours, self.failures = arguments.out, [str(arguments.ours)], []
        self.results, self.start = {}, time.monotonic()

    def path(self, shape, name):
        # With no character that a file may not have somewhere.
        return self.out / shape / (re.sub(r"[^\w.-]+", "_", name) + ".json")

    def run(self, shape, name, command, before=None, again=False):
        """The JSON object that `command` prints last, with `seconds` and the GPU's peak."""
        path = self.path(shape, name)
        program = command[1] if command[0] == sys.executable else command[0]
        stamp = [*map(str, command), *stat_of(program)]
        kept = read(path)
        again = again or self.arguments.again
        if kept and kept.get("command") == stamp and "error" not in kept and not again:
            print(f"{shape:>9} {name:<46} kept")
            return self.keep(shape, name, kept)
        if self.arguments.budget and time.monotonic() - self.start > self.arguments.budget:
            self.failures.append(f"{shape} {name}: not begun, --budget is used up")
            raise Failed
        if before:
            before()
        print(f"{shape:>9} {name:<46} ", end="", flush=True)
        begun = time.monotonic()
        with machine.Watch(self.nvml) as watch:
            code, out, err = limited(command, self.environment, self.arguments.limit)
        seconds = time.monotonic() - begun
        result = last_object(out) if code == 0 else {"error": why(code, err, self.arguments.limit)}
        result |= {"command": stamp, "seconds": seconds, "gpu_peak_bytes": watch.peak}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1))
        if "error" in result:
            print(f"failed after {seconds:.0f} s\n    {result['error']}")
            self.failures.append(f"{shape} {name}: {path}")
            raise Failed
        print(f"{seconds:.0f} s")
        if result.get("note"):
            print(f"    {result['note']}")
        return self.keep(shape, name, result)

    def keep(self, shape, name, result):
        self.results.setdefault(shape, {})[name] = result
        return result

    def each(self, shape, commands, before):
        """Runs what can be run of `commands`: name → command."""
        for name, command in commands.items():
            try:
                self.run(shape, name, command, before)
            except Failed:
                pass


def limited(command, environment, limit):
    """Exit code (none where it ran out of time), output and errors of a command."""
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | environment, start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=limit)
        return process.returncode, out, err
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as e:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        if isinstance(e, KeyboardInterrupt):
            raise
        return None, out, err


def why(code, err, limit):
    lines = [line for line in err.splitlines() if line.strip()]
    end = " | ".join(lines[-4:])[-600:]
    return f"took longer than --limit {limit} s | {end}" if code is None else f"exit {code}: {end}"


def last_object(out):
    lines = [line for line in out.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}


def stat_of(program):
    """What changes when a program is built anew."""
    stat = os.stat(program)
    return [str(stat.st_size), str(int(stat.st_mtime))]


def read(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def hf(command, *more):
    return [sys.executable, HERE / "compare_hf.py", command, *more]


def build(arguments, environment):
    """Our benchmark, built by cargo where it was not given."""
    if arguments.ours:
        if not arguments.ours.is_file():
            raise Missing(f"{arguments.ours}: no such file", "--ours names the benchmark `train`, as cargo builds it")
        return arguments.ours.resolve()
    if not shutil.which("cargo"):
        raise Missing("`cargo` is missing", "install Rust (https://rustup.rs), or bring the benchmark: --ours FILE")
    command = ["cargo", "bench", "--no-run", "--locked", "--bench", "train", "--message-format", "json"]
    command += [] if arguments.device == "cpu" else ["--features", "cuda"]
    command += ["--offline"] if arguments.offline else []
    print("build:", " ".join(command))
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, cwd=HERE.parent, env=os.environ | environment,
    )
    if done.returncode != 0:
        raise Missing(
            "the build failed",
            "see above; without a network cargo needs its registry filled before (`cargo fetch --locked`) and `--offline`",
        )
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    built = [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "train"]
    return pathlib.Path(built[-1])


def check_python(arguments):
    """Versions of the Python packages that the stages need, or which are missing."""
    versions, missing = {}, []
    needed = ["safetensors", "numpy"] if "parity" in arguments.stage else []
    needed += [] if arguments.without_hf else ["torch", "transformers", "peft"]
    for name in needed:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise Missing(
            f"{sys.executable} has no {', '.join(missing)}",
            f"`{sys.executable} -m pip install {' '.join(missing)}`, or name another Python with PYTHON=; `--without-hf` needs safetensors and numpy alone",
        )
    asked = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    if "torch" in needed and arguments.device != "cpu" and subprocess.run([sys.executable, "-c", asked]).returncode != 0:
        raise Missing("torch finds no GPU", "install torch for the driver's CUDA version, or `--without-hf`")
    return versions


def write(runner, shape):
    """The checkpoint, its adapter and samples; where they are there already, nothing happens."""
    folder, done = runner.arguments.models / shape, runner.arguments.models / shape / "done"
    if done.exists():
        return
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    profile = ["--profile", runner.arguments.profile, "--vary"]
    dtype = ["--dtype", "bf16"]
    short = ["--profile", "short", "--vary", "--samples", 4]
    make = lambda name, *command: runner.run(shape, name, [*runner.ours, *command], again=True)
    make("write", "write", folder, "--shape", shape, *dtype, *short)
    make("write samples", "samples", folder / "speed.json", *profile, "--samples", 32)
    questions = ["--samples", runner.arguments.questions, "--questions", 2]
    make("write experiment", "samples", folder / "experiment.json", *profile, *questions)
    done.touch()


def parity(runner, shape, folder, before, on_cpu=False):
    arguments, out = runner.arguments, runner.out / shape
    where = lambda device, dtype: ["--device", device, "--dtype", dtype, "--adapter", folder / "adapter"]
    to = lambda name, steps: ["--out", out / name, "--steps", steps, "--accumulate", PARITY_ACCUMULATE]
    files = [folder, folder / "batches.json"]
    commands = {}
    if on_cpu:
        files_of = [*where("cpu", "f32"), *to("ours_cpu_f32", arguments.cpu_steps)]
        commands["ours cpu f32"] = [*runner.ours, "parity", *files, *files_of]
    # bf16, which a run has, comes first: time may run out.
    for dtype in () if on_cpu else ("bf16", "f32"):
        name = f"ours {arguments.device} {dtype} recomputed"
        files_of = [*where(arguments.device, dtype), *to(f"ours_{dtype}", arguments.parity_steps)]
        commands[name] = [*runner.ours, "parity", *files, *files_of, "--recompute"]
        if not arguments.without_hf:
            files_of = [*where(arguments.device, dtype), *to(f"hf_{dtype}", arguments.parity_steps)]
            commands[f"transformers {arguments.device} {dtype}"] = hf("parity", *files, *files_of)
    runner.each(shape, commands, before)


def measure(runner, shape, folder, before):
    """Both sides' measurements of the chosen stages, in turn."""
    arguments = runner.arguments
    where = ["--device", arguments.device, "--dtype", arguments.dtype]
    counts = ["--steps", arguments.steps, "--warmup", arguments.warmup]
    # As many samples a step, however many a forward pass takes.
    passes = lambda name: max(1, arguments.accumulate // (4 if "batches of 4" in name else 1))
    steps = lambda name: [*counts, "--accumulate", passes(name)]
    adapter = ["--adapter", folder / "adapter"]
    our = lambda file, *more: [*runner.ours, "measure", folder, folder / file, *where, *adapter, *more]
    their = lambda file, *more: hf("measure", folder, folder / file, *where, *adapter, *more)
    if "speed" in arguments.stage:
        for round_ in range(1, arguments.rounds + 1):
            ours = [
                (f"train, ours, {name}, {round_}", our("speed.json", *steps(name), *more)) for name, more in OURS.items()
            ]
            theirs = [
                (f"train, transformers, {name}, {round_}", their("speed.json", *steps(name), *more))
                for name, more in THEIRS.items() if not arguments.without_hf
            ]
            # In turn, first what the bar compares: time may run out.
            pairs = itertools.zip_longest(ours, theirs)
            runner.each(shape, dict(command for pair in pairs for command in pair if command), before)
    if "answers" in arguments.stage:
        for task in ("freeform", "letter"):
            for at_once in (1, 8):
                batches = ["--steps", max(2, arguments.questions // at_once), "--warmup", arguments.warmup]
                more = ["--task", task, "--batch-size", at_once, *batches]
                commands = {f"{task}, {at_once} at once, ours": our("speed.json", *more)}
                if not arguments.without_hf:
                    commands[f"{task}, {at_once} at once, transformers"] = their("speed.json", *more)
                runner.each(shape, commands, before)
    if "experiment" in arguments.stage:
        more = ["--task", "experiment", *steps("experiment")]
        commands = {"experiment, ours": our("experiment.json", *more, "--recompute")}
        if not arguments.without_hf:
            commands["experiment, transformers"] = their("experiment.json", *more, "--checkpointing")
        runner.each(shape, commands, before)


# What was computed, compared.


def load(folder):
    """A parity folder: forward, gradients and numbers; nothing where it is not whole."""
    from safetensors.numpy import load_file

    try:
        written = json.loads((folder / "parity.json").read_text())
        return load_file(folder / "forward.safetensors"), load_file(folder / "gradients.safetensors"), written
    except OSError:
        return None


def distance(a, b):
    """‖a − b‖ / ‖b‖; infinite where shapes differ or a number is none."""
    import numpy as np

    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))


def distances(ours, other):
    """How far apart two folders are; `worst` names the gradient that is farthest."""
    (forward, gradients, numbers), (other_forward, other_gradients, other_numbers) = ours, other
    if gradients.keys() != other_gradients.keys():
        apart, worst = math.inf, "not the same matrices"
    else:
        apart, worst = max((distance(gradients[name], other_gradients[name]), name) for name in gradients)
    relative = [abs(a / b - 1) for a, b in zip(numbers["losses"], other_numbers["losses"])]
    relative = [r if math.isfinite(r) else math.inf for r in relative]
    return {
        "features": distance(forward["features"], other_forward["features"]),
        "logits": distance(forward["logits"], other_forward["logits"]),
        "gradients": apart, "worst": worst,
        "loss": relative[0], "losses": max(relative), "steps": len(relative),
    }


def verdicts(runner, shape, on_cpu):
    """The rows of the parity table: what is compared, distances, limits (none: no verdict). With the
    CPU's numbers, or all others."""
    arguments, out = runner.arguments, runner.out / shape
    names = ["ours_cpu_f32", "ours_f32", "ours_bf16", "hf_f32", "hf_bf16"]
    found = {name: load(out / name) for name in names}
    device, rows = arguments.device, []

    def row(title, a, b, limits):
        if found[a] and found[b]:
            apart = distances(found[a], found[b])
            passed = None if limits is None else all(apart[key] <= limits[key] for key in limits)
            rows.append({"title": title, "limits": limits, "passed": passed, **apart})
            return apart
        if limits is not None and not (arguments.without_hf and "hf" in a + b):
            rows.append({"title": title, "limits": limits, "passed": False, "missing": True})
        return None

    if on_cpu:
        row(f"ours {device} f32, recomputed : ours cpu f32", "ours_f32", "ours_cpu_f32", LIMITS)
        return rows
    row(f"ours {device} f32 : transformers {device} f32", "ours_f32", "hf_f32", LIMITS)
    theirs = row(f"transformers {device} bf16 : their f32", "hf_bf16", "hf_f32", None)
    limits = {
        key: max(floor, BF16_FACTOR * theirs[key]) if theirs else 0.05 for key, floor in BF16_FLOOR.items()
    }
    row(f"ours {device} bf16 : our f32", "ours_bf16", "ours_f32", limits)
    return rows


def print_parity(runner, shape, rows):
    keys = ["features", "logits", "gradients", "loss", "losses"]
    print(f"\n{shape}: relative distances (gradients: the farthest of all matrices; losses: of all steps)")
    print(f"{'':<48}" + "".join(f"{key:>11}" for key in keys) + "   steps")
    for row in rows:
        if row.get("missing"):
            print(f"{row['title']:<48}  not there: FAILED")
            continue
        word = {None: "", True: "ok", False: "FAILED"}[row["passed"]]
        print(f"{row['title']:<48}" + "".join(f"{row[key]:>11.1e}" for key in keys) + f"{row['steps']:>8}  {word}")
        if row["limits"]:
            print(f"{'    at most':<48}" + "".join(f"{row['limits'][key]:>11.1e}" for key in keys))
        if row["passed"] is False:
            print(f"    farthest gradient: {row['worst']}")
            runner.failures.append(f"{shape} parity: {row['title']}")


# What it costs.


def arithmetic(config, sample, rank=8):
    """Floating-point operations of one training sample; see the head of this file."""
    vision, hidden, inner = config["vision_config"], config["hidden_size"], config["intermediate_size"]
    layers, tokens = config["num_hidden_layers"], len(sample["input_ids"])
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    weights = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner)
    head = hidden * config["vocab_size"]
    adapter = layers * rank * (4 * hidden + 2 * (hidden + kv) + 3 * (hidden + inner))
    t, h, w = sample["video_grid_thw"]
    patches = t * h * w
    is_2_5 = config["model_type"] == "qwen2_5_vl"
    e, depth = vision["hidden_size"] if is_2_5 else vision["embed_dim"], vision["depth"]
    mlp = 3 * e * vision["intermediate_size"] if is_2_5 else 2 * e * e * vision["mlp_ratio"]
    seen = depth * t * (h * w) ** 2
    if is_2_5:
        side, full = vision["window_size"] // vision["patch_size"], len(vision["fullatt_block_indexes"])
        cut = lambda n: [min(side, n - i) for i in range(0, n, side)]
        windows = t * sum((a * b) ** 2 for a in cut(h) for b in cut(w))
        seen = full * t * (h * w) ** 2 + (depth - full) * windows
    tower = 2 * patches * (1176 * e + depth * (4 * e * e + mlp)) + 4 * e * seen
    tower += 2 * patches / 4 * (16 * e * e + 4 * e * hidden)
    return 4 * (weights + head) * tokens + 6 * adapter * tokens + 6 * layers * hidden * tokens**2 + tower


def peak_flops(arguments, gpu):
    if arguments.peak_tflops:
        return arguments.peak_tflops * 1e12
    return next((peak * 1e12 for name, peak in PEAKS.items() if name in gpu), None)


def speed_rows(runner, shape, folder, gpu):
    """Median speed, and the last round's peak, of each way of training."""
    config, samples = read(folder / "config.json"), (read(folder / "speed.json") or {}).get("samples")
    kept = read(runner.out / shape / "cost.json")
    if config and samples:
        tokens = sum(len(sample["input_ids"]) for sample in samples)
        kept = {"flops_per_token": sum(arithmetic(config, sample) for sample in samples) / tokens}
        (runner.out / shape / "cost.json").write_text(json.dumps(kept))
    peak, rows = peak_flops(runner.arguments, gpu), {}
    for name, result in runner.results.get(shape, {}).items():
        if name.startswith("train, "):
            rows.setdefault(name.rsplit(", ", 1)[0].removeprefix("train, "), []).append(result)
    table = []
    for name, results in rows.items():
        rates = sorted(result["tokens_per_s"] for result in results)
        rate = rates[len(rates) // 2]
        flops = rate * kept["flops_per_token"] if kept else None
        on_gpu = runner.arguments.device != "cpu"
        # Of the last round: while burn tunes, it takes up to 2 GiB for a while.
        memory = results[-1]["gpu_peak_bytes" if on_gpu else "peak_bytes"]
        table.append({
            "name": name, "tokens_per_s": rate, "least": rates[0], "most": rates[-1],
            "tflops": flops and flops / 1e12, "mfu": flops / peak if flops and peak else None,
            "peak_bytes": memory, "warmup_s": max(result["warmup_s"] for result in results),
        })
    return table


def print_speed(runner, shape, table):
    if not table:
        return None
    theirs = {row["name"]: row for row in table}.get("transformers, checkpointing")
    print(f"\n{shape}: training, {runner.arguments.dtype}, steps of {runner.arguments.accumulate} samples")
    print(f"{'':<44}{'tokens/s':>10}{'(least, most)':>18}{'TFLOP/s':>9}{'MFU':>7}{'peak GiB':>10}{'warm-up s':>11}{'ratio':>7}")
    for row in table:
        share = f"{row['mfu']:.1%}" if row["mfu"] else ""
        flops = f"{row['tflops']:.3g}" if row["tflops"] else ""
        ratio = f"{row['tokens_per_s'] / theirs['tokens_per_s']:.2f}" if theirs else ""
        span = f"({row['least']:.0f}, {row['most']:.0f})"
        print(
            f"{row['name']:<44}{row['tokens_per_s']:>10.0f}{span:>18}{flops:>9}{share:>7}"
            f"{row['peak_bytes'] / 2**30:>10.2f}{row['warmup_s']:>11.1f}{ratio:>7}"
        )
    ours = next((row for row in table if row["name"] == "ours, features kept, recomputed"), None)
    if not (ours and theirs) or runner.arguments.device == "cpu":
        return None
    ratio, memory = ours["tokens_per_s"] / theirs["tokens_per_s"], ours["peak_bytes"] / theirs["peak_bytes"]
    met = ratio >= BAR and memory <= 1
    print(f"bar: {ratio:.2f} of transformers' tokens/s (wanted {BAR}), {memory:.2f} of its memory (wanted 1): {'met' if met else 'not met'}")
    return {"ratio": ratio, "memory": memory, "met": met}


def print_rest(results):
    names = [name for name in results if name.startswith(("freeform", "letter"))]
    if names:
        print(f"{'answers':<44}{'a second':>10}{'first s':>10}")
    for name in names:
        print(f"{name:<44}{results[name]['samples_per_s']:>10.2f}{results[name]['first_step_s']:>10.1f}")
    names = [name for name in results if name.startswith("experiment")]
    if names:
        print(f"{'seconds':<44}{'loading':>9}{'before':>9}{'training':>9}{'after':>9}{'whole':>9}")
    for name in names:
        result = results[name]
        parts = [result["load_s"], result["before_s"], result["train_s"], result["after_s"], result["total_s"]]
        print(f"{name:<44}" + "".join(f"{part:>9.1f}" for part in parts))


class Summary:
    """The tables, printed as soon as they are there, and all of it as JSON."""

    def __init__(self, runner, facts):
        self.runner, self.gpu = runner, facts.get("gpu", "")
        self.whole = {"machine": facts, "shapes": {}}

    def add(self, shape, **parts):
        of_shape = self.whole["shapes"].setdefault(shape, {})
        of_shape |= parts | {"commands": self.runner.results.get(shape, {})}
        self.whole["failures"] = self.runner.failures
        (self.runner.out / "results.json").write_text(json.dumps(self.whole, indent=1))

    def parity(self, shape, on_cpu=False):
        rows = verdicts(self.runner, shape, on_cpu)
        print_parity(self.runner, shape, rows)
        before = self.whole["shapes"].get(shape, {}).get("parity", [])
        self.add(shape, parity=before + rows)

    def measured(self, shape):
        table = speed_rows(self.runner, shape, self.runner.arguments.models / shape, self.gpu)
        bar = print_speed(self.runner, shape, table)
        print_rest(self.runner.results.get(shape, {}))
        self.add(shape, speed=table, bar=bar)


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="cuda:N or cpu")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["2b"])
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--dtype", choices=["bf16", "f32"], default="bf16", help="of what is measured")
    parser.add_argument("--profile", choices=["vlm4d", "short"], default="vlm4d", help="lengths of what is measured")
    parser.add_argument("--out", type=pathlib.Path, default=HERE.parent / "runs" / "gpu")
    parser.add_argument("--models", type=pathlib.Path, help="folder for the checkpoints [default: models in --out]")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints there (a 7B model takes 16 GB)")
    parser.add_argument("--ours", type=pathlib.Path, help="our benchmark `train`, built elsewhere")
    parser.add_argument("--offline", action="store_true", help="build without asking the network")
    parser.add_argument("--without-hf", action="store_true", help="our side alone")
    parser.add_argument("--limit", type=float, default=450, metavar="SECONDS", help="of one command")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="after so many, no command is begun")
    parser.add_argument("--again", action="store_true", help="run what succeeded before too")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in bf16; known for some")
    parser.add_argument("--parity-steps", type=int, default=20)
    parser.add_argument("--cpu-steps", type=int, help="of the CPU's reference [default: 20; 3 where a model has 7B]")
    parser.add_argument("--rounds", type=int, default=2, help="of the speed stage")
    parser.add_argument("--accumulate", type=int, default=8, help="samples of a step")
    parser.add_argument("--steps", type=int, default=4)
    # With 8 samples a step, 4 steps see each of the 32 samples' lengths once.
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--questions", type=int, default=16, help="of answers and experiment")
    return parser.parse_args()


def main():
    # As Ctrl-C: what runs is ended too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.stdout.reconfigure(line_buffering=True)
    arguments = options()
    arguments.out = arguments.out.resolve()
    arguments.models = (arguments.models or arguments.out / "models").resolve()
    facts, environment, nvml = {"python": sys.version.split()[0]}, {}, None
    if arguments.device != "cpu":
        cuda = machine.driver()
        index = int(arguments.device.split(":")[1])
        environment, parts = machine.toolkit(cuda, arguments.out, index)
        nvml = machine.Nvml(index)
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        facts |= {"driver": machine.version(cuda), "gpu": machine.tell(query), **parts}
    facts |= check_python(arguments)
    facts["commit"] = machine.tell(["git", "-C", HERE, "describe", "--always", "--dirty"])
    print("  ".join(f"{key} {value}" for key, value in facts.items()))
    arguments.ours = build(arguments, environment)
    runner = Runner(arguments, environment, nvml)
    summary = Summary(runner, facts)
    for shape in arguments.shape:
        steps = arguments.cpu_steps
        arguments.cpu_steps = steps or (3 if "7b" in shape else 20)
        folder, before = arguments.models / shape, lambda: write(runner, shape)
        # Later stages write what they find missing.
        if set(arguments.stage) <= {"build", "write"}:
            arguments.keep = True
            try:
                before()
            except Failed:
                continue
        if "parity" in arguments.stage:
            parity(runner, shape, folder, before)
            summary.parity(shape)
        measure(runner, shape, folder, before)
        summary.measured(shape)
        if "parity" in arguments.stage:
            # Last: a CPU takes minutes, and a budget may be used up.
            parity(runner, shape, folder, before, on_cpu=True)
            summary.parity(shape, on_cpu=True)
        if not arguments.keep and folder.exists():
            shutil.rmtree(folder)
        arguments.cpu_steps = steps
    print(f"\nall of it: {runner.out / 'results.json'}")
    if runner.failures:
        print("failed:\n  " + "\n  ".join(runner.failures))
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except Missing as missing:
        print(missing, file=sys.stderr)
        sys.exit(2)
