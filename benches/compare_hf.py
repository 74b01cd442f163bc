#!/usr/bin/env python3
"""Our training against transformers + PEFT: same checkpoint, samples and adapter, in turn.

    python benches/compare_hf.py                      speed: ratios over several alternated rounds
    python benches/compare_hf.py --memory             peak memory by length of the sequence
    python benches/compare_hf.py measure MODEL BATCHES --task train    transformers alone, as JSON
    python benches/compare_hf.py parity MODEL BATCHES --out DIR        what it computes, as files

Needs torch, transformers and peft. The checkpoint and the samples are made by the benchmark
`train` of this folder, whose head says what they are; `--model` and `--batches` name others.
transformers works as its Trainer does: features of the frozen vision tower are made anew in every
step, logits at every position; bf16 under autocast with an adapter in f32. LoRA r = 8 on all
linear layers of the language model, AdamW, clipping, sdpa. `measure` and `parity` take the same
options as the benchmark's commands of those names; gpu.py runs both sides of them.
"""
import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

# Of the whole experiment, as ours: 16 prompts are two for each of eight samples.
ANSWERS_AT_ONCE = 8
GROUPS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
TARGETS = r".*language_model.*\.(" + "|".join(sorted(GROUPS)) + ")"
OURS = {
    "features kept, activations kept": [],
    "features kept, recomputed by layer": ["--recompute"],
    "features anew, activations kept": ["--fresh-features"],
    "features anew, recomputed by layer": ["--fresh-features", "--recompute"],
}


class Reference:
    """A checkpoint with an adapter, in training: `adapter`'s, or a fresh one."""

    def __init__(self, model, batches, adapter=None, checkpointing=False, device="cpu", dtype="f32",
                 batch_size=1, accumulate=1):
        import torch
        import transformers
        from peft import LoraConfig, PeftModel, get_peft_model

        self.torch, self.device, self.dtype = torch, torch_device(device), dtype
        self.batch_size, self.accumulate = batch_size, accumulate
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count()))
        # f32 means f32 on a GPU too.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == "bf16"
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        warnings.filterwarnings("ignore", category=FutureWarning)
        kind = transformers.AutoModelForImageTextToText
        weights = torch.bfloat16 if dtype == "bf16" else torch.float32
        place = {"device_map": {"": self.device}} if self.device != "cpu" else {}
        base = kind.from_pretrained(model, dtype=weights, attn_implementation="sdpa", **place)
        base.requires_grad_(False)
        if adapter:
            self.model = PeftModel.from_pretrained(base, adapter, is_trainable=True).train()
        else:
            torch.manual_seed(0)
            config = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
            self.model = get_peft_model(base, config).train()
        if checkpointing:
            # Without the hooks that would back-propagate through the frozen vision tower.
            kwargs = {"use_reentrant": False}
            base.enable_input_require_grads = lambda: None
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
        self.base, self.config = base, base.config
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if not trained or any(p.dtype != torch.float32 for p in trained):
            raise SystemExit("error: peft did not make an adapter in f32")
        self.trained, self.optimiser = trained, torch.optim.AdamW(trained, lr=1e-4, weight_decay=0)
        self.samples = json.load(open(batches))["samples"]
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
        """Text, then the video's grid, then text from the highest position on; `[3, tokens]`."""
        t, h, w = sample["video_grid_thw"]
        h, w = h // 2, w // 2
        times = range(t)
        if self.config.model_type == "qwen2_5_vl":
            a_second = getattr(self.config.vision_config, "tokens_per_second")
            times = [int(i * sample["second_per_grid_ts"] * a_second) for i in range(t)]
        start = sample["input_ids"].index(self.config.video_token_id)
        grid = [(start + a, start + y, start + x) for a in times for y in range(h) for x in range(w)]
        behind = max(map(max, grid)) + 1
        rest = len(sample["input_ids"]) - start - len(grid)
        rows = [(i,) * 3 for i in range(start)] + grid + [(behind + i,) * 3 for i in range(rest)]
        return self.torch.tensor(rows).T

    def inputs(self, samples, end=None):
        """What the model takes for `samples`, padded on the right, as training does; each cut at `end`
        of it and padded on the left, as answering does, where that is given."""
        torch = self.torch
        ids = [sample["input_ids"][:end and sample[end]] for sample in samples]
        longest = max(map(len, ids))
        padded = torch.zeros(len(ids), longest, dtype=torch.long)
        mask, labels = padded.clone(), torch.full_like(padded, -100)
        positions = torch.zeros(3, len(ids), longest, dtype=torch.long)
        for i, (row, sample) in enumerate(zip(ids, samples)):
            at = slice(0, len(row)) if end is None else slice(longest - len(row), longest)
            padded[i, at], mask[i, at] = torch.tensor(row), 1
            positions[:, i, at] = self.positions(sample)[:, : len(row)]
            labels[i, at] = torch.tensor(sample["labels"][: len(row)])
        inputs = {
            "input_ids": padded,
            "attention_mask": mask,
            "position_ids": positions,
            "pixel_values_videos": torch.cat([self.pixels_of(sample) for sample in samples]),
            "video_grid_thw": torch.tensor([sample["video_grid_thw"] for sample in samples]),
        }
        if end is None:
            inputs["labels"] = labels
        return {name: value.to(self.device) for name, value in inputs.items()}

    def precision(self):
        if self.dtype == "bf16":
            return self.torch.autocast(self.device.split(":")[0], dtype=self.torch.bfloat16)
        return contextlib.nullcontext()

    def gradients(self, samples):
        """Loss; its gradients are added to those that the adapter holds."""
        with self.precision():
            loss = self.model(**self.inputs(samples), use_cache=False).loss / self.accumulate
        loss.backward()
        return float(loss.detach())

    def next(self):
        """The samples of the next micro-batch."""
        at = [(self.at + i) % len(self.samples) for i in range(self.batch_size)]
        self.at += self.batch_size
        return [self.samples[i] for i in at]

    def step(self):
        """Loss and gradient norm."""
        loss = sum(self.gradients(self.next()) for _ in range(self.accumulate))
        norm = self.torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return loss, float(norm)

    def answer(self, samples, new_tokens):
        """So many tokens each, greedily; the end mark is not heeded, so that the work is fixed."""
        inputs = self.inputs(samples, "prompt_len")
        inputs.pop("position_ids")
        if "mm_token_type_ids" in generate_takes(self.base):
            inputs["mm_token_type_ids"] = 2 * (inputs["input_ids"] == self.config.video_token_id).int()
        if self.config.model_type == "qwen2_5_vl":
            seconds = [sample["second_per_grid_ts"] for sample in samples]
            inputs["second_per_grid_ts"] = self.torch.tensor(seconds)
        with self.torch.no_grad(), self.precision():
            self.model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens,
                                min_new_tokens=new_tokens, use_cache=True, pad_token_id=0)

    def wait(self):
        if self.device != "cpu":
            self.torch.cuda.synchronize()

    def run(self, steps):
        """Samples a second."""
        for i in range(steps):
            self.pixels_of(self.samples[(self.at + i) % len(self.samples)])
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        return steps / (time.perf_counter() - start)


