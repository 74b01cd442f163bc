#!/usr/bin/env python3
"""Makes the golden files of the tests from Hugging Face transformers and PEFT, on a CPU, offline.

    python make.py [--out DIR] [--only PART ...]

Parts, in order: checkpoints, processor, tables, models, answers, shapes, manifest. Two runs with the
versions in requirements.txt write the same bytes; README.md says how to set them up and what each
file holds.

Everything is seeded from names, weights are exact in bfloat16, and compute is float32 with eager
attention. Positions follow the rule the checkpoints were trained with (transformers 4.45 to 4.51):
text after a vision block continues at the largest position + 1, and Qwen2.5-VL's temporal index is
the integer part of `t * second_per_grid_t * tokens_per_second`. Newer transformers differ, so the
positions are computed here (`rope_index`) and handed to the model.

Shape letters: B batch, L tokens, H hidden, V vocabulary, T frames, N patches.
"""

import argparse
import copy
import hashlib
import json
import math
import os
import re
import shutil
import sys
import zlib
from pathlib import Path
from unittest.mock import patch

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    PYTHONHASHSEED="0",
    TOKENIZERS_PARALLELISM="false",
)

import bitsandbytes as bnb
import numpy as np
import peft
import tokenizers
import torch
import torchvision
import torchvision.transforms.v2.functional as tv
import transformers
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    BitsAndBytesConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Trainer,
    get_cosine_schedule_with_warmup,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.video_utils import VideoMetadata
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

HERE = Path(__file__).resolve().parent
PATCH, MERGE, IGNORE_INDEX = 14, 2, -100
MODEL_CLASS = {
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
}

# What a test of each stage may accept: absolute unless it says otherwise. Measured: logits differ by
# 2e-5 between AVX2 and AVX-512, by 2.5e-5 between eager and fused attention, by up to 7e-5 from
# float64 (summary.json). The bounds on loss, gradients and adapter are chosen, not measured.
TOLERANCES = {
    "token ids, labels, positions, grids, windows, sampled frames": 0,
    "resized pixels, in levels of 255": 1,
    "pixel_values from equal resized pixels": 2e-6,
    "vision blocks, hidden states": 1e-4,
    "vision features, logits, merged logits": 2e-4,
    "loss, gradient norm, relative": 1e-5,
    "gradients, relative to the tensor's largest": 1e-4,
    "adapter after five AdamW steps": 1e-5,
    "greedy ids (smallest top-2 margin 2.8e-3)": 0,
}


# ------------------------------------------------------------------------------ writing files


def rng(name):
    """A generator of its own for every name, so that adding a golden changes no other."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def write_json(value, path):
    """Indented, UTF-8, with a newline at the end; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tensors(tensors, path, metadata=None):
    """One metadata key at most: safetensors writes several in random order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    save_file(tensors, path, metadata=metadata or {"format": "pt"})


def fresh(path):
    """Empties a folder that a part is about to write."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


# ------------------------------------------------------------------------------ tokenizer

SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> "
    "<|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> "
    "<|image_pad|> <|video_pad|>"
).split()
# Qwen2.5-VL adds these, marked `"special": false` on the hub.
EXTRA_2_5 = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> "
    "<|repo_name|> <|file_sep|>"
).split()
BPE_VOCAB, MODEL_VOCAB = 640, 704
# The families' own split pattern and chat template: they are data of the checkpoints.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SUBJECTS = (
    "the person|a man|a woman|the child|a dog|the cat|a red car|the white truck|a cyclist|"
    "the camera|the ball|the player|a bird|the cook|a robot|the train"
).split("|")
ACTIONS = (
    "walking|running|jumping|sitting down|standing up|turning left|turning right|opening a door|"
    "picking up a cup|throwing the ball|crossing the street|waving|cutting vegetables|"
    "playing the guitar|driving away|looking at the camera|falling|dancing"
).split("|")
PLACES = (
    "in the park|on the street|in the kitchen|near the window|at the station|on the table|"
    "behind the building|in front of the house|on the left side|on the right side of the frame"
).split("|")
OBJECTS = ("cup|bottle|phone|book|chair|bag|knife|bicycle|umbrella|traffic light|sign|hat").split(
    "|"
)
COLOURS = "red green blue yellow black white orange purple".split()


def corpus():
    """The text the tiny tokenizer learns its merges from."""
    lines = [
        "You are a helpful assistant.",
        "system",
        "user",
        "assistant",
        "Describe this video.",
        "Describe the image.",
        "What is happening in this video?",
        "How many people are there?",
        "Answer with the option's letter from the given choices directly.",
        "Select the best answer to the following multiple-choice question based on the video.",
        "Respond with only the letter (A, B, C, or D) of the correct option.",
    ]
    for i, who in enumerate(SUBJECTS):
        for j, act in enumerate(ACTIONS):
            where = PLACES[(i + j) % len(PLACES)]
            what = OBJECTS[(i * 3 + j) % len(OBJECTS)]
            colour = COLOURS[(i + 2 * j) % len(COLOURS)]
            act_b, act_c = ACTIONS[(j + 5) % len(ACTIONS)], ACTIONS[(j + 9) % len(ACTIONS)]
            lines += [
                f"What is {who} doing {where}?",
                f"{who.capitalize()} is {act} {where}.",
                f"Is {who} {act}? Yes, {who} is {act}.",
                f"What color is the {what} {where}? The {what} is {colour}.",
                f"How many {what}s are visible after {j + i} seconds? {j % 7}.",
                f"Why does {who} start {act}? I don't know, it's not shown; they're {where}.",
                f"A. {act}\nB. {act_b}\nC. {act_c}\nD. None of the above\n",
                f"When did {who} stop? At {i}:{j:02d}, we'll see that he's {act} and she'd left.",
            ]
    return lines


def train_bpe():
    """Byte-level BPE over `corpus`: (vocabulary by id, merges as "a b")."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated", invert=False)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_VOCAB, special_tokens=[], show_progress=False, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    assert len(model["vocab"]) == BPE_VOCAB
    vocab = dict(sorted(model["vocab"].items(), key=lambda kv: kv[1]))
    return vocab, [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]


def tokenizer_json(vocab, merges, added):
    """tokenizer.json in the layout of the families' hub files."""
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=False, use_regex=False)
    split = dict(type="Split", pattern={"Regex": SPLIT_PATTERN}, behavior="Isolated", invert=False)
    model = dict(
        type="BPE",
        dropout=None,
        unk_token=None,
        continuing_subword_prefix="",
        end_of_word_suffix="",
        fuse_unk=False,
        byte_fallback=False,
        vocab=vocab,
        merges=merges,
    )
    return dict(
        version="1.0",
        truncation=None,
        padding=None,
        added_tokens=added,
        normalizer={"type": "NFC"},
        pre_tokenizer=dict(type="Sequence", pretokenizers=[split, byte_level]),
        post_processor=byte_level,
        decoder=byte_level,
        model=model,
    )


def tokenizer_config(added, extra):
    """tokenizer_config.json; only Qwen2-VL's hub file pads on the left."""
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    config = dict(
        add_prefix_space=False,
        added_tokens_decoder={str(a["id"]): {k: a[k] for k in flags} for a in added},
        additional_special_tokens=SPECIAL[1:],
        bos_token=None,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        eos_token="<|im_end|>",
        errors="replace",
        model_max_length=32768,
        pad_token="<|endoftext|>",
        split_special_tokens=False,
        tokenizer_class="Qwen2Tokenizer",
        unk_token=None,
    )
    if not extra:
        config["padding_side"] = "left"
    return dict(sorted(config.items()))


def write_tokenizer(folder, extra):
    """Writes every tokenizer and chat template file; returns the special tokens' ids."""
    vocab, merges = train_bpe()
    tokens = [(t, True) for t in SPECIAL] + [(t, False) for t in extra]
    added = [
        dict(
            id=BPE_VOCAB + i,
            content=token,
            single_word=False,
            lstrip=False,
            rstrip=False,
            normalized=False,
            special=special,
        )
        for i, (token, special) in enumerate(tokens)
    ]
    write_json(tokenizer_json(vocab, merges, added), folder / "tokenizer.json")
    write_json(vocab, folder / "vocab.json")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    write_json(tokenizer_config(added, extra), folder / "tokenizer_config.json")
    write_json(dict(chat_template=CHAT_TEMPLATE), folder / "chat_template.json")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return {a["content"]: a["id"] for a in added}


TOKENIZER_STRINGS = [
    "", " ", "  ", "\n", "\n\n", " \n", "\t", "Hello, world!", "What's happening?",
    "WE'LL SEE, They'RE", "it's 12345 o'clock", "a  b   c    d", "trailing   ", "   leading",
    "line one\nline two\r\nline three\n\n\n", "A. red\nB. blue\n", "naïve café",
    "cafe\u0301 (decomposed)", "Ａ full-width", "ﬁ ligature", "日本語のテキスト", "中文，标点。",
    "🙂 emoji 👩‍👩‍👧", "x=1+2;//!!??\n", "<|im_start|>user\nhi<|im_end|>\n",
    "<|vision_start|><|video_pad|><|video_pad|><|vision_end|>text", "<|im_start", "a<|im_end|>b",
    "½ ² Ⅷ ٣", "\u00a0nbsp\u2003em", "don't DON'T 's", "e\u0301\u0323", "\u1100\u1161\u11a8",
    "under_score", "http://a.b/c?d=e&f=1.5e-3", "tool <tool_call> x </tool_call>", "\u200bzero",
    "mixed中English日本",
]  # fmt: skip


def tokenizer_cases(checkpoint):
    """Ids and decoded text of strings that tokenizers get wrong."""
    tokenizer = AutoProcessor.from_pretrained(checkpoint).tokenizer
    raw = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    rows = []
    for text in TOKENIZER_STRINGS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert raw.encode(text, add_special_tokens=False).ids == ids, text
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        decoded_skip = tokenizer.decode(ids, skip_special_tokens=True)
        rows.append(dict(text=text, ids=ids, decoded=decoded, decoded_skip=decoded_skip))
    return rows


