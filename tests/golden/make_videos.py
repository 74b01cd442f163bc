#!/usr/bin/env python3
"""Makes the golden videos: small files that are awkward to decode, and what PyAV decodes from them.

    python make_videos.py [--out DIR]

`videos/frames.json` holds, per file, the SHA-256 of each frame's RGB bytes
(`to_ndarray(format="rgb24")`) in order of presentation. Needs av and numpy, as in requirements.txt;
another build of the encoders may write other files.
"""

import argparse
import hashlib
import itertools
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange

# name: codec, frames, (width, height), pixel format, encoder's options, what else
X264 = {"threads": "1", "crf": "30", "preset": "medium"}
FILES = {
    # Ten closed groups of pictures with B-frames that are references, and one of 120 frames.
    "closed_gops.mp4": ("libx264", 120, (96, 64), "yuv420p", {**X264, "x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-pyramid=normal:open-gop=0"}, {}),
    "one_gop.mp4": ("libx264", 120, (96, 64), "yuv420p", {**X264, "x264-params": "keyint=250:scenecut=0:bframes=3:b-pyramid=normal"}, {}),
    # B-frames that need the group of pictures before.
    "open_gops.mp4": ("libx264", 90, (96, 64), "yuv420p", {**X264, "x264-params": "keyint=15:min-keyint=15:scenecut=0:bframes=3:open-gop=1"}, {}),
    "open_gops.mkv": ("libx264", 90, (96, 64), "yuv420p", {**X264, "x264-params": "keyint=15:min-keyint=15:scenecut=0:bframes=3:open-gop=1"}, {}),
    # No picture can be decoded by itself after the first.
    "intra_refresh.mp4": ("libx264", 60, (96, 64), "yuv420p", {**X264, "x264-params": "keyint=20:intra-refresh=1:bframes=0"}, {}),
    "interlaced.mp4": ("libx264", 48, (96, 64), "yuv420p", {**X264, "x264-params": "keyint=12:tff=1:bframes=2"}, {}),
    "transport.ts": ("libx264", 60, (96, 64), "yuv420p", {**X264, "x264-params": "keyint=12:scenecut=0:bframes=2"}, {}),
    # Times of presentation that are not even.
    "variable_rate.mp4": ("libx264", 60, (96, 64), "yuv420p", {**X264, "x264-params": "keyint=12:scenecut=0:bframes=2"}, {"variable": True}),
    "anamorphic.mp4": ("libx264", 24, (96, 64), "yuv420p", {**X264}, {"sar": Fraction(4, 3)}),
    "hevc.mp4": ("libx265", 60, (96, 64), "yuv420p", {"x265-params": "keyint=15:min-keyint=15:scenecut=0:bframes=3:open-gop=1:log-level=none:pools=none:frame-threads=1", "crf": "30"}, {}),
    "vp9.webm": ("libvpx-vp9", 60, (96, 64), "yuv420p", {"crf": "40", "b": "0", "g": "15", "auto-alt-ref": "1", "lag-in-frames": "16", "threads": "1"}, {}),
    "av1.mp4": ("libsvtav1", 48, (96, 64), "yuv420p", {"crf": "45", "g": "15", "preset": "8", "svtav1-params": "lp=1"}, {}),
    "odd.webm": ("libvpx-vp9", 30, (97, 65), "yuv420p", {"crf": "40", "b": "0", "g": "10", "threads": "1"}, {}),
    "odd_444.mp4": ("libx264", 30, (97, 65), "yuv444p", {**X264, "x264-params": "keyint=10"}, {}),
    "mpeg4.avi": ("mpeg4", 60, (96, 64), "yuv420p", {"g": "12", "bf": "2", "b": "300000"}, {}),
    "mpeg2.mpg": ("mpeg2video", 60, (96, 64), "yuv420p", {"g": "12", "bf": "2", "b": "300000"}, {}),
    "motion_jpeg.avi": ("mjpeg", 20, (96, 64), "yuvj420p", {"qscale": "8"}, {}),
    # Colours: the full range without a matrix, and chroma of more than 8 bits that lies left.
    "full_range.webm": ("libvpx-vp9", 6, (96, 64), "yuv420p", {"crf": "40", "b": "0", "threads": "1"}, {"full_range": True}),
    "chroma_left.mp4": ("libx264", 6, (96, 64), "yuv422p10le", {**X264}, {}),
    # No duration, as a camera writes it into a pipe.
    "live.webm": ("libvpx-vp9", 24, (96, 64), "yuv420p", {"crf": "40", "b": "0", "g": "12", "threads": "1"}, {"live": True}),
    # Times of decoding stand for those of presentation.
    "misdated.mkv": ("libx264", 48, (96, 64), "yuv420p", {**X264, "x264-params": "keyint=12:scenecut=0:bframes=3:b-pyramid=normal"}, {"misdated": True}),
    # Pictures 7 and 16 are there for others to refer to, and are not shown.
    "hidden.webm": ("libvpx", 24, (96, 64), "yuv420p", {"crf": "40", "b": "100k", "g": "12", "threads": "1"}, {"hidden": (7, 16)}),
    # It begins amid a group of pictures.
    "late_key.mkv": ("libx265", 48, (96, 64), "yuv420p", {"x265-params": "keyint=15:min-keyint=15:scenecut=0:bframes=3:open-gop=1:log-level=none:pools=none:frame-threads=1", "crf": "30"}, {"first": 3}),
}


