"""Loads exports with transformers and PEFT and compares logits with ours.

    python check_export.py CASE…

A CASE is a folder with `case.json` (paths of the base checkpoint and of the golden inputs, what is
to be expected), `logits.safetensors` (ours: `adapter`, `merged`), and the exports `new`, `old`
(adapters in either spelling of keys) and `merged`. Which adapter is loaded depends on how this
version of transformers names modules. Prints one line per case; ends 1 at the first thing that is
wrong, 77 where a package is missing.
"""

import json
import sys
import warnings
from pathlib import Path

try:
    import peft
    import torch
    import transformers
    from safetensors import safe_open
    from safetensors.torch import load_file
    from transformers import (
        AutoProcessor,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLForConditionalGeneration,
    )
except ImportError as error:
    print(error)
    sys.exit(77)

TOLERANCE = 2e-4
VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
SPELLING = "new" if VERSION >= (4, 52) else "old"
CLASS = {
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
}


def load(folder):
    """The checkpoint in float32, and what from_pretrained found missing or left over."""
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    dtype = "dtype" if VERSION >= (4, 56) else "torch_dtype"
    model, info = CLASS[model_type].from_pretrained(
        folder,
        attn_implementation="eager",
        output_loading_info=True,
        **{dtype: torch.float32},
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], f"{folder}: {kind} {list(info[kind])[:3]}"
    return model.eval()


def inputs(case, model):
    batch = load_file(case["inputs"])
    pixels = load_file(case["pixels"])
    ids = batch["input_ids"]
    given = dict(
        input_ids=ids,
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        pixel_values_videos=pixels["pixel_values"],
        video_grid_thw=pixels["grid_thw"].reshape(1, 3),
        use_cache=False,
    )
    if VERSION >= (5, 0):
        given["mm_token_type_ids"] = 2 * (ids == model.config.video_token_id).long()
    return given


@torch.no_grad()
def distance(case, model, want):
    got = model(**inputs(case, model)).logits[0]
    return float((got - want.reshape(got.shape)).abs().max())


def check_keys(base, folder):
    """PEFT finds every key of the file, and misses none of its own."""
    config = peft.PeftConfig.from_pretrained(folder)
    model = peft.get_peft_model(base, config)
    state = peft.utils.save_and_load.load_peft_weights(folder, device="cpu")
    result = peft.set_peft_model_state_dict(model, state)
    missing = [key for key in result.missing_keys if "lora_" in key]
    assert not missing, f"{folder}: missing {missing[:3]}"
    assert not result.unexpected_keys, f"{folder}: unexpected {result.unexpected_keys[:3]}"
    adapters = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert len(adapters) == len(state), f"{folder}: {len(state)} keys for {len(adapters)} tensors"
    model.unload()
    return len(state)


def dtypes(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found.update({key: file.get_slice(key).get_dtype() for key in file.keys()})
    return found


def check(folder):
    case = json.loads((folder / "case.json").read_text())
    logits = load_file(folder / "logits.safetensors")
    base = Path(case["base"])
    n = check_keys(load(base), folder / SPELLING)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(load(base), folder / SPELLING).eval()
    told = [str(w.message) for w in seen if "adapter keys" in str(w.message)]
    assert not told, f"{folder}: {told}"
    apart = distance(case, model, logits["adapter"])
    assert apart < TOLERANCE, f"{folder}: logits with the adapter differ by {apart:.1e}"
    plain = distance(case, load(base), logits["adapter"])
    assert plain > 10 * TOLERANCE, f"{folder}: the adapter changes nothing ({plain:.1e})"

    whole = folder / "merged"
    assert dtypes(whole) == dtypes(base), f"{whole}: other names or types than {base}"
    merged = load(whole)
    apart_merged = distance(case, merged, logits["merged"])
    assert apart_merged < TOLERANCE, f"{folder}: merged logits differ by {apart_merged:.1e}"
    rounding = distance(case, merged, logits["adapter"])
    if set(dtypes(base).values()) == {"F32"}:
        assert rounding < TOLERANCE, f"{folder}: merging changes logits by {rounding:.1e}"
    ours, theirs = (AutoProcessor.from_pretrained(path) for path in (whole, base))
    assert ours.chat_template == theirs.chat_template
    assert ours.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()
    print(
        f"{folder.name}: {n} {SPELLING} keys, adapter {apart:.1e}, merged {apart_merged:.1e}, "
        f"merged against unmerged {rounding:.1e}"
    )


def main():
    transformers.logging.set_verbosity_error()
    print(f"transformers {transformers.__version__}, peft {peft.__version__}")
    for folder in sys.argv[1:]:
        check(Path(folder))


main()
