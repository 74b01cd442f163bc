#!/usr/bin/env python3
"""Makes llamafactory/: what a real LLaMA-Factory run does with two small videos, on a CPU, offline.

    python make_llamafactory.py

Run it with requirements-llamafactory.txt installed and after make.py, whose checkpoints and first
adapters it starts from; then run `make.py --only manifest`. Per family (qwen2_vl, qwen2.5_vl) it
records how each dataset row is encoded, which frames are taken and how they are resized, and ten
optimiser steps of LoRA training: every batch, loss and gradient norm, and the adapter before and
after. The Qwen2.5-VL run accumulates gradients over two batches. Both start from make.py's adapter,
whose two matrices are random: with B = 0, as LoRA starts, half of the first gradients are zero.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1", CUDA_VISIBLE_DEVICES=""
)

import av
import numpy as np
import torch
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).resolve().parent
OUT = GOLDEN / "llamafactory"
FAMILIES = {  # family: (checkpoint, sampled frames per second, batches per optimiser step)
    "qwen2_vl": ("tiny-qwen2-vl", 2.0, 1),
    "qwen2.5_vl": ("tiny-qwen2.5-vl", 4.0, 2),
}
MAX_FRAMES, MAX_PIXELS, CUTOFF = 16, 9408, 1024
VIDEOS = {  # file: (frames, height, width, frames per second, seed)
    "data/a.mp4": (40, 96, 128, 10, 1),
    "data/b.mp4": (45, 120, 80, 15, 2),
}
CHATS = [
    ("data/a.mp4", ["What is happening in this video?", "The ball is moving to the right."]),
    ("data/b.mp4", ["Is the ball falling?\nA. yes\nB. no", "B"]),
    (
        "data/b.mp4",
        [
            "Describe this video.",
            "A disc moves over a gradient.",
            "What color is it?",
            "It's blue.",
        ],
    ),
    ("data/a.mp4", ["How many balls are there?", "There is 1 ball."]),
]
# Of pixel_values_videos every 11th patch is kept: all of them would take 5 MB.
PATCH_STRIDE = 11


def write_json(value, path):
    """Indented, ASCII: the files hold no other text."""
    path.write_text(json.dumps(value, indent=1))


# ------------------------------------------------------------------------------ data


def draw(n, height, width, seed):
    """A disc that moves to the right over a gradient: u8 [height, width, 3], frame by frame."""
    colours = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (3, 3))
    yy, xx = np.mgrid[0:height, 0:width]
    for i in range(n):
        frame = np.zeros((height, width, 3))
        frame += (xx / width)[..., None] * colours[0] + (yy / height)[..., None] * colours[1]
        centre = width * (0.2 + 0.6 * i / n)
        frame[(xx - centre) ** 2 + (yy - height / 2) ** 2 < (0.2 * height) ** 2] = colours[2]
        yield np.clip(frame, 0, 255).astype(np.uint8)


def write_video(path, n, height, width, fps, seed):
    """h264 with B-frames, in one thread so that the bytes do not vary."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18", "preset": "veryfast", "threads": "1", "bf": "2"}
        for frame in draw(n, height, width, seed):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def dataset_rows():
    """The chats in the sharegpt layout; `<video>` marks the place of the video."""
    rows = []
    for video, turns in CHATS:
        turns = ["<video>" + turns[0], *turns[1:]]
        roles = ("user", "assistant") * (len(turns) // 2)
        messages = [dict(role=r, content=c) for r, c in zip(roles, turns)]
        rows.append(dict(messages=messages, videos=[video]))
    return rows


def write_data(folder):
    """Both videos, the dataset, and its description for LLaMA-Factory."""
    folder.mkdir(parents=True, exist_ok=True)
    for path, shape in VIDEOS.items():
        write_video(folder / Path(path).name, *shape)
    write_json(dataset_rows(), folder / "videos.json")
    tags = dict(role_tag="role", content_tag="content", user_tag="user", assistant_tag="assistant")
    columns = dict(messages="messages", videos="videos")
    info = dict(file_name="videos.json", formatting="sharegpt", columns=columns, tags=tags)
    write_json({"tinyvid": info}, folder / "dataset_info.json")


# ------------------------------------------------------------------------------ one family


def prepare(name, work):
    """In `work`: the data, a float32 copy of the checkpoint, make.py's adapter in PEFT's files."""
    shutil.copytree(OUT / "data", work / "data")
    source, checkpoint, adapter = GOLDEN / "ckpt" / name, work / "ckpt", work / "adapter"
    skip = shutil.ignore_patterns("*.safetensors", "*.index.json")
    shutil.copytree(source, checkpoint, ignore=skip)
    weights = {}
    for shard in sorted(source.glob("*.safetensors")):
        weights.update(load_file(shard))
    weights = {k: x.float() for k, x in weights.items()}
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text())
    write_json(config | dict(torch_dtype="float32"), checkpoint / "config.json")
    adapter.mkdir()
    shutil.copy(GOLDEN / name / "lora_init.safetensors", adapter / "adapter_model.safetensors")
    shutil.copy(GOLDEN / name / "adapter_step_5" / "adapter_config.json", adapter)


