#!/usr/bin/env python3
"""Makes everything of such a checkpoint but its weights: tokenizer, chat template and configuration.

    pip install tokenizers==0.23.3
    vlm4d-train data demo --out demo --seed 1 --real-videos 400 --synthetic-videos 300 --size 56x56
    vlm4d-train data lessons --out lessons --seed 1 --videos 1000
    python data/nano/make.py demo lessons --out nano

That is for a training from the start (`vlm4d-train init nano`): the vocabulary is a new one, and the
weights that stand here know another.

The byte-level BPE learns its merges from the words of the demo set and of the lessons as a model reads
them: in VLM4D's prompts and Qwen's chat template. What belongs to Qwen2.5-VL's family (special tokens,
pattern that splits words, template, flags) is read from the tiny checkpoint of the tests.
"""

import argparse
import itertools
import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

FAMILY = Path(__file__).resolve().parents[2] / "tests/golden/ckpt/tiny-qwen2.5-vl"
# At most: merges end where every word is one token.
VOCAB = 1000
# VLM4D's prompts, as src/data/vlm4d.rs has them.
MC = (
    "\nQuestion: {question}\n{options}\nDo not generate any intermediate reasoning process. "
    "Answer directly with the option letter from the given choices.\n"
)
FF = (
    "\nQuestion: {question}\n\nDo not generate any intermediate reasoning process. "
    "Directly output the final short answer.\n"
)
# The data sets of `data lessons` that are learned from.
SETS = ("words", "pairs", "answers")
# config.json's keys of token ids.
TOKENS = dict(
    bos_token_id="endoftext",
    eos_token_id="im_end",
    vision_start_token_id="vision_start",
    vision_end_token_id="vision_end",
    vision_token_id="vision_pad",
    image_token_id="image_pad",
    video_token_id="video_pad",
)
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|><|video_pad|><|vision_end|>{prompt}<|im_end|>\n<|im_start|>assistant\n"
    "{answer}<|im_end|>\n"
)


def family(name):
    return json.loads((FAMILY / name).read_text())


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def turns(demo, lessons):
    """Every prompt and answer: the demo set's in both formats, the lessons' as they stand."""
    for path in sorted((demo / "QA").glob("*_mc.json")):
        for item in json.loads(path.read_text()):
            options = "".join(f"{k}: {v}\n" for k, v in item["choices"].items())
            letter = next(k for k, v in item["choices"].items() if v == item["answer"])
            for prompt, answer in ((MC, letter), (FF, item["answer"])):
                yield prompt.format(question=item["question"], options=options), answer
    sets = (json.loads((lessons / f"{name}.json").read_text()) for name in SETS)
    for row in itertools.chain(*sets):
        texts = [message["content"].replace("<video>", "") for message in row["messages"]]
        yield from zip(texts[::2], texts[1::2])


def corpus(demo, lessons, pattern):
    """Every word of the turns in the chat template, once, so that how often data says it does not
    matter; special tokens are left out."""
    special = [token["content"] for token in family("tokenizer.json")["added_tokens"]]
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
    words = set()
    for prompt, answer in turns(demo, lessons):
        text = CHAT.format(prompt=prompt, answer=answer)
        for token in special:
            text = text.replace(token, "\0")
        for part in filter(None, text.split("\0")):
            words.update(word for word, _ in split.pre_tokenize_str(part))
    return sorted(words)


def train(texts, pattern):
    """Byte-level BPE: vocabulary by id and merges as "a b"."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = dict(sorted(model["vocab"].items(), key=lambda entry: entry[1]))
    return vocab, [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]


def write_tokenizer(demo, lessons, out):
    """Writes the tokenizer's files; returns the ids of the special tokens."""
    tokenizer, config = family("tokenizer.json"), family("tokenizer_config.json")
    pattern = tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    vocab, merges = train(corpus(demo, lessons, pattern), pattern)
    for i, token in enumerate(tokenizer["added_tokens"]):
        token["id"] = len(vocab) + i
    tokenizer["model"].update(vocab=vocab, merges=merges)
    flags = [token.copy() for token in tokenizer["added_tokens"]]
    config["added_tokens_decoder"] = {str(flag.pop("id")): flag for flag in flags}
    write(out / "tokenizer.json", tokenizer)
    write(out / "tokenizer_config.json", config)
    write(out / "vocab.json", vocab)
    (out / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    for name in ("chat_template.jinja", "chat_template.json", "preprocessor_config.json"):
        (out / name).write_bytes((FAMILY / name).read_bytes())
    return {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


def write_config(ids, out):
    """Qwen2.5-VL's config.json on a small scale; and greedy decoding."""
    config = family("config.json")
    config.update({key: ids[f"<|{token}|>"] for key, token in TOKENS.items()})
    top = max(ids.values()) + 1
    config.update(
        vocab_size=-(-top // 64) * 64,
        # 0.02 is for wide layers: in these, attention would stay even for long.
        initializer_range=0.07,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=6,
        max_window_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        # Sections go from high frequencies to low ones. Shared out evenly, those of height and width
        # would not tell one token of a small frame from the next.
        rope_theta=1000.0,
        rope_scaling={"type": "mrope", "mrope_section": [1, 2, 13]},
    )
    config["vision_config"].update(
        depth=4,
        hidden_size=128,
        intermediate_size=344,
        num_heads=4,
        out_hidden_size=128,
        window_size=56,
        fullatt_block_indexes=[1, 3],
    )
    write(out / "config.json", config)
    pad, end = ids["<|endoftext|>"], ids["<|im_end|>"]
    write(
        out / "generation_config.json",
        dict(bos_token_id=pad, pad_token_id=pad, eos_token_id=[end, pad], do_sample=False),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("demo", type=Path, help="a folder that `vlm4d-train data demo` made")
    parser.add_argument("lessons", type=Path, help="one that `vlm4d-train data lessons` made")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out} is there already")
    args.out.mkdir(parents=True)
    write_config(write_tokenizer(args.demo, args.lessons, args.out), args.out)


if __name__ == "__main__":
    main()
