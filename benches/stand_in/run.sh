#!/usr/bin/env bash
# Runs a command with a stand-in for the NVIDIA driver, on a machine without a GPU: README.md tells what for.
#   benches/stand_in/run.sh COMMAND…
# PYTHON names the Python that has the wheels nvidia-cuda-{nvrtc,runtime,crt,cccl}, if there is no CUDA toolkit.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
if [ $# -eq 0 ] || ! command -v g++ >/dev/null || ! command -v "$python" >/dev/null; then
    echo "error: needs a command, g++ and \`$python\`" >&2
    echo "  help: benches/stand_in/run.sh COMMAND…; apt-get install g++ python3, or name a Python with PYTHON=" >&2
    exit 2
fi
out=${STAND_IN_FOLDER:-$here/../../target/stand_in}
mkdir -p "$out"
out=$(cd "$out" && pwd)

# CUDA_PATH and LD_LIBRARY_PATH for NVRTC and its headers, as benches/gpu.sh finds them.
found=$(cd "$here/.." && "$python" -c '
import pathlib, shlex, sys
import gpu_machine as machine
try:
    environment, _ = machine.toolkit(None, pathlib.Path(sys.argv[1]))
except machine.Missing as missing:
    sys.exit(str(missing))
print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment.items()))
' "$out")
eval "$found"

library=$out/libcuda.so.1
if [ -z "$(find "$library" -newer "$here/driver.cpp" 2>/dev/null)" ] ||
    [ -n "$(find "$here" -name '*.h' -newer "$library")" ]; then
    echo "stand-in: builds $library" >&2
    g++ -std=c++20 -O3 -march=native -Wall -fPIC -fvisibility=hidden -fno-gnu-unique -shared -I"$CUDA_PATH/include" "$here/driver.cpp" -o "$library.new"
    mv "$library.new" "$library"
    for name in libcuda.so libnvidia-ml.so.1 libcublas.so; do ln -sf libcuda.so.1 "$out/$name"; done
fi
[ -z "${STAND_IN_KEEP:-}" ] || mkdir -p "$STAND_IN_KEEP"
if [ "${STAND_IN_COUNT:-0}" != 0 ] && [ "${STAND_IN_COMPILE:-0}" = 0 ]; then
    # What is kept of nothing compiled must not meet what is.
    mkdir -p "$out/count"
    g++ -std=c++20 -O2 -Wall -fPIC -fvisibility=hidden -shared "$here/nvrtc.cpp" -o "$out/count/libnvrtc.so"
    for major in 12 13; do ln -sf libnvrtc.so "$out/count/libnvrtc.so.$major"; done
    LD_LIBRARY_PATH=$out/count${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export XDG_CACHE_HOME=$out/count/cache
fi
export LD_LIBRARY_PATH=$out${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
exec "$@"