# ------------------------------------------------------------------------------ checkpoints


def flat_config(ids, **own):
    """config.json as the hub's Qwen2-VL and Qwen2.5-VL checkpoints spell it."""
    two_5 = own["model_type"] == "qwen2_5_vl"
    arch = MODEL_CLASS[own["model_type"]].__name__
    return dict(
        architectures=[arch],
        attention_dropout=0.0,
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|im_end|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        vision_token_id=ids["<|vision_pad|>"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        hidden_act="silu",
        hidden_size=own["hidden_size"],
        initializer_range=0.02,
        intermediate_size=own["intermediate_size"],
        max_position_embeddings=128000 if two_5 else 32768,
        max_window_layers=own["num_hidden_layers"],
        model_type=own["model_type"],
        num_attention_heads=own["num_attention_heads"],
        num_hidden_layers=own["num_hidden_layers"],
        num_key_value_heads=own["num_key_value_heads"],
        rms_norm_eps=1e-06,
        rope_theta=1000000.0,
        sliding_window=32768,
        tie_word_embeddings=own["tie_word_embeddings"],
        torch_dtype=own["torch_dtype"],
        transformers_version="4.41.2",
        use_cache=True,
        use_sliding_window=False,
        vision_config=own["vision_config"],
        rope_scaling=dict(type="mrope", mrope_section=own["mrope_section"]),
        vocab_size=own["vocab_size"],
    )


def vision_2(depth, embed_dim, num_heads, hidden_size):
    """vision_config of Qwen2-VL; `hidden_size` is the language model's."""
    return dict(
        depth=depth,
        embed_dim=embed_dim,
        mlp_ratio=4,
        num_heads=num_heads,
        in_chans=3,
        hidden_size=hidden_size,
        patch_size=PATCH,
        spatial_merge_size=MERGE,
        spatial_patch_size=PATCH,
        temporal_patch_size=2,
    )


def vision_2_5(depth, hidden_size, intermediate_size, num_heads, out_hidden_size, window, full):
    """vision_config of Qwen2.5-VL: `window` in pixels, `full` the blocks without windows."""
    return dict(
        depth=depth,
        hidden_act="silu",
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_heads=num_heads,
        in_chans=3,
        out_hidden_size=out_hidden_size,
        patch_size=PATCH,
        spatial_merge_size=MERGE,
        spatial_patch_size=PATCH,
        window_size=window,
        fullatt_block_indexes=full,
        tokens_per_second=2,
        temporal_patch_size=2,
    )


MODELS = {
    "tiny-qwen2-vl": dict(
        shards=1,
        extra=[],
        config=dict(
            model_type="qwen2_vl",
            hidden_size=64,
            intermediate_size=144,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            mrope_section=[2, 3, 3],
            tie_word_embeddings=False,
            torch_dtype="float32",
            vocab_size=MODEL_VOCAB,
            vision_config=vision_2(3, 32, 2, 64),
        ),
    ),
    "tiny-qwen2.5-vl": dict(
        shards=3,
        extra=EXTRA_2_5,
        config=dict(
            model_type="qwen2_5_vl",
            hidden_size=96,
            intermediate_size=200,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            mrope_section=[2, 5, 5],
            tie_word_embeddings=True,
            torch_dtype="bfloat16",
            vocab_size=MODEL_VOCAB,
            vision_config=vision_2_5(4, 48, 100, 4, 96, 56, [1, 3]),
        ),
    ),
}


class Weights(dict):
    """Random weights under hub names, filled layer by layer; gains keep activations alive."""

    def __init__(self, seed):
        super().__init__()
        self.seed = seed

    def noise(self, key, shape, seed_key=None):
        return rng(f"{self.seed}/{seed_key or key}").standard_normal(shape)

    def linear(self, key, out_dim, in_dim, bias, gain=1.0):
        weight = self.noise(key + ".weight", (out_dim, in_dim))
        self[key + ".weight"] = weight * (gain / math.sqrt(in_dim))
        if bias:
            self[key + ".bias"] = self.noise(key + ".bias", out_dim) * 0.1

    def norm(self, key, dim, bias):
        self[key + ".weight"] = 1 + 0.15 * self.noise(key + ".weight", dim)
        if bias:
            self[key + ".bias"] = 0.1 * self.noise(key + ".bias", dim)


def vision_weights(w, config):
    """The vision tower: LayerNorm and fc1/fc2, or RMSNorm and gate/up/down in Qwen2.5-VL."""
    v = config["vision_config"]
    two_5 = config["model_type"] == "qwen2_5_vl"
    dim = v["hidden_size"] if two_5 else v["embed_dim"]
    key = "visual.patch_embed.proj.weight"
    w[key] = w.noise(key, (dim, 3, 2, PATCH, PATCH)) / math.sqrt(3 * 2 * PATCH * PATCH)
    for i in range(v["depth"]):
        block = f"visual.blocks.{i}."
        w.norm(block + "norm1", dim, not two_5)
        w.norm(block + "norm2", dim, not two_5)
        w.linear(block + "attn.qkv", 3 * dim, dim, True, 1.6)
        w.linear(block + "attn.proj", dim, dim, True)
        if two_5:
            w.linear(block + "mlp.gate_proj", v["intermediate_size"], dim, True)
            w.linear(block + "mlp.up_proj", v["intermediate_size"], dim, True)
            w.linear(block + "mlp.down_proj", dim, v["intermediate_size"], True)
        else:
            w.linear(block + "mlp.fc1", 4 * dim, dim, True)
            w.linear(block + "mlp.fc2", dim, 4 * dim, True)
    w.norm("visual.merger.ln_q", dim, not two_5)
    w.linear("visual.merger.mlp.0", 4 * dim, 4 * dim, True)
    w.linear("visual.merger.mlp.2", config["hidden_size"], 4 * dim, True)


def language_weights(w, config):
    """With tied embeddings small embeddings and large residuals keep greedy decoding lively."""
    h, ff, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = h // config["num_attention_heads"] * config["num_key_value_heads"]
    tied = config["tie_word_embeddings"]
    out_gain = 2.0 if tied else 1.0
    embed = w.noise("model.embed_tokens.weight", (vocab, h), seed_key="embed")
    w["model.embed_tokens.weight"] = embed * (0.2 if tied else 0.4)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        w.norm(layer + "input_layernorm", h, False)
        w.norm(layer + "post_attention_layernorm", h, False)
        w.linear(layer + "self_attn.q_proj", h, h, True, 1.6)
        w.linear(layer + "self_attn.k_proj", kv, h, True, 1.6)
        w.linear(layer + "self_attn.v_proj", kv, h, True)
        w.linear(layer + "self_attn.o_proj", h, h, False, out_gain)
        w.linear(layer + "mlp.gate_proj", ff, h, False)
        w.linear(layer + "mlp.up_proj", ff, h, False)
        w.linear(layer + "mlp.down_proj", h, ff, False, out_gain)
    w.norm("model.norm", h, False)
    if not tied:
        w.linear("lm_head", vocab, h, False, 2.0)


def make_weights(seed, config):
    """Hub names to tensors in the checkpoint's dtype, exact in bfloat16."""
    w = Weights(seed)
    vision_weights(w, config)
    language_weights(w, config)
    dtype = getattr(torch, config["torch_dtype"])
    as_bf16 = lambda x: torch.from_numpy(np.ascontiguousarray(x, np.float32)).to(torch.bfloat16)
    return {k: as_bf16(x).float().to(dtype) for k, x in w.items()}


def write_shards(weights, folder, n):
    """Cuts the weights into `n` files of about equal bytes, in order, with the hub's index."""
    size = lambda x: x.numel() * x.element_size()
    total, done, shards = sum(map(size, weights.values())), 0, [{}]
    for key, x in weights.items():
        if done > total * len(shards) / n and len(shards) < n:
            shards.append({})
        shards[-1][key] = x
        done += size(x)
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    index = dict(metadata=dict(total_size=total), weight_map=dict(sorted(weight_map.items())))
    write_json(index, folder / "model.safetensors.index.json")


def generation_config(ids, two_5):
    """generation_config.json with the values of the families' hub files."""
    config = dict(
        bos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        do_sample=True,
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        repetition_penalty=1.05 if two_5 else 1.0,
        temperature=0.000001 if two_5 else 0.01,
    )
    if not two_5:
        config.update(top_p=0.001, top_k=1)
    return dict(config, transformers_version="4.49.0" if two_5 else "4.37.0")


def preprocessor_config(two_5):
    """preprocessor_config.json with the values of the families' hub files."""
    return dict(
        min_pixels=3136,
        max_pixels=12845056,
        patch_size=PATCH,
        temporal_patch_size=2,
        merge_size=MERGE,
        image_mean=[0.48145466, 0.4578275, 0.40821073],
        image_std=[0.26862954, 0.26130258, 0.27577711],
        image_processor_type="Qwen2VLImageProcessor",
        processor_class="Qwen2_5_VLProcessor" if two_5 else "Qwen2VLProcessor",
    )


def write_checkpoint(folder, name):
    """A whole checkpoint in the hub's layout: one file for Qwen2-VL, three shards for 2.5."""
    fresh(folder)
    spec = MODELS[name]
    ids = write_tokenizer(folder, spec["extra"])
    config = flat_config(ids, **spec["config"])
    two_5 = config["model_type"] == "qwen2_5_vl"
    write_json(config, folder / "config.json")
    write_json(generation_config(ids, two_5), folder / "generation_config.json")
    write_json(preprocessor_config(two_5), folder / "preprocessor_config.json")
    weights = make_weights(name, config)
    if spec["shards"] == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        write_shards(weights, folder, spec["shards"])


def load_model(folder, dtype=torch.float32, attention="eager", **quantized):
    """Loads a checkpoint in `dtype`; a missing, extra or misshapen tensor stops the run."""
    config = json.loads((folder / "config.json").read_text())
    model, info = MODEL_CLASS[config["model_type"]].from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, output_loading_info=True, **quantized
    )
    problems = {k: v for k, v in info.items() if v and k != "conversion_errors"}
    assert not problems and not info.get("conversion_errors"), info
    return model.eval()


