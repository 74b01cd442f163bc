#!/usr/bin/env python3
"""Our training against transformers + PEFT: same checkpoint, samples and adapter, in turn.

    python benches/compare_hf.py             speed: ratios over several alternated rounds
    python benches/compare_hf.py --memory    peak memory by length of the sequence

Needs torch, transformers and peft. The checkpoint and the samples are made by the benchmark
`train` of this folder, whose head says what they are; `--model` and `--batches` name others.
transformers works as its Trainer does: features of the frozen vision tower are made anew in every
step, logits at every position. One sample a step, LoRA r = 8 on all linear layers of the language
model, AdamW, clipping, f32, as many threads as processors.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

GROUPS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
TARGETS = r".*language_model.*\.(" + "|".join(sorted(GROUPS)) + ")"
OURS = {
    "features kept, activations kept": [],
    "features kept, recomputed by layer": ["--recompute"],
    "features anew, activations kept": ["--fresh-features"],
    "features anew, recomputed by layer": ["--fresh-features", "--recompute"],
}


class Reference:
    """A checkpoint with a fresh adapter, in training."""

    def __init__(self, model, batches, checkpointing=False):
        import torch
        import transformers
        from peft import LoraConfig, get_peft_model

        self.torch = torch
        torch.set_num_threads(os.cpu_count())
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        warnings.filterwarnings("ignore", category=FutureWarning)
        kind = transformers.AutoModelForImageTextToText
        base = kind.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
        base.requires_grad_(False)
        torch.manual_seed(0)
        config = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
        self.model = get_peft_model(base, config).train()
        if checkpointing:
            # Without the hooks that would back-propagate through the frozen vision tower.
            kwargs = {"use_reentrant": False}
            base.enable_input_require_grads = lambda: None
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.trained, self.optimiser = trained, torch.optim.AdamW(trained, lr=1e-4, weight_decay=0)
        self.samples = json.load(open(batches))["samples"]
        self.video_pad = base.config.video_token_id
        self.pixels = {}
        self.at = 0
        self.loaded = memory_now()

    def pixels_of(self, sample):
        import numpy as np

        seed, grid = sample["pixel_seed"], sample["video_grid_thw"]
        if seed not in self.pixels:
            n = grid[0] * grid[1] * grid[2] * 1176
            with np.errstate(over="ignore"):
                z = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
                z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                z ^= z >> np.uint64(31)
            unit = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
            values = (unit * 2 - 1) * np.float32(1.7)
            self.pixels[seed] = self.torch.from_numpy(values).reshape(-1, 1176)
        return self.pixels[seed]

    def positions(self, sample):
        """Text, then the video's grid, then text from the highest position on (Qwen2-VL)."""
        t, h, w = sample["video_grid_thw"]
        h, w = h // 2, w // 2
        start = sample["input_ids"].index(self.video_pad)
        grid = [(start + a, start + y, start + x) for a in range(t) for y in range(h) for x in range(w)]
        behind = max(map(max, grid)) + 1
        rest = len(sample["input_ids"]) - start - len(grid)
        rows = [(i,) * 3 for i in range(start)] + grid + [(behind + i,) * 3 for i in range(rest)]
        return self.torch.tensor(rows).T[:, None]

    def step(self):
        torch, sample = self.torch, self.samples[self.at % len(self.samples)]
        self.at += 1
        ids = torch.tensor([sample["input_ids"]])
        loss = self.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=self.positions(sample),
            pixel_values_videos=self.pixels_of(sample),
            video_grid_thw=torch.tensor([sample["video_grid_thw"]]),
            labels=torch.tensor([sample["labels"]]),
            use_cache=False,
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())

    def run(self, steps):
        """Samples a second."""
        for i in range(steps):
            self.pixels_of(self.samples[(self.at + i) % len(self.samples)])
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        return steps / (time.perf_counter() - start)


def memory_now():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def ours(arguments, *more):
    command = arguments.ours.split() + list(more)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return done.stdout


def shown(values):
    values = sorted(values)
    return f"{statistics.median(values):.2f} ({values[0]:.2f}, {values[-1]:.2f})"


def speed(arguments, model, batches):
    reference = Reference(model, batches)
    with tempfile.TemporaryDirectory() as adapter:
        reference.model.save_pretrained(adapter)
        measure = ["measure", model, batches, "--adapter", adapter]
        want = [reference.step() for _ in range(5)]
        result = json.loads(ours(arguments, *measure, "--steps", "5", "--warmup", "0"))
        measure += ["--steps", str(arguments.steps)]
        worst = max(abs(a / b - 1) for a, b in zip(result["losses"], want))
        print("first losses", " ".join(f"{loss:.5f}" for loss in want), f"; ours differ by {worst:.1e}")
        theirs, rates = [], {name: [] for name in OURS}
        for _ in range(arguments.rounds):
            theirs.append(reference.run(arguments.steps))
            for name, more in OURS.items():
                rates[name].append(json.loads(ours(arguments, *measure, *more))["samples_per_s"])
    print(f"{'':<38}{'samples/s':>20}{'ratio':>22}")
    print(f"{'transformers + PEFT':<38}{shown(theirs):>20}")
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(values, theirs)]
        print(f"{'ours, ' + name:<38}{shown(values):>20}{shown(ratios):>22}")


def memory(arguments):
    print("peak memory in MiB: the process's, and above what it held with the model loaded")
    head = ["tokens", "transformers", "checkpointing", "ours", "recomputed"]
    print(("{:>8}" + "{:>16}" * 4).format(*head))
    mib = lambda peak, loaded: f"{peak / 2**20:.0f} (+{(peak - loaded) / 2**20:.0f})"
    for frames in arguments.frames:
        with tempfile.TemporaryDirectory() as folder:
            ours(arguments, "write", folder, "--frames", str(frames), "--samples", "2")
            batches = f"{folder}/batches.json"
            row = [len(json.load(open(batches))["samples"][0]["input_ids"])]
            for checkpointing in (False, True):
                command = [sys.executable, __file__, "--peak", folder, batches]
                command += ["--checkpointing"] * checkpointing
                peak, loaded = json.loads(subprocess.check_output(command))
                row.append(mib(peak, loaded))
            for more in ([], ["--recompute"]):
                case = ["measure", folder, batches, "--fresh-features", "--steps", "2", "--warmup", "0"]
                result = json.loads(ours(arguments, *case, *more))
                row.append(mib(result["peak_bytes"], result["loaded_bytes"]))
            print(("{:>8}" + "{:>16}" * 4).format(*row), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--frames", type=int, nargs="*", default=[4, 8, 16, 32], help="for --memory")
    parser.add_argument("--model")
    parser.add_argument("--batches")
    parser.add_argument("--ours", default="cargo bench --quiet --bench train --", help="command of our benchmark")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if arguments.peak:
        reference = Reference(*arguments.peak, arguments.checkpointing)
        reference.run(2)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps([peak, reference.loaded]))
    elif arguments.memory:
        memory(arguments)
    elif arguments.model:
        speed(arguments, arguments.model, arguments.batches)
    else:
        with tempfile.TemporaryDirectory() as folder:
            ours(arguments, "write", folder)
            speed(arguments, folder, f"{folder}/batches.json")


if __name__ == "__main__":
    main()
