#!/usr/bin/env python3
"""Makes images/: what Pillow, qwen-vl-utils, transformers and LLaMA-Factory read from image files.

    python make_images.py

Run it with requirements-llamafactory.txt installed and after make_llamafactory.py, one of whose
videos stands in a row with an image; then run `make.py --only manifest`. For each file it records the
RGB bytes of Pillow, of qwen-vl-utils where something is transparent, and of transformers where EXIF
data turn the picture; and per family how LLaMA-Factory resizes images and encodes rows that show them.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import make_llamafactory as lf
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

OUT = lf.GOLDEN / "images"
MAX_PIXELS = 9408
ORIENTATION = 0x112
ROWS = [
    (["photo.jpg"], [], ["<image>What is this?", "A disc over a gradient."]),
    (["small.png"], ["b.mp4"], ["<video>Is <image> the same?", "Yes.", "Sure?", "Not quite."]),
    (["photo.jpg", "half.png"], [], ["<image><image>Which is larger?", "The first."]),
]


def picture(height, width, seed):
    return Image.fromarray(next(lf.draw(1, height, width, seed)))


def write_files(folder):
    """Every kind of file that is read, each with what is awkward about it."""
    folder.mkdir(parents=True)
    photo = picture(90, 121, 1)
    photo.save(folder / "photo.jpg", quality=90)
    photo.save(folder / "sharp.jpg", quality=95, subsampling=0, progressive=True)
    photo.convert("L").save(folder / "grey.jpg", quality=90)
    exif = photo.getexif()
    for name, turn in [("turned", 6), ("flipped", 5), ("over", 3)]:
        exif[ORIENTATION] = turn
        photo.resize((61, 45)).save(folder / f"{name}.jpg", quality=95, subsampling=0, exif=exif)
    small = picture(20, 31, 2)
    small.save(folder / "small.png")
    small.convert("P").save(folder / "palette.png")
    small.convert("1").save(folder / "two.png")
    small.save(folder / "lossless.webp", lossless=True)
    small.save(folder / "small.webp", quality=80)
    small.save(folder / "small.bmp")
    small.convert("P").save(folder / "first.gif", save_all=True, append_images=[small.rotate(180)])
    small.save(folder / "png.jpg", format="png")
    alpha = np.linspace(0, 255, 56 * 84).reshape(56, 84).astype(np.uint8)
    half = picture(56, 84, 3)
    half.putalpha(Image.fromarray(alpha))
    half.save(folder / "half.png")
    half.convert("LA").save(folder / "grey_half.png")
    # transparent, and without a channel for it
    indexed = small.convert("P")
    indexed.save(folder / "clear_palette.png", transparency=indexed.getpixel((0, 0)))
    small.save(folder / "clear_color.png", transparency=small.getpixel((0, 0)))
    indexed.save(folder / "clear.gif", transparency=indexed.getpixel((0, 0)))
    half.save(folder / "half.webp", lossless=True)


def read_files(folder):
    """Name → [height, width, 3] of each file, and the same as the other tools have it, if otherwise."""
    from qwen_vl_utils.vision_process import to_rgb
    from transformers.image_utils import load_image

    tensors = {}
    for path in sorted(folder.iterdir()):
        pillow = np.asarray(Image.open(path).convert("RGB"))
        tensors[path.name] = pillow
        turned = np.asarray(load_image(str(path)))
        if turned.shape != pillow.shape or (turned != pillow).any():
            tensors[f"{path.name}.transformers"] = turned
        white = np.asarray(to_rgb(Image.open(path)))
        if (white != pillow).any():
            tensors[f"{path.name}.qwen_vl_utils"] = white
    return {k: torch.from_numpy(x.copy()) for k, x in tensors.items()}


def load(fps):
    """LLaMA-Factory's template, tokenizer, processor and encoder of rows, on the checkpoint `ckpt`."""
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.data.processor.supervised import SupervisedDatasetProcessor
    from llamafactory.hparams import DataArguments, ModelArguments
    from llamafactory.model import load_tokenizer

    args = ModelArguments(
        model_name_or_path="ckpt",
        image_max_pixels=MAX_PIXELS,
        video_fps=fps,
        video_maxlen=lf.MAX_FRAMES,
        video_max_pixels=lf.MAX_PIXELS,
    )
    loaded = load_tokenizer(args)
    tokenizer, processor = loaded["tokenizer"], loaded["processor"]
    data_args = DataArguments(template="qwen2_vl", cutoff_len=lf.CUTOFF)
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    encoder = SupervisedDatasetProcessor(
        template=template, tokenizer=tokenizer, processor=processor, data_args=data_args
    )
    return template, processor, encoder


def record_family(family):
    """How LLaMA-Factory resizes each image and encodes each row."""
    template, processor, encoder = load(lf.FAMILIES[family][1])
    rows = []
    for images, videos, turns in ROWS:
        roles = ("user", "assistant") * (len(turns) // 2)
        messages = [dict(role=r, content=c) for r, c in zip(roles, turns)]
        images, videos = ([f"data/{name}" for name in names] for names in (images, videos))
        ids, labels = encoder._encode_data_example(
            prompt=messages[:-1],
            response=messages[-1:],
            system=None,
            tools=None,
            images=images,
            videos=videos,
            audios=[],
        )
        rows.append(dict(input_ids=ids, labels=labels))
    grids, pixels = {}, {}
    for name in sorted({name for images, _, _ in ROWS for name in images}):
        inputs = template.mm_plugin._get_mm_inputs([f"data/{name}"], [], [], processor)
        grids[name] = inputs["image_grid_thw"][0].tolist()
        pixels[name] = lf.pixel_levels(inputs["pixel_values"], processor.image_processor)
    save_file(pixels, OUT / f"levels_{family}.safetensors")
    return dict(rows=rows, grids=grids)


def write_data(folder):
    """The rows and the files that they show, in LLaMA-Factory's layout."""
    rows = []
    for images, videos, turns in ROWS:
        roles = ("human", "gpt") * (len(turns) // 2)
        messages = [{"from": r, "value": c} for r, c in zip(roles, turns)]
        rows.append(dict(conversations=messages, images=images, videos=videos))
    lf.write_json(rows, folder / "rows.json")
    columns = dict(images="images", videos="videos")
    info = dict(file_name="rows.json", formatting="sharegpt", columns=columns)
    lf.write_json({"pictures": info}, folder / "dataset_info.json")
    shutil.copy(lf.OUT / "data" / "b.mp4", folder)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    write_files(OUT / "data")
    save_file(read_files(OUT / "data"), OUT / "pixels.safetensors")
    write_data(OUT / "data")
    samples = {}
    for family, (name, _, _) in lf.FAMILIES.items():
        with tempfile.TemporaryDirectory() as work:
            lf.prepare(name, Path(work))
            shutil.copytree(OUT / "data", Path(work) / "data", dirs_exist_ok=True)
            os.chdir(work)
            samples[family] = record_family(family)
            os.chdir(lf.GOLDEN)
    (OUT / "samples.json").write_text(json.dumps(samples))


if __name__ == "__main__":
    main()