# ------------------------------------------------------------------------------ processor

DEFAULT_SIZE = dict(shortest_edge=3136, longest_edge=12845056)
MEDIA = {  # name: (kind, frames, height, width, size override)
    "vid_exact": ("video", 4, 56, 84, None),  # no resize
    "vid_odd": ("video", 5, 50, 70, None),  # odd frames; 70 / 28 = 2.5 rounds to even: 2
    "vid_up": ("video", 2, 20, 30, None),  # below min_pixels
    "vid_down": ("video", 3, 150, 210, dict(shortest_edge=3136, longest_edge=9408)),
    "vid_long": ("video", 12, 56, 56, None),  # more frame pairs than max(h, w) / 2
    "vid_win": ("video", 2, 84, 140, None),  # partial windows in Qwen2.5-VL
    "vid_one": ("video", 1, 60, 52, None),  # a single frame
    "img_a": ("image", 1, 100, 75, None),
    "img_b": ("image", 1, 40, 133, None),
}


def synth_video(name, frames, height, width):
    """u8 [T, height, width, 3]: a gradient, a moving disc, a hard-edged bar and noise."""
    g = rng("video/" + name)
    yy, xx = np.mgrid[0:height, 0:width].astype(np.float64)
    out = np.zeros((frames, height, width, 3))
    colours = g.uniform(0, 255, (4, 3))
    noise = g.integers(-18, 19, (frames, height, width, 3))
    for i in range(frames):
        image = (xx / width)[..., None] * colours[0] + (yy / height)[..., None] * colours[1]
        cx = width * (0.2 + 0.6 * i / max(frames - 1, 1))
        cy = height * (0.5 + 0.25 * ((i * 37) % 11 - 5) / 5)
        disc = (xx - cx) ** 2 + (yy - cy) ** 2 < (0.22 * min(height, width)) ** 2
        image = np.where(disc[..., None], colours[2], image)
        stripes = ((xx + 5 * i).astype(np.int64) // 7) % 5 == 0
        bar = stripes[..., None] & (yy > 0.7 * height)[..., None]
        out[i] = np.where(bar, colours[3], image) + noise[i]
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def to_tchw(frames):
    """u8 frames [T, height, width, 3] → tensor [T, 3, height, width]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()


def process(processor, kind, frames, size):
    """What the installed processor makes of the frames: (pixel_values, grid_thw)."""
    options = dict(size=dict(size), return_tensors="pt")
    if kind == "video":
        video = processor.video_processor
        out = video(videos=[to_tchw(frames)], do_sample_frames=False, **options)
        return out["pixel_values_videos"].float(), out["video_grid_thw"]
    out = processor.image_processor(images=[Image.fromarray(frames[0])], **options)
    return out["pixel_values"].float(), out["image_grid_thw"]


def patchify(resized, processor):
    """Own route from resized pixels to `pixel_values`: proves layout and normalisation."""
    x = resized if len(resized) % 2 == 0 else torch.cat([resized, resized[-1:]])
    mean = torch.tensor(processor.image_processor.image_mean) * 255.0
    std = torch.tensor(processor.image_processor.image_std) * 255.0
    x = (x.float() - mean[None, :, None, None]) / std[None, :, None, None]
    t, gh, gw = x.shape[0] // 2, x.shape[2] // PATCH, x.shape[3] // PATCH
    x = x.reshape(t, 2, 3, gh // MERGE, MERGE, PATCH, gw // MERGE, MERGE, PATCH)
    return x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * gh * gw, -1)


def make_media(processor):
    """Every medium, processed: name → kind, frames, resized, pixel_values, grid_thw, size.

    Both families share processor class and settings, so one set serves both.
    """
    media = {}
    for name, (kind, t, h, w, override) in MEDIA.items():
        frames, size = synth_video(name, t, h, w), override or DEFAULT_SIZE
        pixel_values, grid = process(processor, kind, frames, size)
        side = [int(grid[0, 1]) * PATCH, int(grid[0, 2]) * PATCH]
        bicubic = tv.InterpolationMode.BICUBIC
        resized = tv.resize(to_tchw(frames), side, interpolation=bicubic, antialias=True)
        assert (patchify(resized, processor) - pixel_values).abs().max() < 2e-6, name
        media[name] = dict(
            kind=kind,
            frames=frames,
            resized=resized,
            pixel_values=pixel_values,
            grid=grid,
            size=size,
            default_size=override is None,
        )
    return media


def write_processor(out, media):
    """processor/NAME.safetensors and index.json."""
    fresh(out)
    index = {}
    for name, m in media.items():
        tensors = dict(
            frames_u8_thwc=torch.from_numpy(m["frames"]),
            resized_u8_tchw=m["resized"],
            pixel_values=m["pixel_values"],
            grid_thw=m["grid"],
        )
        write_tensors(tensors, out / f"{name}.safetensors")
        t, h, w, _ = m["frames"].shape
        index[name] = dict(
            kind=m["kind"],
            frames=t,
            height=h,
            width=w,
            min_pixels=m["size"]["shortest_edge"],
            max_pixels=m["size"]["longest_edge"],
            resized=list(m["resized"].shape[2:]),
            grid_thw=m["grid"][0].tolist(),
            n_llm_tokens=int(m["grid"].prod()) // MERGE**2,
        )
    write_json(index, out / "index.json")


# ------------------------------------------------------------------------------ tables

RESIZE_SIDES = [
    (1, 1), (10, 10), (14, 42), (28, 28), (42, 42), (56, 56), (70, 70), (98, 70), (100, 75),
    (126, 154), (1, 200), (20, 30), (240, 320), (360, 640), (480, 854), (720, 1280),
    (1080, 1920), (1920, 1080), (2160, 3840), (333, 777), (5000, 30), (27, 5000),
]  # fmt: skip
RESIZE_LIMITS = [
    (3136, 12845056),
    (100352, 602112),
    (3136, 50176),
    (256 * 28 * 28, 1280 * 28 * 28),
]
SAMPLING = [  # total frames, the video's frames per second, wanted frames per second
    (1, 30, 2), (2, 30, 2), (3, 25, 2), (5, 10, 2), (7, 8, 2), (10, 5, 2), (16, 8, 2), (30, 30, 2),
    (31, 29.97, 2), (45, 30, 1), (60, 23.976, 2), (75, 25, 2), (90, 30, 4), (100, 24, 2),
    (250, 25, 1), (301, 29.97, 2), (1799, 59.94, 2), (3000, 30, 2), (30000, 30, 2),
]  # fmt: skip


def resize_table(resize):
    """[height, width] after `resize`, or its error, for every side and limit."""
    rows = []
    for h, w in RESIZE_SIDES:
        for low, high in RESIZE_LIMITS:
            try:
                result = list(resize(h, w, 28, low, high))
            except (ValueError, AssertionError) as error:
                result = str(error)
            row = dict(h=h, w=w, factor=28, min_pixels=low, max_pixels=high, out=result)
            rows.append(row)
    return rows


def sample_qwen_vl_utils(total, video_fps, fps):
    """qwen-vl-utils: indices and effective frames per second, or its error."""
    from qwen_vl_utils.vision_process import smart_nframes

    try:
        n = smart_nframes(dict(fps=fps), total, video_fps)
    except ValueError as error:
        return dict(qwen_vl_utils=str(error))
    return dict(
        qwen_vl_utils=torch.linspace(0, total - 1, n).round().long().tolist(),
        qwen_vl_utils_sample_fps=n / max(total, 1e-6) * video_fps,
    )


def sample_hf(total, video_fps, fps):
    """The HF video processor: indices, or its error."""
    meta = VideoMetadata(total_num_frames=total, fps=video_fps)
    try:
        return Qwen2VLVideoProcessor().sample_frames(meta, fps=fps).tolist()
    except (ValueError, ZeroDivisionError) as error:
        return repr(error)


def sample_llamafactory(total, video_fps, fps, maxlen=128):
    """LLaMA-Factory's rule; llamafactory/lf_samples.json holds what the tool itself chose."""
    n = min(total, maxlen, max(1, math.floor(total / video_fps * fps)))
    return np.linspace(0, total - 1, n).astype(np.int32).tolist()


def sampling_table():
    """Frame indices by three rules for every row of `SAMPLING`."""
    rows = []
    for total, video_fps, fps in SAMPLING:
        row = dict(total_frames=total, video_fps=video_fps, fps=fps)
        row.update(sample_qwen_vl_utils(total, video_fps, fps))
        row["hf"] = sample_hf(total, video_fps, fps)
        row["llamafactory_maxlen128"] = sample_llamafactory(total, video_fps, fps)
        rows.append(row)
    note = (
        "frame index selection. hf: Qwen2VLVideoProcessor.sample_frames (arange(0,N,N/n).int()); "
        "qwen_vl_utils: smart_nframes + linspace(0,N-1,n).round(); llamafactory: "
        "np.linspace(0,N-1,n).astype(int32), n=min(N,maxlen,max(1,floor(duration*fps)))"
    )
    return dict(note=note, rows=rows)


def write_tables(out):
    """tables/*.json: smart_resize of two libraries, frame sampling of three."""
    from qwen_vl_utils.vision_process import smart_resize as utils_resize

    fresh(out)
    write_json(resize_table(smart_resize), out / "smart_resize_hf.json")
    write_json(resize_table(utils_resize), out / "smart_resize_qwen_vl_utils.json")
    write_json(sampling_table(), out / "frame_sampling.json")


# ------------------------------------------------------------------------------ chats


def text(value):
    return dict(type="text", text=value)


def video(name):
    return dict(type="video", video=name)


def image(name):
    return dict(type="image", image=name)


def user(*content):
    return dict(role="user", content=list(content))


def assistant(answer):
    return dict(role="assistant", content=[text(answer)])


SAMPLES = {
    "text": [
        user(text("How many people are there? Answer briefly.")),
        assistant("There are 3 people in the park."),
    ],
    "image": [
        user(image("img_a"), text("Describe the image.")),
        assistant("A red car is near the window."),
    ],
    "video": [
        user(video("vid_exact"), text("What is happening in this video?")),
        assistant("The dog is running on the street, it's fast."),
    ],
    "video_odd": [
        user(video("vid_odd"), text("Is the child jumping?")),
        assistant("No, the child isn't jumping."),
    ],
    "video_down": [
        user(
            text("Watch this: "),
            video("vid_down"),
            text("\nWhat color is the umbrella?\nA. red\nB. blue"),
        ),
        assistant("B"),
    ],
    "video_win": [
        user(video("vid_win"), text("Where is the camera?")),
        assistant("On the right side of the frame."),
    ],
    "video_long": [
        user(video("vid_long"), text("When did the player stop?")),
        assistant("At 0:05, near the station."),
    ],
    "mixed": [
        dict(role="system", content="Answer in one sentence."),
        user(image("img_b"), video("vid_up"), text("Compare the picture and the video.")),
        assistant("Both show a bicycle."),
        user(text("And this one?"), video("vid_one")),
        assistant("It shows a knife on the table."),
    ],
}
PADDED = ["video_odd", "video_down", "text"]
FORWARD = {
    "text": ["text"],
    "image": ["image"],
    "video": ["video"],
    "video_win": ["video_win"],
    "video_long": ["video_long"],
    "mixed": ["mixed"],
    "batch": PADDED,
}
GENERATE = {
    "text": ["text"],
    "video": ["video"],
    "video_long": ["video_long"],
    "batch_left": PADDED,
}
LORA_GRADS = ["text", "video", "batch"]
TRAIN_BATCHES = [
    ["video", "video_odd"],
    ["video_down"],
    ["text", "video_win"],
    ["image"],
    ["mixed", "video_odd"],
]


def media_of(messages):
    """Names of the videos and of the images, in order."""
    parts = [c for m in messages if isinstance(m["content"], list) for c in m["content"]]
    videos = [c["video"] for c in parts if c["type"] == "video"]
    return videos, [c["image"] for c in parts if c["type"] == "image"]


def render(processor, messages, generation_prompt):
    """The chat template, media as one pad token each."""
    return processor.tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=generation_prompt,
        chat_template=CHAT_TEMPLATE,
    )


