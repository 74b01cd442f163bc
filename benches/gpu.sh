#!/usr/bin/env bash
# Builds for a GPU, checks that it computes what the CPU and transformers do, and measures it
# beside transformers + PEFT. `benches/gpu.sh --help` tells the options; PYTHON names the Python
# that has torch, transformers and peft.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
    echo "error: \`$python\` is missing" >&2
    echo "  help: install Python 3.9 or newer, or name one with PYTHON=" >&2
    exit 2
fi
exec "$python" benches/gpu.py "$@"
