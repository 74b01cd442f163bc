"""Decodes with PyAV for benches/decode.rs, as LLaMA-Factory reads a video: every frame in turn, those
at the wanted indices converted.

A line `INDEX,INDEX,…<tab>FILE` comes in; seconds and the SHA-256 of the RGB bytes go out.
"""

import hashlib
import sys
import time

import av

for line in sys.stdin:
    indices, path = line.rstrip("\n").split("\t")
    wanted = {int(i) for i in indices.split(",")}
    last = max(wanted)
    start = time.perf_counter()
    frames = []
    with av.open(path) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
            if i == last:
                break
    seconds = time.perf_counter() - start
    rgb = hashlib.sha256()
    for frame in frames:
        rgb.update(frame.tobytes())
    print(seconds, rgb.hexdigest(), flush=True)