def expand(chat, media, videos, images):
    """Repeats each pad token once per merged patch of its medium."""
    for pad, names in (("<|image_pad|>", images), ("<|video_pad|>", videos)):
        first, *rest = chat.split(pad)
        assert len(rest) == len(names)
        repeats = [int(media[n]["grid"].prod()) // MERGE**2 for n in names]
        chat = first + "".join(pad * n + part for n, part in zip(repeats, rest))
    return chat


def turns(chat):
    """Cuts a rendered chat in (text, supervised?): answers run through `<|im_end|>\\n`."""
    start_mark, end_mark = "<|im_start|>assistant\n", "<|im_end|>\n"
    pieces, at = [], 0
    while (i := chat.find(start_mark, at)) >= 0:
        start = i + len(start_mark)
        end = chat.find(end_mark, start) + len(end_mark)
        pieces += [(chat[at:start], False), (chat[start:end], True)]
        at = end
    assert at == len(chat)
    return pieces


def encode_sft(processor, messages, media):
    """LLaMA-Factory's encoding: prompts and answers tokenised apart, answers supervised."""
    chat = expand(render(processor, messages, False), media, *media_of(messages))
    encode = lambda s: processor.tokenizer(s, add_special_tokens=False)["input_ids"]
    ids, labels = [], []
    for piece, supervised in turns(chat):
        piece_ids = encode(piece)
        ids += piece_ids
        labels += piece_ids if supervised else [IGNORE_INDEX] * len(piece_ids)
    return dict(text=chat, input_ids=ids, labels=labels, same_as_whole=ids == encode(chat))


def check_against_processor(processor, messages, media, encoded):
    """Our expansion, pixels and seconds per grid equal those of one processor call."""
    videos, images = media_of(messages)
    options = {}
    if videos:
        lengths = [len(media[v]["frames"]) for v in videos]
        options["video_metadata"] = [
            [dict(fps=2.0, total_num_frames=n, frames_indices=list(range(n))) for n in lengths]
        ]
    out = processor(
        text=[render(processor, messages, False)],
        images=[Image.fromarray(media[i]["frames"][0]) for i in images] or None,
        videos=[to_tchw(media[v]["frames"]) for v in videos] or None,
        return_tensors="pt",
        do_sample_frames=False,
        **options,
    )
    ids = processor.tokenizer(encoded["text"])["input_ids"]
    assert out["input_ids"][0].tolist() == ids
    for key, names in (("pixel_values_videos", videos), ("pixel_values", images)):
        if names:
            assert torch.equal(out[key], torch.cat([media[n]["pixel_values"] for n in names]))
    if "second_per_grid_ts" in out:
        assert [float(x) for x in out["second_per_grid_ts"]] == [1.0] * len(videos)


def chat_samples(processor, media):
    """Messages, rendered text, ids and labels of every sample with default pixel limits."""
    samples = {}
    for name, messages in SAMPLES.items():
        if not all(media[n]["default_size"] for names in media_of(messages) for n in names):
            continue
        encoded = encode_sft(processor, messages, media)
        check_against_processor(processor, messages, media, encoded)
        samples[name] = dict(
            messages=messages,
            chat_text=render(processor, messages, False),
            gen_prompt_text=render(processor, messages[:-1], True),
            **encoded,
        )
    return samples


# ------------------------------------------------------------------------------ batches


def rope_row(config, ids, grids, seconds):
    """Positions of one unpadded row, [3, L]; `grids` and `seconds` by kind, consumed in order."""
    vision = config["vision_config"]
    two_5 = config["model_type"] == "qwen2_5_vl"
    columns, at, i = [], 0, 0
    while i < len(ids):
        if ids[i] not in (config["image_token_id"], config["video_token_id"]):
            columns.append((at, at, at))
            at, i = at + 1, i + 1
            continue
        kind = "video" if ids[i] == config["video_token_id"] else "image"
        t, h, w = next(grids[kind])
        step = 1.0
        if two_5:
            step = next(seconds) * vision["tokens_per_second"] if kind == "video" else 0.0
        h, w = h // vision["spatial_merge_size"], w // vision["spatial_merge_size"]
        block = [
            (at + int(frame * step), at + y, at + x)
            for frame in range(t)
            for y in range(h)
            for x in range(w)
        ]
        columns += block
        i += len(block)
        at = max(map(max, block)) + 1
    return torch.tensor(columns).T


def rope_index(config, input_ids, attention_mask, images=None, videos=None, seconds=None):
    """(position_ids [3, B, L], rope_deltas [B, 1]): the next text position less the tokens so far.

    Padding keeps position 0. `seconds` is Qwen2.5-VL's `second_per_grid_ts`.
    """
    rows = lambda grid: iter([] if grid is None else grid.tolist())
    grids = dict(image=rows(images), video=rows(videos))
    seconds = rows(seconds)
    positions = torch.zeros(3, *input_ids.shape, dtype=torch.long)
    deltas = []
    for b, keep in enumerate(attention_mask.bool()):
        row = rope_row(config, input_ids[b, keep].tolist(), grids, seconds)
        positions[:, b, keep] = row
        deltas.append(int(row.max()) + 1 - row.shape[1])
    return positions, torch.tensor(deltas)[:, None]


def encode_row(processor, messages, media, generate):
    """(text, ids, labels) of one row; when generating, the prompt up to the last answer."""
    if not generate:
        encoded = encode_sft(processor, messages, media)
        return encoded["text"], encoded["input_ids"], encoded["labels"]
    prompt = messages[:-1]
    chat = expand(render(processor, prompt, True), media, *media_of(prompt))
    ids = processor.tokenizer(chat, add_special_tokens=False)["input_ids"]
    return chat, ids, [IGNORE_INDEX] * len(ids)


def pad_rows(rows, value, side):
    """Lists of unequal length → [B, longest]."""
    width = max(map(len, rows))
    pad = lambda row: [value] * (width - len(row))
    return torch.tensor([row + pad(row) if side == "right" else pad(row) + row for row in rows])


def collate(processor, config, media, names, generate=False, seconds=1.0):
    """One batch: (tensors, notes). Training pads on the right, generation on the left."""
    side = "left" if generate else "right"
    rows = [encode_row(processor, SAMPLES[n], media, generate) for n in names]
    pad_id = processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    batch = dict(
        input_ids=pad_rows([ids for _, ids, _ in rows], pad_id, side),
        attention_mask=pad_rows([[1] * len(ids) for _, ids, _ in rows], 0, side),
        labels=pad_rows([labels for _, _, labels in rows], IGNORE_INDEX, side),
    )
    used = [media_of(SAMPLES[n][:-1] if generate else SAMPLES[n]) for n in names]
    videos, images = [v for vs, _ in used for v in vs], [i for _, xs in used for i in xs]
    gather = lambda names, key: torch.cat([media[n][key] for n in names])
    if videos:
        batch["pixel_values_videos"] = gather(videos, "pixel_values")
        batch["video_grid_thw"] = gather(videos, "grid")
        if config["model_type"] == "qwen2_5_vl":
            batch["second_per_grid_ts"] = torch.full((len(videos),), seconds)
    if images:
        batch["pixel_values"] = gather(images, "pixel_values")
        batch["image_grid_thw"] = gather(images, "grid")
    batch["position_ids"], batch["rope_deltas_unpadded"] = batch_positions(config, batch)
    notes = dict(samples=names, videos=videos, images=images)
    return batch, dict(notes, texts=[chat for chat, _, _ in rows], padding_side=side)


def batch_positions(config, batch):
    """`rope_index` of a collated batch."""
    return rope_index(
        config,
        batch["input_ids"],
        batch["attention_mask"],
        batch.get("image_grid_thw"),
        batch.get("video_grid_thw"),
        batch.get("second_per_grid_ts"),
    )


def without_pixels(batch):
    """A batch as it is stored: the pixels are those of processor/, in the order of the media."""
    return {k: v for k, v in batch.items() if k not in ("pixel_values", "pixel_values_videos")}


def model_inputs(model, batch, labels=True, positions=True):
    """Keyword arguments of the HF forward."""
    drop = {"rope_deltas_unpadded"}
    drop |= set() if labels else {"labels"}
    drop |= set() if positions else {"position_ids"}
    inputs = {k: v for k, v in batch.items() if k not in drop}
    ids = batch["input_ids"]
    image_id, video_id = model.config.image_token_id, model.config.video_token_id
    inputs["mm_token_type_ids"] = (ids == image_id).long() + 2 * (ids == video_id).long()
    return inputs


# ------------------------------------------------------------------------------ forward


def record_vision(model, run):
    """Runs `run` and returns (its result, outputs of the vision tower's parts, in call order)."""
    record, hooks = {}, []

    def watch(name, module):
        def keep(_module, _inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            record.setdefault(name, []).append(output.detach().clone())

        hooks.append(module.register_forward_hook(keep))

    visual = model.model.visual
    watch("vision_patch_embed", visual.patch_embed)
    for i, block in enumerate(visual.blocks):
        watch(f"vision_block_{i}", block)
    watch("vision_merger_raw", visual.merger)
    result = run()
    for hook in hooks:
        hook.remove()
    return result, record


def vision_features(model, batch):
    """`vision_out.KIND` [N / 4, H]: the features that replace the pad embeddings."""
    features = {}
    if "pixel_values" in batch:
        out = model.model.get_image_features(batch["pixel_values"], batch["image_grid_thw"])
        features["vision_out.image"] = torch.cat(list(out.pooler_output))
    if "pixel_values_videos" in batch:
        out = model.model.get_video_features(batch["pixel_values_videos"], batch["video_grid_thw"])
        features["vision_out.video"] = torch.cat(list(out.pooler_output))
    return features


# Cases that keep their logits; the others' follow from the last of `hidden_states` and lm_head.
WITH_LOGITS = {"text", "video", "mixed"}


@torch.no_grad()
def forward_case(models, batch, notes, with_logits):
    """Tensors of one forward and its numbers, with the spread between dtypes and kernels."""
    model = models["f32"]
    run = lambda: model(**model_inputs(model, batch), output_hidden_states=True, use_cache=False)
    out, record = record_vision(model, run)
    tensors = without_pixels(batch)
    # The model runs the vision tower on images first, then on videos.
    kinds = [k for k, names in (("image", notes["images"]), ("video", notes["videos"])) if names]
    for name, outputs in record.items():
        for kind, x in zip(kinds, outputs):
            tensors[f"{name}.{kind}"] = x.reshape(-1, x.shape[-1])
    tensors.update(vision_features(model, batch))
    tensors["hidden_states"] = torch.stack(out.hidden_states)
    if with_logits:
        tensors["logits"] = out.logits
    tensors["loss"] = out.loss

    inputs = model_inputs(model, batch)
    double = lambda k, x: x.double() if x.is_floating_point() and "second" not in k else x
    out_64 = models["f64"](**{k: double(k, x) for k, x in inputs.items()}, use_cache=False)
    out_sdpa = models["sdpa"](**inputs, use_cache=False)
    keep = batch["attention_mask"].bool()
    spread = lambda other: float((out.logits - other)[keep].abs().max())
    numbers = dict(
        notes,
        loss=float(out.loss),
        loss_f64=float(out_64.loss),
        n_label_tokens=int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()),
        seq_len=int(batch["input_ids"].shape[1]),
        max_abs_logit=float(out.logits[keep].abs().max()),
        f32_vs_f64_logits=spread(out_64.logits),
        eager_vs_sdpa_logits=spread(out_sdpa.logits),
    )
    return tensors, numbers


def fractional_positions(processor, config, media):
    """Qwen2.5-VL positions where seconds per grid times tokens per second is no integer."""
    tensors = {}
    for seconds in (0.5, 0.75, 1.0, 1.5, 2.002):
        batch, _ = collate(processor, config, media, ["video_long"], seconds=seconds)
        tensors["input_ids"] = batch["input_ids"]
        tensors["video_grid_thw"] = batch["video_grid_thw"]
        tensors[f"position_ids.sec_{seconds}"] = batch["position_ids"]
    return tensors


def vision_internals(config, media):
    """Rotary positions of the patches and, in Qwen2.5-VL, the order and ends of the windows."""
    tensors, names = {}, ["vid_odd", "vid_win", "img_a"]
    grids = {n: media[n]["grid"] for n in names}
    for name, grid in grids.items():
        tensors[f"{name}.hw_pos"] = get_vision_position_ids(grid, MERGE)
    if config["model_type"] == "qwen2_5_vl":
        grids["batch_odd_win"] = torch.cat([grids["vid_odd"], grids["vid_win"]])
        window = config["vision_config"]["window_size"]
        for name, grid in grids.items():
            index, ends = get_vision_window_index(grid, MERGE, window, PATCH)
            tensors[f"{name}.window_index"] = index
            tensors[f"{name}.cu_window_seqlens"] = ends.long()
    return tensors


# Gradients of every weight would take 3 MB: of tensors above this size every 11th element is kept,
# in row-major order. 11 divides no row length here, so every row and column is met.
GRAD_WHOLE, GRAD_STRIDE = 4096, 11


def full_gradients(model, batch):
    """Gradients of every weight under hub names, and the loss as `__loss__`."""
    model.zero_grad()
    loss = model(**model_inputs(model, batch), use_cache=False).loss
    loss.backward()
    hub = lambda k: k.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
    grads = {hub(k): p.grad for k, p in model.named_parameters() if p.grad is not None}
    for key, grad in grads.items():
        if grad.numel() > GRAD_WHOLE:
            grads[key] = grad.flatten()[::GRAD_STRIDE].clone()
    model.zero_grad(set_to_none=True)
    return grads | {"__loss__": loss.detach()}


# ------------------------------------------------------------------------------ generation


class OriginalPositions:
    """Within this block, `generate` numbers positions by `rope_index`."""

    def __init__(self, model, config):
        self.model, self.config = model.model, config

    def __enter__(self):
        def get_rope_index(
            input_ids=None,
            *_,
            image_grid_thw=None,
            video_grid_thw=None,
            second_per_grid_ts=None,
            attention_mask=None,
            **__,
        ):
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            grids = (image_grid_thw, video_grid_thw, second_per_grid_ts)
            return rope_index(self.config, input_ids, mask, *grids)

        self.model.get_rope_index = get_rope_index

    def __exit__(self, *_):
        del self.model.get_rope_index


PENALTIES = {"plain": 1.0, "rep_penalty_1.05": 1.05}
NEW_TOKENS, LOGIT_STEPS = 32, 4


@torch.no_grad()
def generate(model, config, batch, penalty):
    """Greedy decoding: (new ids [B, steps], logits before the penalty [B, steps, V])."""
    end, pad = config["eos_token_id"], config["bos_token_id"]
    with OriginalPositions(model, config):
        out = model.generate(
            **model_inputs(model, batch, positions=False),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            use_cache=True,
            eos_token_id=[end, pad],
            pad_token_id=pad,
            repetition_penalty=penalty,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return out.sequences[:, batch["input_ids"].shape[1] :], torch.stack(out.logits, 1)


def top2_margin(logits, steps):
    """Smallest gap between the two likeliest tokens: how safe it is to ask for equal ids."""
    best = logits.topk(2, -1).values
    return float((best[..., 0] - best[..., 1])[steps].min())


def generation_goldens(model, processor, config, media):
    """generate.safetensors and generate.json: both penalties, left-padded batch included."""
    tensors, report = {}, {}
    for name, names in GENERATE.items():
        batch, notes = collate(processor, config, media, names, generate=True)
        for key in ("input_ids", "attention_mask", "position_ids", "rope_deltas_unpadded"):
            tensors[f"{name}.{key}"] = batch[key]
        for variant, penalty in PENALTIES.items():
            ids, logits = generate(model, config, batch, penalty)
            tensors[f"{name}.{variant}.new_ids"] = ids
            if variant == "plain":
                tensors[f"{name}.plain.logits"] = logits[:, :LOGIT_STEPS]
                notes["min_top2_margin"] = top2_margin(logits, ids != config["bos_token_id"])
            decode = lambda row: processor.tokenizer.decode(row, skip_special_tokens=True)
            notes[variant] = dict(new_ids=ids.tolist(), text=[decode(row) for row in ids])
        report[name] = notes
    return tensors, report


# ------------------------------------------------------------------------------ answers

# VLM4D's prompts, word for word from its evaluation's prompt files.
VLM4D_PROMPTS = {
    ("mc", "do"): "\nQuestion: $question\n$options\n\nDo not generate any intermediate reasoning "
    "process. Answer directly with the option letter from the given choices.\n",
    ("ff", "do"): "\nQuestion: $question\n\nDo not generate any intermediate reasoning process. "
    "Directly output the final short answer.\n",
    ("mc", "cot"): "\nQuestion: $question\n$options\n\nAnswer the given multiple-choice question "
    "step by step. Begin by explaining your reasoning process clearly. In the last sentence of "
    "your response, you must conclude by stating the final answer using the following format: "
    "'Therefore, the final answer is: $LETTER' (without quotes), where $LETTER must be only one of "
    "the options (A or B or C or D). Think step by step before answering.",
    ("ff", "cot"): "\nQuestion: $question\n\nAnswer the given question step by step. Begin by "
    "explaining your reasoning process clearly. Conclude by stating the final answer using the "
    "following format: 'Therefore, the final answer is: 'Answer: $ANSWER' (without quotes), where "
    "$ANSWER is the final answer of the question. Think step by step before answering.",
}
VLM4D_QUESTIONS = [
    ("From the camera's point of view, which direction is the car moving?",
     ["left", "right", "not moving", "towards the camera"]),
    ("How many times does the ball bounce?", ["3", "0", "1", "no ball there"]),
]
ANSWER_VIDEO = "vid_long"


def answer_goldens(model, processor, config, media):
    """predictions.json: greedy answers to VLM4D's prompts on one video, one prompt at a time, and
    the log-probabilities of the letters as the first token."""
    encode = lambda s: processor.tokenizer(s, add_special_tokens=False)["input_ids"]
    letters = [encode(letter) for letter in "ABCD"]
    assert all(len(ids) == 1 for ids in letters)
    answers = []
    for question, choices in VLM4D_QUESTIONS:
        options = "\n".join(f"{letter}: {choice}" for letter, choice in zip("ABCD", choices))
        for (kind, style), template in VLM4D_PROMPTS.items():
            prompt = template.replace("$question", question).replace("$options", options)
            messages = [user(video(ANSWER_VIDEO), text(prompt))]
            chat = expand(render(processor, messages, True), media, [ANSWER_VIDEO], [])
            ids = torch.tensor([encode(chat)])
            batch = dict(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                labels=torch.full_like(ids, IGNORE_INDEX),
                pixel_values_videos=media[ANSWER_VIDEO]["pixel_values"],
                video_grid_thw=media[ANSWER_VIDEO]["grid"],
            )
            if config["model_type"] == "qwen2_5_vl":
                batch["second_per_grid_ts"] = torch.ones(1)
            batch["position_ids"], batch["rope_deltas_unpadded"] = batch_positions(config, batch)
            new_ids, logits = generate(model, config, batch, 1.0)
            first = logits[0, 0].log_softmax(-1)
            answers.append(dict(
                question=question,
                choices=choices,
                format=kind,
                style=style,
                input_ids=ids[0].tolist(),
                new_ids=new_ids[0].tolist(),
                text=processor.tokenizer.decode(new_ids[0], skip_special_tokens=True),
                letter_logprobs=[float(first[i]) for (i,) in letters],
                min_top2_margin=top2_margin(logits, new_ids != config["bos_token_id"]),
            ))
    return answers


# ------------------------------------------------------------------------------ LoRA

LORA = dict(r=8, alpha=16, dropout=0.0)
LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
TRAIN = dict(
    lr=2e-3,
    betas=[0.9, 0.999],
    eps=1e-8,
    weight_decay=0.01,
    max_grad_norm=18.0,
    warmup_steps=2,
    total_steps=8,
    steps=5,
    lora=LORA,
)
KEPT_STEPS = {3}  # besides the last, which is adapter_step_5
MERGED_WEIGHT = "self_attn.q_proj.weight"  # of the first layer


def file_key(name):
    """A PEFT parameter's name as adapter_model.safetensors spells it."""
    return name.replace(".default.weight", ".weight")


def with_lora(model, seed, **kind):
    """Wraps the model in LoRA with both matrices random.

    `kind` passes on PEFT's other switches (`use_dora`, `use_rslora`, …) for goldens of their own.
    """
    config = LoraConfig(
        r=LORA["r"],
        lora_alpha=LORA["alpha"],
        lora_dropout=LORA["dropout"],
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=LORA_TARGETS,
        **kind,
    )
    model = get_peft_model(model, config).eval()
    for name, p in model.named_parameters():
        assert p.requires_grad == ("lora_" in name), name
        if "lora_" in name:
            noise = rng(f"{seed}/lora/{file_key(name)}").standard_normal(tuple(p.shape))
            std = 0.05 if "lora_B" in name else 1 / math.sqrt(p.shape[1])
            p.data.copy_(torch.from_numpy((noise * std).astype(np.float32)))
    return model


def trained(model):
    """The LoRA matrices by the names of adapter_model.safetensors."""
    return {file_key(k): p for k, p in model.named_parameters() if p.requires_grad}


def lora_gradients(model, processor, config, media):
    """Loss and gradient of every LoRA matrix for a text, a video and a padded batch."""
    tensors = {}
    for case in LORA_GRADS:
        batch, _ = collate(processor, config, media, FORWARD[case])
        model.zero_grad()
        loss = model(**model_inputs(model, batch), use_cache=False).loss
        loss.backward()
        tensors[f"{case}.loss"] = loss.detach()
        tensors.update({f"{case}.grad.{k}": p.grad for k, p in trained(model).items()})
    return tensors


def train_steps(model, processor, config, media, out):
    """Five AdamW steps under clipping and a cosine schedule: (log, optimiser state)."""
    weights = trained(model)
    optimiser = torch.optim.AdamW(
        list(weights.values()),
        lr=TRAIN["lr"],
        betas=tuple(TRAIN["betas"]),
        eps=TRAIN["eps"],
        weight_decay=TRAIN["weight_decay"],
        foreach=False,
        fused=False,
    )
    schedule = get_cosine_schedule_with_warmup(
        optimiser, TRAIN["warmup_steps"], TRAIN["total_steps"]
    )
    log = []
    for step, names in enumerate(TRAIN_BATCHES, 1):
        batch, notes = collate(processor, config, media, names)
        used = {k: notes[k] for k in ("images", "videos")}
        metadata = {"media": json.dumps(used)}
        write_tensors(without_pixels(batch), out / f"train_batch_{step}.safetensors", metadata)
        optimiser.zero_grad()
        loss = model(**model_inputs(model, batch), use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(weights.values()), TRAIN["max_grad_norm"])
        lr = schedule.get_last_lr()[0]
        optimiser.step()
        schedule.step()
        row = dict(step=step, batch=names, videos=notes["videos"], images=notes["images"])
        log.append(dict(row, loss=loss.item(), grad_norm=norm.item(), lr=lr))
        if step in KEPT_STEPS:
            write_tensors(weights, out / f"lora_step_{step}.safetensors")
    state = optimiser.state_dict()["state"]
    moments = ("exp_avg", "exp_avg_sq")
    return log, {f"{k}.{m}": state[i][m] for i, k in enumerate(weights) for m in moments}


def save_adapter(model, folder, base):
    """The adapter as PEFT writes it, without its model card and with a portable base path."""
    fresh(folder)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    write_json(json.loads(path.read_text()) | dict(base_model_name_or_path=base), path)
    saved = load_file(folder / "adapter_model.safetensors")
    assert all(torch.equal(saved[k], p.detach()) for k, p in trained(model).items())


@torch.no_grad()
def merged_golden(model, batch):
    """(logits and one weight of the merged model, loss before, distance of the logits)."""
    before = model(**model_inputs(model, batch), use_cache=False)
    merged = model.merge_and_unload()
    after = merged(**model_inputs(merged, batch), use_cache=False)
    layer = merged.model.language_model.layers[0]
    weight = {f"model.layers.0.{MERGED_WEIGHT}": layer.get_parameter(MERGED_WEIGHT)}
    distance = float((after.logits - before.logits).abs().max())
    return {"logits_video": after.logits} | weight, float(before.loss), distance


def lora_goldens(checkpoint, name, processor, config, media, out):
    """Everything about one adapter, from its first gradient to the merged logits."""
    model = with_lora(load_model(checkpoint), name)
    write_tensors(trained(model), out / "lora_init.safetensors")
    write_tensors(lora_gradients(model, processor, config, media), out / "lora_grads.safetensors")
    log, state = train_steps(model, processor, config, media, out)
    write_tensors(state, out / "adamw_state_step_5.safetensors")
    save_adapter(model, out / "adapter_step_5", f"ckpt/{name}")
    batch, _ = collate(processor, config, media, ["video"])
    tensors, loss, distance = merged_golden(model, batch)
    write_tensors(tensors, out / "merged_check.safetensors")
    after = dict(sample="video", loss=loss)
    write_json(dict(hyper=TRAIN, log=log, after=after), out / "train_log.json")
    return dict(merged_vs_lora_logits=distance)


# ------------------------------------------------------------------------------ kinds of training

LANGUAGE_LINEAR = r".*language_model\.layers\.\d+\.(self_attn\.(q|v)_proj|mlp\.down_proj)"
VISION_LINEAR = (
    r".*visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2|gate_proj|up_proj|down_proj))"
)
MERGER_LINEAR = r".*visual\.merger\.mlp\.(0|2)"
KIND_STEPS, KIND_TRAIN = 3, dict(lr=2e-3, weight_decay=0.1, max_grad_norm=18.0)
# `ratio` is LoRA+'s; `vision_lr` is the rate of what is trained in the vision tower.
KINDS = dict(
    rslora=dict(target_modules=LANGUAGE_LINEAR, use_rslora=True),
    dora=dict(target_modules=LANGUAGE_LINEAR, use_dora=True, ratio=4.0),
    vision=dict(target_modules=f"{VISION_LINEAR}|{MERGER_LINEAR}", ratio=16.0),
    all_dora=dict(
        target_modules=f"{LANGUAGE_LINEAR}|{VISION_LINEAR}|{MERGER_LINEAR}",
        use_dora=True,
        use_rslora=True,
        ratio=2.0,
    ),
    patterns=dict(
        target_modules=LANGUAGE_LINEAR,
        rank_pattern={"layers.0.self_attn.q_proj": 2, r".*\.mlp\.down_proj": 6},
        alpha_pattern={r"v_proj": 3},
    ),
    nf4=dict(target_modules=LANGUAGE_LINEAR, nf4=True),
    nf4_all_dora=dict(
        target_modules=f"{LANGUAGE_LINEAR}|{VISION_LINEAR}|{MERGER_LINEAR}",
        use_dora=True,
        nf4=True,
    ),
)
# LLaMA-Factory's `quantization_bit: 4` with its defaults, but for the type that is computed in.
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)


def nearest_codes(a, blocksize, by_table=bnb.functional.quantize_blockwise):
    """The nearest of bitsandbytes' 8-bit codes, as its CUDA kernel and its fallback have them: its
    CPU kernel is off next to what lies half-way between two."""
    _, state = by_table(a, blocksize=blocksize)
    scaled = a * (1 / state.absmax).repeat_interleave(blocksize)[: a.numel()]
    half_way = (state.code[:-1] + state.code[1:]) / 2
    return torch.bucketize(scaled, half_way).to(torch.uint8), state


EXACT = patch.object(bnb.functional, "quantize_blockwise", nearest_codes)


@EXACT
def load_nf4(checkpoint):
    """The checkpoint with its linear layers, all but lm_head, in four bits."""
    return load_model(checkpoint, quantization_config=NF4, device_map={"": "cpu"})


@EXACT
def nf4_weights(model):
    """What 8-bit codes stand for; the numbers that some layers have in four bits, and those of a matrix
    that fills no block."""
    shown = r"visual.blocks.0.attn.qkv|layers.0.self_attn.k_proj|layers.1.mlp.down_proj"
    odd = torch.from_numpy(rng("nf4/odd").standard_normal((5, 30)).astype(np.float32))
    quantised = bnb.functional.quantize_4bit(odd, compress_statistics=True, quant_type="nf4")
    tensors = {"odd": odd, "odd.values": bnb.functional.dequantize_4bit(*quantised)}
    tensors["nested_code"] = bnb.functional.create_dynamic_map()
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit) and re.search(shown, name):
            weight = module.weight
            tensors[name] = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    return tensors