def encode_rows(template, tokenizer, processor, data_args):
    """Every dataset row as LLaMA-Factory tokenises and labels it."""
    from llamafactory.data.processor.supervised import SupervisedDatasetProcessor

    encoder = SupervisedDatasetProcessor(
        template=template, tokenizer=tokenizer, processor=processor, data_args=data_args
    )
    encoded = []
    for row in json.loads(Path("data/videos.json").read_text()):
        ids, labels = encoder._encode_data_example(
            prompt=row["messages"][:-1],
            response=row["messages"][-1:],
            system=None,
            tools=None,
            images=[],
            videos=row["videos"],
            audios=[],
        )
        answer = tokenizer.decode([x for x in labels if x != -100])
        encoded.append(
            dict(
                row=row,
                input_ids=ids,
                labels=labels,
                text=tokenizer.decode(ids),
                supervised=answer,
            )
        )
    return encoded


def decode_frames(path, indices):
    """The chosen frames as RGB bytes: u8 [T, height, width, 3]."""
    with av.open(path) as container:
        frames = [f for i, f in enumerate(container.decode(video=0)) if i in indices]
        rgb = np.stack([np.asarray(f.to_image()) for f in frames])
        assert np.array_equal(rgb, np.stack([f.to_ndarray(format="rgb24") for f in frames]))
    return rgb


def record_video(path, fps, plugin, processor):
    """What the plugin makes of one video: (facts, SHA-256 of each decoded frame, tensors)."""
    limits = dict(image_max_pixels=MAX_PIXELS, image_min_pixels=256)
    sampling = dict(video_fps=fps, video_maxlen=MAX_FRAMES)
    with av.open(path) as container:
        stream = container.streams.video[0]
        indices = plugin._get_video_sample_indices(stream, **sampling).tolist()
        facts = dict(
            total=stream.frames,
            fps=float(stream.average_rate),
            duration=float(stream.duration * stream.time_base),
            sample_indices=indices,
        )
    resized = plugin._regularize_videos([path], **limits, **sampling)
    inputs = plugin._get_mm_inputs([], [path], [], processor)
    rgb = decode_frames(path, set(indices))
    frames = np.stack([np.asarray(x) for x in resized["videos"][0]])
    facts.update(
        decoded=list(rgb.shape[1:]),
        lf_resized=list(frames.shape[1:]),
        n_frames_after_pad=len(frames),
        fps_per_video=resized["fps_per_video"],
        grid_thw=inputs["video_grid_thw"].tolist(),
        second_per_grid_ts=[float(x) for x in inputs.get("second_per_grid_ts", [])],
    )
    pixels = inputs["pixel_values_videos"]
    rows = torch.arange(0, len(pixels), PATCH_STRIDE)
    tensors = dict(
        lf_resized_thwc=torch.from_numpy(frames),
        pixel_values_videos_rows=pixels[rows].contiguous(),
        rows=rows,
        pixel_levels=pixel_levels(pixels, processor.image_processor),
        video_grid_thw=inputs["video_grid_thw"],
    )
    return facts, [hashlib.sha256(frame.tobytes()).hexdigest() for frame in rgb], tensors