def torch_device(name):
    return "cuda:0" if name == "cuda" else name


def generate_takes(model):
    import inspect

    return inspect.signature(model.forward).parameters


def memory_now():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def reference(arguments):
    return Reference(
        arguments.model, arguments.batches, arguments.adapter, arguments.checkpointing,
        arguments.device, arguments.dtype, arguments.batch_size, arguments.accumulate,
    )


def measure(arguments):
    """One task over and over after a warm-up, or the whole small experiment; prints JSON."""
    start = time.perf_counter()
    model = reference(arguments)
    model.wait()
    load_s = time.perf_counter() - start
    for sample in model.samples:
        model.pixels_of(sample)
    tasks = {"freeform": 16, "letter": 1}
    if arguments.task == "experiment":
        result = experiment(model, arguments.steps, tasks.values())
    else:
        seconds, losses, tokens = [], [], []
        for step in range(arguments.warmup + arguments.steps):
            at, begun = model.at, time.perf_counter()
            if arguments.task == "train":
                losses.append(model.step()[0])
            else:
                answering(model, model.next(), [tasks[arguments.task]], model.batch_size)
            model.wait()
            seconds.append(time.perf_counter() - begun)
            seen = [model.samples[i % len(model.samples)] for i in range(at, model.at)]
            tokens.append([len(sample["input_ids"]) for sample in seen])
        warm, measured = arguments.warmup, seconds[arguments.warmup :]
        result = {
            "samples_per_s": sum(map(len, tokens[warm:])) / sum(measured),
            "tokens_per_s": sum(map(sum, tokens[warm:])) / sum(measured),
            "median_step_s": statistics.median(measured),
            "first_step_s": seconds[0],
            "warmup_s": sum(seconds[:warm]),
            "losses": losses,
        }
    result |= {
        "device": arguments.device, "dtype": arguments.dtype, "load_s": load_s,
        "total_s": time.perf_counter() - start, "loaded_bytes": model.loaded,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "torch": model.torch.__version__,
    }
    if model.device != "cpu":
        result["device_bytes"] = model.torch.cuda.max_memory_reserved()
        result["device_name"] = model.torch.cuda.get_device_name()
    print(json.dumps(result))


def answering(model, samples, lengths, at_once):
    """Seconds to answer each of `samples` at each length."""
    start = time.perf_counter()
    model.model.eval()
    for i in range(0, len(samples), at_once):
        for new_tokens in lengths:
            model.answer(samples[i : i + at_once], new_tokens)
    model.model.train()
    model.wait()
    return time.perf_counter() - start