def with_kind(model, seed, kind):
    """The model with an adapter of one kind, all of it random."""
    own = {k: v for k, v in kind.items() if k not in ("ratio", "nf4")}
    config = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", **own
    )
    model = get_peft_model(model, config).eval()
    for name, p in model.named_parameters():
        if "lora_magnitude_vector" in name:
            noise = rng(f"{seed}/kind/{name}").standard_normal(tuple(p.shape))
            p.data.mul_(torch.from_numpy((1 + 0.1 * noise).astype(np.float32)))
        elif "lora_" in name:
            noise = rng(f"{seed}/kind/{name}").standard_normal(tuple(p.shape))
            std = 0.05 if "lora_B" in name else 1 / math.sqrt(p.shape[1])
            p.data.copy_(torch.from_numpy((noise * std).astype(np.float32)))
    return model


def kind_key(name):
    """A parameter's name as adapter_model.safetensors spells it."""
    name = name.replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector")
    return file_key(name)


def kind_steps(model, optimiser, batch):
    """Steps on one batch at a constant rate: losses and gradient norms."""
    weights = [p for p in model.parameters() if p.requires_grad]
    log = []
    for _ in range(KIND_STEPS):
        optimiser.zero_grad()
        loss = model(**model_inputs(model, batch), use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, KIND_TRAIN["max_grad_norm"])
        optimiser.step()
        log.append(dict(loss=loss.item(), grad_norm=norm.item()))
    return log


