# `make demo` runs the main job on the built-in checkpoint (R, S and R+S, and compares them), `make test` the
# tests (those on VLM4D's real questions too, where VLM4D_QA names a folder with them), `make nano` trains the
# built-in checkpoint anew. All need Rust, and install first what else is missing: ffmpeg's libraries, which
# decode the videos, and clang, which binds them.

libraries := libavcodec libavdevice libavfilter libavformat libavutil libswresample libswscale
packages := pkg-config clang libclang-dev $(libraries:%=%-dev)
vlm4d_train := $(abspath $(or $(CARGO_TARGET_DIR),target))/release/vlm4d-train

# Of the demo: videos in each of its two sets, and what it trains on.
videos ?= 2000
experiments ?= real synthetic both

.PHONY: demo test nano build deps

demo: build
	test -d data/demo || $(vlm4d_train) data demo --out data/demo --real-videos $(videos) --synthetic-videos $(videos)
	$(vlm4d_train) $(experiments:%=recipes/quickstart/%.toml)

# From random weights; what data/nano is to hold is in runs/nano/export then.
nano: build
	test -d data/lessons || $(vlm4d_train) data lessons --out data/lessons
	test -d runs/nano/random || $(vlm4d_train) init data/nano --out runs/nano/random
	for part in words pairs pairs_again pretrain; do $(vlm4d_train) recipes/nano/$$part.toml || exit 1; done
	$(vlm4d_train) export runs/nano/pretrain --to runs/nano/export --dtype bf16 --force

test: deps
	cargo test --release --locked

build: deps
	cargo build --release --locked

# libclang has no pkg-config file, so the loader's cache is asked (ldconfig may lie outside PATH).
deps:
	@if pkg-config --exists $(libraries) && command -v clang >/dev/null \
	    && PATH="$$PATH:/sbin:/usr/sbin" ldconfig -p | grep -q 'libclang[-.]'; then exit 0; fi 2>/dev/null; \
	if ! command -v apt-get >/dev/null; then \
	    echo "error: pkg-config, clang, libclang or a library of ffmpeg ($(libraries)) is missing" >&2; \
	    echo "  help: install their development packages; here is no apt-get to do it" >&2; exit 1; \
	fi; \
	echo "installing what building needs: $(packages)"; \
	sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); set -ex; \
	$$sudo apt-get update -qq; \
	$$sudo env DEBIAN_FRONTEND=noninteractive \
	    apt-get install -qq -y --no-install-recommends $(packages)