def experiment(model, steps, lengths):
    """Both kinds of answer to all samples, training, both kinds of answer again."""
    start = time.perf_counter()
    before = answering(model, model.samples, lengths, ANSWERS_AT_ONCE)
    begun = time.perf_counter()
    losses = [model.step()[0] for _ in range(steps)]
    model.wait()
    train = time.perf_counter() - begun
    after = answering(model, model.samples, lengths, ANSWERS_AT_ONCE)
    return {
        "before_s": before, "train_s": train, "after_s": after, "losses": losses,
        "questions": 4 * len(model.samples), "experiment_s": time.perf_counter() - start,
    }


def parity(arguments):
    """The files that the benchmark's `parity` writes, of the same names."""
    from safetensors.torch import save_file

    model = reference(arguments)
    torch, sample = model.torch, model.samples[0]
    os.makedirs(arguments.out, exist_ok=True)
    start = time.perf_counter()
    rows = [i - 1 for i, label in enumerate(sample["labels"]) if i and label != -100]
    with torch.no_grad(), model.precision():
        inputs = model.inputs([sample])
        tower = model.base.model.visual
        pixels = inputs["pixel_values_videos"].to(next(tower.parameters()).dtype)
        features = tower(pixels, grid_thw=inputs["video_grid_thw"])
        features = getattr(features, "pooler_output", features)
        logits = model.model(**inputs, use_cache=False).logits[0, rows]
    save = lambda name, tensors: save_file(
        {key: value.float().cpu().contiguous() for key, value in tensors.items()},
        os.path.join(arguments.out, name),
    )
    save("forward.safetensors", {"features": features, "logits": logits})
    for _ in range(model.accumulate):
        model.gradients(model.next())
    model.at = 0
    named = model.model.named_parameters()
    named = {name.replace(".default.", "."): p.grad for name, p in named if p.requires_grad}
    save("gradients.safetensors", named)
    model.optimiser.zero_grad(set_to_none=True)
    steps = [model.step() for _ in range(arguments.steps)]
    written = {
        "device": arguments.device, "dtype": arguments.dtype,
        "losses": [loss for loss, _ in steps], "grad_norms": [norm for _, norm in steps],
        "seconds": time.perf_counter() - start,
    }
    with open(os.path.join(arguments.out, "parity.json"), "w") as file:
        json.dump(written, file)
    print(json.dumps(written))


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
        want = [reference.step()[0] for _ in range(5)]
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
    mib = lambda result: "{:.0f} (+{:.0f})".format(
        result["peak_bytes"] / 2**20, (result["peak_bytes"] - result["loaded_bytes"]) / 2**20
    )
    for frames in arguments.frames:
        with tempfile.TemporaryDirectory() as folder:
            ours(arguments, "write", folder, "--frames", str(frames), "--samples", "2")
            batches = f"{folder}/batches.json"
            case = ["measure", folder, batches, "--steps", "2", "--warmup", "0"]
            row = [len(json.load(open(batches))["samples"][0]["input_ids"])]
            for checkpointing in ([], ["--checkpointing"]):
                command = [sys.executable, __file__, *case, *checkpointing]
                row.append(mib(json.loads(subprocess.check_output(command))))
            for more in ([], ["--recompute"]):
                row.append(mib(json.loads(ours(arguments, *case, "--fresh-features", *more))))
            print(("{:>8}" + "{:>16}" * 4).format(*row), flush=True)


def arguments_of(parser):
    """What the commands `measure` and `parity` take."""
    parser.add_argument("model")
    parser.add_argument("batches")
    parser.add_argument("--adapter")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda:0")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--checkpointing", action="store_true", help="recompute layers in the backward pass")
    parser.add_argument("--batch-size", type=int, default=1, help="samples of a forward pass")
    parser.add_argument("--accumulate", type=int, default=1, help="forward passes of a step")
    parser.add_argument("--steps", type=int, default=10)
    return parser


def main():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    if sys.argv[1:2] == ["measure"]:
        parser = arguments_of(parser)
        parser.add_argument("--task", choices=["train", "freeform", "letter", "experiment"], default="train")
        parser.add_argument("--warmup", type=int, default=2)
        return measure(parser.parse_args(sys.argv[2:]))
    if sys.argv[1:2] == ["parity"]:
        parser = arguments_of(parser)
        parser.add_argument("--out", required=True)
        return parity(parser.parse_args(sys.argv[2:]))
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--frames", type=int, nargs="*", default=[4, 8, 16, 32], help="for --memory")
    parser.add_argument("--model")
    parser.add_argument("--batches")
    parser.add_argument("--ours", default="cargo bench --quiet --bench train --", help="command of our benchmark")
    arguments = parser.parse_args()
    if arguments.memory:
        memory(arguments)
    elif arguments.model:
        speed(arguments, arguments.model, arguments.batches)
    else:
        with tempfile.TemporaryDirectory() as folder:
            ours(arguments, "write", folder)
            speed(arguments, folder, f"{folder}/batches.json")


if __name__ == "__main__":
    main()