def strided(tensors):
    """Of large tensors every 11th element."""
    keep = lambda t: t.detach().flatten()[::GRAD_STRIDE] if t.numel() > GRAD_WHOLE else t.detach()
    return {k: keep(t).clone() for k, t in tensors.items()}


def adapter_kind(checkpoint, out, seed, kind, batch):
    """One kind of adapter: as PEFT saves it, its logits, gradients and three steps of AdamW."""
    base = load_nf4(checkpoint) if kind.get("nf4") else load_model(checkpoint)
    model = with_kind(base, seed, kind)
    fresh(out)
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    path = out / "adapter_config.json"
    base = dict(base_model_name_or_path=f"ckpt/{checkpoint.name}")
    write_json(json.loads(path.read_text()) | base, path)
    result = model(**model_inputs(model, batch), use_cache=False)
    result.loss.backward()
    own = {kind_key(k): p for k, p in model.named_parameters() if p.requires_grad}
    tensors = {"loss": result.loss.detach(), "logits": result.logits[0, -8:].detach().clone()}
    tensors |= {f"grad.{k}": p.grad.clone() for k, p in own.items()}
    optimiser = create_loraplus_optimizer(
        model=model,
        optimizer_cls=torch.optim.AdamW,
        lr=KIND_TRAIN["lr"],
        loraplus_lr_ratio=kind.get("ratio", 1.0),
        loraplus_weight_decay=KIND_TRAIN["weight_decay"],
        foreach=False,
        fused=False,
    )
    log = kind_steps(model, optimiser, batch)
    tensors |= {f"after.{k}": p.detach().clone() for k, p in own.items()}
    # PEFT merges into four bits, and rounds the adapter away.
    if not kind.get("nf4"):
        with torch.no_grad():
            merged = model.merge_and_unload()
            logits = merged(**model_inputs(merged, batch), use_cache=False).logits
        tensors["merged_logits"] = logits[0, -8:].clone()
    write_tensors(tensors, out / "case.safetensors")
    ratio = kind.get("ratio", 1.0)
    write_json(dict(KIND_TRAIN, plus_ratio=ratio, steps=log), out / "steps.json")