def picture(name, i, width, height):
    """A disc and a bar that move over noise, different in every frame."""
    rng = np.random.default_rng([sum(name.encode()), 7])
    y, x = np.mgrid[:height, :width]
    base = rng.integers(60, 120, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)
    out = base[:height, :width].copy()
    disc = (x - (10 + 3 * i) % width) ** 2 + (y - height // 2 - 9 * np.sin(i / 5)) ** 2 < 90
    out[disc] = (230, 40 + i, 30)
    out[:, (5 * i) % width] = (20, 200, 255 - i)
    return out.astype(np.uint8)


def edited(packets, extra, seen):
    """Packets as a file holds them that `extra` describes."""
    for packet in packets:
        i, stream = next(seen), packet.stream
        if extra.get("misdated"):
            packet.pts = packet.dts
        if i in extra.get("hidden", ()):
            data = bytearray(bytes(packet))
            data[0] &= ~0x10
            shown, packet = packet, av.Packet(bytes(data))
            packet.pts, packet.dts, packet.time_base = shown.pts, shown.dts, shown.time_base
            packet.stream = stream
        if i >= extra.get("first", 0):
            yield packet


def write(path, codec, count, size, pixels, options, extra):
    width, height = size
    live = {"live": "1"} if extra.get("live") else {}
    with av.open(str(path), "w", options={"fflags": "+bitexact", **live}) as container:
        stream = container.add_stream(codec, rate=24, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if sar := extra.get("sar"):
            stream.codec_context.sample_aspect_ratio = sar
        color = {}
        if extra.get("full_range"):
            stream.codec_context.color_range = ColorRange.JPEG
            color = {"dst_color_range": ColorRange.JPEG}
        time_base = Fraction(1, 1200) if extra.get("variable") else Fraction(1, 24)
        stream.codec_context.time_base = time_base
        at, seen = 0, itertools.count()
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture(path.name, i, width, height), format="rgb24")
            frame = frame.reformat(format=pixels, **color)
            frame.pts, frame.time_base = at, time_base
            at += (20, 50, 170)[i % 3] if extra.get("variable") else 1
            container.mux(edited(stream.encode(frame), extra, seen))
        container.mux(edited(stream.encode(), extra, seen))


def sound(path):
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("aac", rate=8000)
        samples = (np.sin(np.arange(8000) / 5) * 9000).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.rate, frame.pts = 8000, 0
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=8000)
        for piece in resampler.resample(frame):
            container.mux(stream.encode(piece))
        container.mux(stream.encode())


def decoded(path):
    with av.open(str(path)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    return {
        "height": frames[0].shape[0],
        "width": frames[0].shape[1],
        "sha256_rgb": [hashlib.sha256(f.tobytes()).hexdigest() for f in frames],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out = parser.parse_args().out / "videos"
    out.mkdir(parents=True, exist_ok=True)
    for name, spec in FILES.items():
        write(out / name, *spec)
    sound(out / "sound_only.mp4")
    frames = {name: decoded(out / name) for name in FILES}
    (out / "frames.json").write_text(json.dumps(frames, indent=1) + "\n")
    print(f"PyAV {av.__version__}: {len(frames)} videos")


if __name__ == "__main__":
    main()
