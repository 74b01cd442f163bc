#!/usr/bin/env python3
"""A contact sheet of a data set in VLM4D's layout: frames of its videos, with a question on each.

    pip install av pillow
    vlm4d-train data demo --out data/demo
    python docs/contact_sheet.py data/demo --out docs/demo.jpg

Videos are chosen so that wordings and answers repeat as little as possible; the right choice is
underlined.
"""

import argparse
import json
import re
import textwrap
from pathlib import Path

import av
from PIL import Image, ImageDraw, ImageFont

FRAME, FRAMES, GAP, TEXT = (144, 108), 4, 4, 52
INK, GOLD, PALE, PAPER = "#1f2328", "#116329", "#59636e", "#ffffff"
font = ImageFont.load_default


def questions(folder, subset):
    path = next(p for p in (folder / "QA", folder) if (p / f"{subset}_mc.json").is_file())
    return json.loads((path / f"{subset}_mc.json").read_text())


def varied(items, n):
    """`n` items on different videos; each next one repeats least of what is there already."""
    chosen, seen = [], {}

    def traits(item):
        answer = str(item["answer"])
        answer = "none" if answer.startswith(("no ", "there are no ")) else answer
        form = " ".join(item["question"].split()[:3])
        place = item["video"].rsplit("/", 2)[1]
        return [("answer", answer), ("form", form), ("both", form, answer), ("place", place)]

    items = list(items)
    while items and len(chosen) < n:
        best = min(items, key=lambda item: sum(seen.get(t, 0) for t in traits(item)))
        chosen.append(best)
        for trait in traits(best):
            seen[trait] = seen.get(trait, 0) + 1
        items = [item for item in items if item["video"] != best["video"]]
    return chosen


def frames(path):
    with av.open(str(path)) as container:
        images = [frame.to_image() for frame in container.decode(video=0)]
    at = [round(i * (len(images) - 1) / (FRAMES - 1)) for i in range(FRAMES)]
    return [images[i].resize(FRAME, Image.LANCZOS) for i in at]


def cell(folder, item):
    width = FRAMES * FRAME[0] + (FRAMES - 1) * GAP
    image = Image.new("RGB", (width, FRAME[1] + TEXT), PAPER)
    path = re.sub(r"^.*/resolve/main/", "", item["video"])
    for i, frame in enumerate(frames(folder / path)):
        image.paste(frame, (i * (FRAME[0] + GAP), 0))
    draw = ImageDraw.Draw(image)
    question = textwrap.shorten(item["question"], 80, placeholder=" …")
    draw.text((0, FRAME[1] + 5), question, INK, font(15))
    texts = [(f"{letter} {choice}", choice == item["answer"]) for letter, choice in
             item["choices"].items()]
    size = 13
    while sum(draw.textlength(text, font(size)) + 14 for text, _ in texts) > width:
        size -= 0.5
    x = 0
    for text, right in texts:
        draw.text((x, FRAME[1] + 27), text, GOLD if right else PALE, font(size))
        length = draw.textlength(text, font(size))
        if right:
            draw.line((x, FRAME[1] + 44, x + length, FRAME[1] + 44), GOLD, 2)
        x += length + 14
    return image


def sheet(folder, subsets, rows):
    cells = {
        subset: [cell(folder, item) for item in varied(questions(folder, subset), 2 * n)]
        for subset, n in zip(subsets, rows)
    }
    width, height = next(iter(cells.values()))[0].size
    title, margin = 34, 16
    total = sum(title + (len(of) + 1) // 2 * height for of in cells.values())
    image = Image.new("RGB", (2 * width + 3 * margin, total + margin), PAPER)
    draw, y = ImageDraw.Draw(image), margin // 2
    for subset, of in cells.items():
        draw.text((margin, y + 6), subset, INK, font(20))
        y += title
        for i, one in enumerate(of):
            image.paste(one, (margin + i % 2 * (width + margin), y + i // 2 * height))
        y += (len(of) + 1) // 2 * height
    return image


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder with QA/*_mc.json and the videos")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    parser.add_argument("--subsets", default="real,synthetic")
    parser.add_argument("--rows", default="5,2", help="rows of two videos for each subset")
    args = parser.parse_args()
    rows = [int(n) for n in args.rows.split(",")]
    image = sheet(args.data, args.subsets.split(","), rows)
    image.save(args.out, quality=70, optimize=True)
    print(f"{args.out}: {image.width}x{image.height}, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