def full_kind(checkpoint, out, batch):
    """Three steps of full fine-tuning with the Trainer's rule of what weight decay acts on; the
    vision tower has a rate of its own."""
    model = load_model(checkpoint)
    hub = lambda k: k.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
    decays = set(Trainer.get_decay_parameter_names(None, model))
    groups = {}
    for name, p in model.named_parameters():
        vision = hub(name).startswith("visual.") and not hub(name).startswith("visual.merger.")
        groups.setdefault((name in decays, vision), []).append(p)
    lr, decay = KIND_TRAIN["lr"], KIND_TRAIN["weight_decay"]
    optimiser = torch.optim.AdamW(
        [
            dict(params=ps, lr=lr / 4 if vision else lr, weight_decay=decay if decayed else 0.0)
            for (decayed, vision), ps in groups.items()
        ],
        foreach=False,
        fused=False,
    )
    log = kind_steps(model, optimiser, batch)
    tensors = strided({hub(k): p for k, p in model.named_parameters()})
    write_tensors(tensors, fresh(out) / "after.safetensors")
    write_json(dict(KIND_TRAIN, vision_lr=lr / 4, steps=log), out / "steps.json")


# ------------------------------------------------------------------------------ one model


def write_model(root, name, media):
    """Every golden of one tiny checkpoint, in the folder of its name."""
    checkpoint, out = root / "ckpt" / name, fresh(root / name)
    config = json.loads((checkpoint / "config.json").read_text())
    processor = AutoProcessor.from_pretrained(checkpoint)
    models = dict(
        f32=load_model(checkpoint),
        f64=load_model(checkpoint, torch.float64),
        sdpa=load_model(checkpoint, attention="sdpa"),
    )
    write_json(tokenizer_cases(checkpoint), out / "tokenizer_cases.json")
    write_json(chat_samples(processor, media), out / "chat_samples.json")
    summary = dict(model=name, forward={})
    for case, names in FORWARD.items():
        batch, notes = collate(processor, config, media, names)
        tensors, numbers = forward_case(models, batch, notes, case in WITH_LOGITS)
        write_tensors(tensors, out / f"forward_{case}.safetensors")
        summary["forward"][case] = numbers
    if config["model_type"] == "qwen2_5_vl":
        positions = fractional_positions(processor, config, media)
        write_tensors(positions, out / "positions_fractional.safetensors")
    write_tensors(vision_internals(config, media), out / "vision_internals.safetensors")
    batch, _ = collate(processor, config, media, ["mixed", "video_odd"])
    grads = full_gradients(models["f32"], batch)
    write_tensors(grads, out / "full_grads_mixed_batch.safetensors")
    tensors, report = generation_goldens(models["f32"], processor, config, media)
    write_tensors(tensors, out / "generate.safetensors")
    write_json(report, out / "generate.json")
    summary["generate_min_margin"] = {k: v["min_top2_margin"] for k, v in report.items()}
    summary.update(lora_goldens(checkpoint, name, processor, config, media, out))
    write_json(summary, out / "summary.json")


# ------------------------------------------------------------------------------ other shapes

SHAPE_VOCAB = 96
SHAPE_IDS = {token: SHAPE_VOCAB - len(SPECIAL) + i for i, token in enumerate(SPECIAL)}


def shape(model_type, heads, kv_heads, section, vision, **own):
    """A tiny config; what `own` leaves out: 32 hidden, 2 layers, untied, float32."""
    return dict(
        dict(
            model_type=model_type,
            hidden_size=32,
            intermediate_size=56,
            num_hidden_layers=2,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            mrope_section=section,
            tie_word_embeddings=False,
            torch_dtype="float32",
            vocab_size=SHAPE_VOCAB,
            vision_config=vision,
        ),
        **own,
    )


