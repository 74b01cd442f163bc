"""Memory that `vlm4d-train plan` foresees against what a run then takes, on the CPU.

    cargo build --release
    python benches/plan_memory.py [--work DIR]

Makes checkpoints of three sizes with random weights (needs torch and transformers; tokenizer and
processor are those of tests/golden/ckpt/tiny-qwen2-vl), a demo set, and runs two optimiser steps per
case with a short evaluation. Prints the plan's peak, the process's peak and their ratio.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# hidden, inner, layers, heads, key-value heads, vocabulary; tower: width, depth, heads
SHAPES = dict(
    nano=(256, 1024, 6, 4, 2, 1024, 192, 6, 6),
    small=(512, 2048, 8, 8, 2, 32000, 320, 8, 5),
    medium=(1024, 4096, 8, 8, 2, 50000, 512, 8, 8),
)
LORA, FULL, VISION = "[lora]\n", "", '[lora]\nscope = ["language", "vision", "merger"]\n'
NF4 = 'quantize = "nf4"\n'
# shape, frames, tokens of a frame pair, [lora], [train], and of [model] how weights are held
CASES = [
    ("nano", 4, 16, LORA, ""),
    ("nano", 16, 64, LORA, ""),
    ("nano", 32, 144, LORA, ""),
    ("nano", 16, 64, LORA, "recompute = false"),
    ("nano", 16, 64, LORA, "batch_size = 4"),
    ("nano", 16, 64, FULL, ""),
    ("nano", 16, 64, VISION, ""),
    ("small", 16, 64, LORA, ""),
    ("small", 32, 144, LORA, ""),
    ("small", 16, 64, LORA, "recompute = false"),
    ("small", 16, 64, FULL, ""),
    ("medium", 8, 64, LORA, ""),
    ("medium", 8, 64, FULL, ""),
    ("small", 16, 64, LORA, "", NF4),
    ("medium", 8, 64, LORA, "", NF4),
]


def make(folder, shape):
    """A checkpoint of Qwen2-VL's architecture with random weights."""
    import torch
    from transformers import AutoConfig, Qwen2VLForConditionalGeneration

    hidden, inner, layers, heads, kv, vocab, width, depth, tower_heads = shape
    source = ROOT / "tests/golden/ckpt/tiny-qwen2-vl"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    path = folder / "config.json"
    config = json.loads(path.read_text())
    half = hidden // heads // 2
    section = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    config.update(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        vocab_size=vocab,
        rope_scaling=config["rope_scaling"] | dict(mrope_section=section),
    )
    if "max_window_layers" in config:
        config["max_window_layers"] = layers
    if "layer_types" in config:
        config["layer_types"] = ["full_attention"] * layers
    config["vision_config"].update(
        embed_dim=width, depth=depth, num_heads=tower_heads, hidden_size=hidden
    )
    path.write_text(json.dumps(config))
    model = Qwen2VLForConditionalGeneration(AutoConfig.from_pretrained(folder)).float()
    model.save_pretrained(folder)
    path.write_text(json.dumps(config))


def peak_of(command, folder):
    """Runs `command`; its output and the most memory it held, in bytes."""
    with open(folder / "out", "w+") as out:
        child = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        out.seek(0)
        text = out.read()
    if status != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{text}")
    return text, usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=Path, default=ROOT / "target/release/vlm4d-train")
    parser.add_argument("--work", type=Path, help="folder that keeps checkpoints and data")
    parser.add_argument("--only", help="shapes to run, by comma")
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    work, program = work.resolve(), args.program.resolve()
    if not (work / "demo").exists():
        demo = ["data", "demo", "--out", "demo", "--real-videos", "8", "--synthetic-videos", "1"]
        peak_of([program, *demo], work)
    print(f"{'case':<52}{'plan MiB':>10}{'run MiB':>10}{'plan / run':>12}")
    for shape, frames, tokens, lora, train, *held in CASES:
        if args.only and shape not in args.only.split(","):
            continue
        model = work / shape
        if not model.exists():
            # In a process of its own: a child's peak counts what its parent held when it began.
            maker = get_context("spawn").Process(target=make, args=(model, SHAPES[shape]))
            maker.start()
            maker.join()
        shutil.rmtree(work / "runs", ignore_errors=True)
        (work / "r.toml").write_text(
            f'[model]\npath = "{model}"\n{"".join(held)}[data]\npath = "demo"\ncache_gib = 0\n'
            f"[video]\nfps = 8.0\nmax_frames = {frames}\nmax_pixels = {tokens * 28 * 28}\n"
            f"{lora}[train]\nmax_steps = 2\ngrad_accum = 1\n{train}\n"
            "[eval]\nmax_new_tokens = 2\ncontrols = []\n"
        )
        text, _ = peak_of([program, "plan", "r.toml"], work)
        number, unit = re.search(r"^peak   ([\d.]+) (MiB|GiB)", text, re.M).groups()
        planned = float(number) * (1 if unit == "MiB" else 1024)
        _, peak = peak_of([program, "r.toml"], work)
        peak /= 2**20
        kind = {LORA: "lora", FULL: "full", VISION: "lora, vision too"}[lora]
        case = f"{shape}, {frames} frames of {tokens} tokens, {kind} {train}{' in NF4' * len(held)}"
        print(f"{case:<52}{planned:>10.0f}{peak:>10.0f}{planned / peak:>12.2f}", flush=True)


if __name__ == "__main__":
    main()