def pixel_levels(pixels, image_processor):
    """The 0-255 level of each normalised number, u8: a quarter of the bytes, nothing lost.

    Rows of `pixels` hold channel by channel, so each third of a row has its own mean and std.
    """
    mean = torch.tensor(image_processor.image_mean).repeat_interleave(pixels.shape[1] // 3)
    std = torch.tensor(image_processor.image_std).repeat_interleave(pixels.shape[1] // 3)
    levels = (pixels * (255 * std) + 255 * mean).round()
    back = (levels - 255 * mean) / (255 * std)
    assert (back - pixels).abs().max() < 1e-6
    return levels.to(torch.uint8)


def record_samples(family, fps):
    """(encoded rows and video facts, frame hashes) of one family; writes frames_*.safetensors."""
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments, ModelArguments
    from llamafactory.model import load_tokenizer

    model_args = ModelArguments(
        model_name_or_path="ckpt",
        video_fps=fps,
        video_maxlen=MAX_FRAMES,
        video_max_pixels=MAX_PIXELS,
    )
    loaded = load_tokenizer(model_args)
    tokenizer, processor = loaded["tokenizer"], loaded["processor"]
    data_args = DataArguments(template="qwen2_vl", cutoff_len=CUTOFF)
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    videos, hashes = {}, {}
    for path in VIDEOS:
        facts, digests, tensors = record_video(path, fps, template.mm_plugin, processor)
        videos[path] = facts
        hashes[path] = dict(indices=facts["sample_indices"], sha256_rgb=digests)
        save_file(tensors, OUT / f"frames_{family}_{Path(path).stem}.safetensors")
    samples = dict(
        samples=encode_rows(template, tokenizer, processor, data_args),
        videos=videos,
        tokenizer_class=type(tokenizer).__name__,
        image_processor=type(processor.image_processor).__name__,
        video_processor=type(processor.video_processor).__name__,
        padding_side=tokenizer.padding_side,
        eos=tokenizer.eos_token,
        pad=tokenizer.pad_token,
    )
    return samples, hashes


# ------------------------------------------------------------------------------ training


def train_config(fps, accumulate):
    """The recipe: LLaMA-Factory's defaults but for what is small, exact and repeatable."""
    return dict(
        model_name_or_path="ckpt",
        adapter_name_or_path="adapter",
        create_new_adapter=False,
        trust_remote_code=True,
        stage="sft",
        do_train=True,
        finetuning_type="lora",
        lora_target="all",
        lora_rank=8,
        lora_alpha=16,
        lora_dropout=0.0,
        dataset="tinyvid",
        dataset_dir="data",
        media_dir=".",
        template="qwen2_vl",
        cutoff_len=CUTOFF,
        video_fps=fps,
        video_maxlen=MAX_FRAMES,
        video_max_pixels=MAX_PIXELS,
        preprocessing_num_workers=1,
        dataloader_num_workers=0,
        overwrite_cache=True,
        output_dir="out",
        overwrite_output_dir=True,
        logging_steps=1,
        save_strategy="no",
        plot_loss=False,
        report_to="none",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulate,
        learning_rate=1.0e-3,
        max_steps=10,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        max_grad_norm=1.0,
        optim="adamw_torch",
        bf16=False,
        fp16=False,
        use_cpu=True,
        seed=42,
        disable_shuffling=True,
        disable_gradient_checkpointing=True,
    )


def lora_weights(model):
    """Copies of the LoRA matrices by the names PEFT saves them under."""
    named = model.named_parameters()
    key = lambda k: k.replace(".default.weight", ".weight")
    return {key(k): p.detach().clone() for k, p in named if p.requires_grad}


def effective(trainer, model):
    """The settings the losses depend on, as the trainer holds them."""
    args = trainer.args.to_dict()
    names = (
        "per_device_train_batch_size gradient_accumulation_steps learning_rate weight_decay "
        "adam_beta1 adam_beta2 adam_epsilon max_grad_norm max_steps lr_scheduler_type "
        "warmup_steps optim seed"
    ).split()
    return dict(
        training_args={k: args[k] for k in names},
        weight_decay_by_group=[g["weight_decay"] for g in trainer.optimizer.param_groups],
        attention=getattr(model.config, "_attn_implementation", None),
        model_accepts_loss_kwargs=trainer.model_accepts_loss_kwargs,
        target_modules=model.peft_config["default"].target_modules,
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        total=sum(p.numel() for p in model.parameters()),
    )


def record_training(out, fps, accumulate):
    """Trains under hooks; writes batches 1 and 2 (later ones repeat them), steps, adapters."""
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer as Trainer
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    steps, compute_loss = [], Trainer.compute_loss

    def recorded(self, model, inputs, *args, **kwargs):
        result = compute_loss(self, model, inputs, *args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        steps.append(dict(step=len(steps) + 1, loss=loss.item()))
        if len(steps) == 1:
            save_file(lora_weights(model), out / "lora_before.safetensors")
            write_json(effective(self, model), out / "effective.json")
        if len(steps) <= 2:
            keep = lambda k, x: torch.is_tensor(x) and not k.startswith("pixel_values")
            batch = {k: x.contiguous().clone() for k, x in inputs.items() if keep(k, x)}
            save_file(batch, out / f"batch_{len(steps)}.safetensors")
        return result

    class Record(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            if logs and "grad_norm" in logs:
                steps[-1].update(grad_norm=float(logs["grad_norm"]), logged=dict(logs))

        def on_train_end(self, args, state, control, model=None, **_):
            save_file(lora_weights(model), out / "lora_after.safetensors")

    Trainer.compute_loss = recorded
    run_exp(train_config(fps, accumulate), [Record()])
    write_json(steps, out / "steps.json")


def run_family(family):
    """Both recordings of one family; in a process of its own, for LLaMA-Factory keeps state."""
    name, fps, accumulate = FAMILIES[family]
    out = OUT / family
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        prepare(name, Path(work))
        os.chdir(work)
        samples, hashes = record_samples(family, fps)
        record_training(out, fps, accumulate)
        os.chdir(GOLDEN)
    return dict(samples=samples, frames=hashes)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=FAMILIES, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.family:
        write_json(run_family(args.family), args.report)
        return
    shutil.rmtree(OUT, ignore_errors=True)
    write_data(OUT / "data")
    reports = {}
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            report = Path(folder) / f"{family}.json"
            command = [sys.executable, __file__, "--family", family, "--report", str(report)]
            subprocess.run(command, check=True)
            reports[family] = json.loads(report.read_text())
    write_json({f: r["samples"] for f, r in reports.items()}, OUT / "lf_samples.json")
    write_json({f: r["frames"] for f, r in reports.items()}, OUT / "frames.json")


if __name__ == "__main__":
    main()