SHAPES = {  # name: config, media of the prompt as (kind, grid_thw, second per grid), nested names?
    "qwen2_vl_8q_2kv_tied": dict(
        config=shape(
            "qwen2_vl", 8, 2, [1, 1, 2], vision_2(1, 16, 1, 64), hidden_size=64,
            num_hidden_layers=1, tie_word_embeddings=True,
        ),
        prompt=[("video", (2, 4, 4), 1.0)],
    ),
    "qwen2_vl_4q_4kv_one_frame_bf16": dict(
        config=shape("qwen2_vl", 4, 4, [2, 1, 1], vision_2(2, 16, 2, 32), torch_dtype="bfloat16"),
        prompt=[("video", (1, 4, 4), 1.0)],
        one_frame=True,
    ),
    "qwen2_vl_nested_image_and_video": dict(
        config=shape("qwen2_vl", 2, 1, [4, 2, 2], vision_2(1, 16, 2, 32)),
        prompt=[("image", (1, 2, 6), 0.0), ("video", (1, 4, 2), 1.0)],
        nested=True,
    ),
    "qwen2_5_vl_ragged_windows": dict(
        config=shape(
            "qwen2_5_vl", 4, 1, [2, 1, 1], vision_2_5(3, 16, 36, 2, 32, 112, [1]),
            num_hidden_layers=3,
        ),
        prompt=[("video", (1, 10, 4), 0.5)],
    ),
    "qwen2_5_vl_nested_tied_bf16": dict(
        config=shape(
            "qwen2_5_vl", 4, 2, [1, 1, 2], vision_2_5(2, 32, 36, 4, 32, 56, [1]),
            tie_word_embeddings=True, torch_dtype="bfloat16",
        ),
        prompt=[("video", (2, 2, 6), 1.5), ("image", (1, 4, 2), 0.0)],
        nested=True,
    ),
}  # fmt: skip

TEXT_KEYS = (
    "attention_dropout bos_token_id eos_token_id hidden_act hidden_size initializer_range "
    "intermediate_size max_position_embeddings max_window_layers num_attention_heads "
    "num_hidden_layers num_key_value_heads rms_norm_eps use_cache use_sliding_window vocab_size"
).split()


def nested_config(flat):
    """The same config as transformers 5 spells it: `text_config`, `rope_parameters`, `dtype`."""
    section = flat["rope_scaling"]["mrope_section"]
    rope = dict(rope_type="default", rope_theta=flat["rope_theta"], mrope_section=section)
    dtype, kind = flat["torch_dtype"], flat["model_type"]
    language = {k: flat[k] for k in TEXT_KEYS}
    language.update(dtype=dtype, model_type=kind + "_text", rope_parameters=rope)
    vision = dict(flat["vision_config"], model_type=kind + "_vision")
    top = ("architectures", "image_token_id", "video_token_id", "vision_start_token_id")
    return dict(
        {k: flat[k] for k in top},
        vision_end_token_id=flat["vision_end_token_id"],
        dtype=dtype,
        model_type=kind,
        text_config=language,
        tie_word_embeddings=flat["tie_word_embeddings"],
        transformers_version=transformers.__version__,
        vision_config=vision,
    )


def in_memory_name(key):
    """A hub name as transformers 4.52 and later call it in memory."""
    if key.startswith("visual."):
        return "model." + key
    return key.replace("model.", "model.language_model.", 1)


def shape_pixels(seed, grid, one_frame):
    """Random patches [N, 1176]; with one frame, both frames of the pair are equal."""
    n = grid[0] * grid[1] * grid[2]
    pixels = rng(seed).standard_normal((n, 3, 2, PATCH, PATCH)).astype(np.float32)
    if one_frame:
        pixels[:, :, 1] = pixels[:, :, 0]
    return torch.from_numpy(pixels.reshape(n, -1))


def shape_batch(name, spec, config):
    """One prompt of random text around its media, and the media's patches."""
    words = lambda part, n: rng(f"{name}/{part}").integers(0, min(SHAPE_IDS.values()), n).tolist()
    ids, batch = words("start", 5), {}
    for i, (kind, grid, seconds) in enumerate(spec["prompt"]):
        pad = [SHAPE_IDS[f"<|{kind}_pad|>"]] * (grid[0] * grid[1] * grid[2] // MERGE**2)
        vision = [SHAPE_IDS["<|vision_start|>"], *pad, SHAPE_IDS["<|vision_end|>"]]
        ids += vision + words(f"after {i}", 4)
        pixels = "pixel_values_videos" if kind == "video" else "pixel_values"
        batch[pixels] = shape_pixels(f"{name}/pixels {i}", grid, spec.get("one_frame", False))
        batch[f"{kind}_grid_thw"] = torch.tensor([grid])
        if kind == "video" and config["model_type"] == "qwen2_5_vl":
            batch["second_per_grid_ts"] = torch.tensor([seconds])
    batch["input_ids"] = torch.tensor([ids])
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["position_ids"], batch["rope_deltas_unpadded"] = batch_positions(config, batch)
    return batch


def write_shape(folder, name, spec):
    """One further checkpoint and the logits of one prompt: config, model, case."""
    fresh(folder)
    flat = flat_config(SHAPE_IDS, **copy.deepcopy(spec["config"]))
    weights, config = make_weights(name, flat), flat
    if spec.get("nested"):
        weights = {in_memory_name(k): x for k, x in weights.items()}
        config = nested_config(flat)
    write_json(config, folder / "config.json")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    batch, model = shape_batch(name, spec, flat), load_model(folder)
    check_loaded(model, weights)
    with torch.no_grad():
        batch["logits"] = model(**model_inputs(model, batch), use_cache=False).logits
    write_tensors(batch, folder / "case.safetensors")


def check_loaded(model, weights):
    """Every stored tensor reached the model, whatever its spelling."""
    loaded = model.state_dict()
    for key, x in weights.items():
        ours = key if key in loaded else in_memory_name(key)
        assert torch.equal(loaded[ours], x.float()), key


# ------------------------------------------------------------------------------ learning rates


def write_schedules(folder):
    """schedules.json: shares of the highest learning rate, step by step, from transformers."""
    rows = []
    for name in ("cosine", "linear", "constant_with_warmup"):
        for warmup, steps in [(0, 7), (1, 7), (3, 20), (20, 20)]:
            optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
            schedule = transformers.get_scheduler(name, optimizer, warmup, steps)
            factors = []
            for _ in range(steps):
                factors.append(schedule.get_last_lr()[0])
                optimizer.step()
                schedule.step()
            rows.append(dict(schedule=name, warmup=warmup, steps=steps, factors=factors))
    write_json(rows, folder / "schedules.json")


# ------------------------------------------------------------------------------ manifest


def write_manifest(root):
    """Versions, tolerances, and size and SHA-256 of every golden file."""
    versions = dict(
        python=sys.version.split()[0],
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        transformers=transformers.__version__,
        peft=peft.__version__,
        bitsandbytes=bnb.__version__,
        tokenizers=tokenizers.__version__,
        numpy=np.__version__,
    )
    own = {"manifest.json", "README.md", "requirements.txt"}
    files = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        # Encoders differ between builds: videos/ is no part of what this makes.
        ours = name not in own and not name.startswith("videos/") and not name.endswith((".py", ".pyc"))
        if path.is_file() and ours:
            data = path.read_bytes()
            files[name] = dict(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    manifest = dict(versions=versions, tolerances=TOLERANCES, files=files)
    write_json(manifest, root / "manifest.json")
    print(f"{len(files)} files, {sum(f['bytes'] for f in files.values()):,} bytes")


# ------------------------------------------------------------------------------ the parts


def part_checkpoints(root):
    """ckpt/: the two tiny checkpoints."""
    for name in MODELS:
        write_checkpoint(root / "ckpt" / name, name)


def load_media(root):
    """The media as processed with the settings of the first checkpoint."""
    return make_media(AutoProcessor.from_pretrained(root / "ckpt" / "tiny-qwen2-vl"))


def part_processor(root):
    """processor/: frames in, pixels out."""
    write_processor(root / "processor", load_media(root))


def part_tables(root):
    """tables/: smart_resize, frame sampling and learning rates."""
    write_tables(root / "tables")
    write_schedules(root / "tables")


def part_models(root):
    """tiny-*/: chats, forward, gradients, generation, LoRA."""
    media = load_media(root)
    for name in MODELS:
        write_model(root, name, media)


def part_answers(root):
    """tiny-*/predictions.json: answers to VLM4D's prompts."""
    media = load_media(root)
    for name in MODELS:
        folder = root / "ckpt" / name
        processor = AutoProcessor.from_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        answers = answer_goldens(load_model(folder), processor, config, media)
        write_json(answers, root / name / "predictions.json")


def part_shapes(root):
    """shapes/: further checkpoints, one prompt each."""
    for name, spec in SHAPES.items():
        write_shape(root / "shapes" / name, name, spec)


def part_kinds(root):
    """kinds/: rsLoRA, DoRA, adapters of tower and merger, QLoRA, full fine-tuning."""
    media = load_media(root)
    for name in MODELS:
        checkpoint = root / "ckpt" / name
        config = json.loads((checkpoint / "config.json").read_text())
        processor = AutoProcessor.from_pretrained(checkpoint)
        batch, _ = collate(processor, config, media, ["video"])
        for kind, spec in KINDS.items():
            adapter_kind(checkpoint, root / "kinds" / name / kind, name, spec, batch)
        full_kind(checkpoint, root / "kinds" / name / "full", batch)
        weights = nf4_weights(load_nf4(checkpoint))
        write_tensors(weights, root / "kinds" / name / "nf4" / "weights.safetensors")


PARTS = dict(
    checkpoints=part_checkpoints,
    processor=part_processor,
    tables=part_tables,
    models=part_models,
    answers=part_answers,
    shapes=part_shapes,
    kinds=part_kinds,
    manifest=write_manifest,
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="where to write (default: here)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, part in PARTS.items():
        if name in args.only:
            part(args.out)


if __name__ == "__main__":
    main()
