#!/usr/bin/env python3
"""Makes frames/: what LLaMA-Factory, qwen-vl-utils and transformers make of lists of frames as videos,
and qwen-vl-utils of the sharpest of them as a decoded video and as images.

    python make_frames.py

Run it with requirements-llamafactory.txt installed and after make_llamafactory.py, one of whose
videos stands beside a list; then run `make.py --only manifest`. Per family it records how
LLaMA-Factory encodes rows with lists, and per tool the grid, the clock and some patches of each list.
All three are told at how many frames a second the lists were taken; transformers would take 24.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import make_images
import make_llamafactory as lf
import numpy as np
import torch
from safetensors.torch import save_file

OUT = lf.GOLDEN / "frames"
FPS, MAX_PIXELS = 4.0, 9408
# qwen-vl-utils resizes twice where the bounds of images and videos differ: with its own of videos.
QWEN_MAX_PIXELS = 128 * 28 * 28
# Bounds that reduce the sharp frames.
REDUCED = dict(min_pixels=3136, max_pixels=6000)
LISTS = {  # folder: (frames, height, width, ending)
    "left": (3, 90, 121, "jpg"),
    "right": (4, 20, 31, "png"),
    "sharp": (2, 90, 121, "png"),
}
ROWS = [
    ([], ["left"], ["<video>What moves?", "A disc."]),
    ([], ["right", "b.mp4"], ["<video>And <video>?", "Both do.", "Sure?", "Yes."]),
    (["left/0.jpg"], ["left"], ["<image>Where in <video>?", "At first."]),
]
# Patches of each list that are kept.
KEPT = 12


def files(folder):
    n, _, _, ending = LISTS[folder]
    return [f"{folder}/{i}.{ending}" for i in range(n)]


def draw_sharp(frames, height, width, seed):
    """Small rectangles of the purest colours on white: what is beyond black and white between the two
    passes of a resize is lost where these are kept in 8 bits."""
    rng = np.random.default_rng(seed)
    for _ in range(frames):
        frame = np.full((height, width, 3), 255, np.uint8)
        for y, x, h, w in rng.integers(0, [height, width, 9, 9], (200, 4)):
            frame[y : y + h + 1, x : x + w + 1] = rng.integers(0, 2, 3) * 255
        yield frame


def write_data(data):
    """The frames, and the rows that show them in LLaMA-Factory's layout."""
    for seed, (folder, (n, height, width, ending)) in enumerate(LISTS.items()):
        (data / folder).mkdir(parents=True)
        draw = draw_sharp if folder == "sharp" else lf.draw
        for name, frame in zip(files(folder), draw(n, height, width, seed)):
            make_images.Image.fromarray(frame).save(data / name, **SAVED[ending])
    shutil.copy(lf.OUT / "data" / "b.mp4", data)
    rows = []
    for images, videos, turns in ROWS:
        roles = ("human", "gpt") * (len(turns) // 2)
        messages = [{"from": r, "value": c} for r, c in zip(roles, turns)]
        videos = [files(name) if name in LISTS else name for name in videos]
        rows.append(dict(conversations=messages, images=images, videos=videos))
    lf.write_json(rows, data / "rows.json")
    columns = dict(images="images", videos="videos")
    info = dict(file_name="rows.json", formatting="sharegpt", columns=columns)
    lf.write_json({"lists": info}, data / "dataset_info.json")


SAVED = {"jpg": dict(quality=90, subsampling=0), "png": {}}


def some(pixels, processor):
    """A few of the patches as levels, and which these are."""
    rows = torch.arange(0, len(pixels), len(pixels) // KEPT | 1)
    return dict(rows=rows, levels=lf.pixel_levels(pixels[rows], processor))


def record_llama_factory():
    """The rows' ids and labels, and each list's facts and patches."""
    template, processor, encoder = make_images.load(FPS)
    rows = []
    for row in json.loads(Path("data/rows.json").read_text()):
        turns = [
            dict(role=dict(human="user", gpt="assistant")[m["from"]], content=m["value"])
            for m in row["conversations"]
        ]
        path = lambda name: f"data/{name}"
        ids, labels = encoder._encode_data_example(
            prompt=turns[:-1],
            response=turns[-1:],
            system=None,
            tools=None,
            images=[path(name) for name in row["images"]],
            videos=[path(v) if isinstance(v, str) else [path(name) for name in v] for v in row["videos"]],
            audios=[],
        )
        rows.append(dict(input_ids=ids, labels=labels))
    facts, tensors = {}, {}
    for folder in LISTS:
        frames = [f"data/{name}" for name in files(folder)]
        inputs = template.mm_plugin._get_mm_inputs([], [frames], [], processor)
        facts[folder] = dict(grid_thw=inputs["video_grid_thw"][0].tolist())
        facts[folder]["second_per_grid"] = [float(s) for s in inputs.get("second_per_grid_ts", [])]
        tensors[folder] = some(inputs["pixel_values_videos"], processor.image_processor)
    return dict(rows=rows, lists=facts), tensors


def record_others():
    """Each list as qwen-vl-utils and transformers have it."""
    from qwen_vl_utils.vision_process import fetch_video
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained("ckpt")
    of_videos = processor.video_processor
    facts, tensors = dict(qwen={}, hf={}), dict(qwen={}, hf={})
    for folder in LISTS:
        frames = [f"data/{name}" for name in files(folder)]
        ele = dict(video=frames, sample_fps=FPS, max_pixels=QWEN_MAX_PIXELS)
        video, fps = fetch_video(ele, return_video_sample_fps=True)
        resized = dict(videos=[video], do_resize=False)
        size = dict(shortest_edge=of_videos.size["shortest_edge"], longest_edge=MAX_PIXELS)
        for tool, given in dict(qwen=resized, hf=dict(videos=[[frames]], size=size)).items():
            inputs = processor(
                text=["<|vision_start|><|video_pad|><|vision_end|>"],
                # before version 5, and since
                fps=fps,
                video_metadata=[clock(fps, frames)],
                do_sample_frames=False,
                return_tensors="pt",
                **given,
            )
            facts[tool][folder] = dict(
                grid_thw=inputs["video_grid_thw"][0].tolist(),
                second_per_grid=[float(s) for s in inputs["second_per_grid_ts"]],
            )
            tensors[tool][folder] = some(inputs["pixel_values_videos"], of_videos)
    tensors |= record_sharp(processor)
    return facts, tensors


def record_sharp(processor):
    """The sharp frames as qwen-vl-utils has those of a decoded video, and the first one as an image."""
    from qwen_vl_utils import vision_process

    frames = [f"data/{name}" for name in files("sharp")]
    decoded = np.stack([np.asarray(make_images.Image.open(frame)) for frame in frames])
    read = lambda ele: (torch.from_numpy(decoded).permute(0, 3, 1, 2), {}, FPS)
    vision_process.VIDEO_READER_BACKENDS[vision_process.get_video_reader_backend()] = read
    video = vision_process.fetch_video(dict(video="sharp", **REDUCED))
    image = vision_process.fetch_image(dict(image=frames[0], **REDUCED))
    given = dict(do_resize=False, return_tensors="pt")
    of_video = processor.video_processor(videos=[video], **given)["pixel_values_videos"]
    of_image = processor.image_processor(images=[image], **given)["pixel_values"]
    return dict(
        qwen_video=dict(sharp=some(of_video, processor.video_processor)),
        qwen_image=dict(sharp=some(of_image, processor.image_processor)),
    )


def clock(fps, frames):
    """The metadata of a list of which all is taken."""
    n = len(frames)
    return dict(fps=fps, total_num_frames=n, frames_indices=list(range(n)))


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    write_data(OUT / "data")
    samples, tensors = {}, {}
    for family, (name, _, _) in lf.FAMILIES.items():
        with tempfile.TemporaryDirectory() as work:
            lf.prepare(name, Path(work))
            shutil.copytree(OUT / "data", Path(work) / "data", dirs_exist_ok=True)
            os.chdir(work)
            samples[family], tensors[family] = record_llama_factory()
            if family == "qwen2.5_vl":
                facts, more = record_others()
                samples |= facts
                tensors |= more
            os.chdir(lf.GOLDEN)
    (OUT / "samples.json").write_text(json.dumps(samples))
    flat = {
        f"{of}.{folder}.{key}": x.contiguous()
        for of, lists in tensors.items()
        for folder, kept in lists.items()
        for key, x in kept.items()
    }
    save_file(flat, OUT / "patches.safetensors")


if __name__ == "__main__":
    main()
