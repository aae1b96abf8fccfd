#!/usr/bin/env python3
"""Makes model folders of real shapes with random weights: speed does not depend on what a model has learned.

    bench/shapes.py 1.5b OUT              config.json, tokenizer and model.safetensors (3.1 GB)
    bench/shapes.py 7b OUT --no-weights   without the weights, for `--load-format dummy`

The tokenizer is the demo model's, filled up so that every id of the vocabulary has a text: otherwise most tokens of a random model are
empty, no event is written, and TTFT and TPOT mean nothing. The weights are bf16 of either sign and magnitude 1/64 to 1/32 (random mantissas:
products of constants run faster than real ones), one block of 8 MB over and over; norm weights are 1.
"""

import argparse
import json
import os
import random
import shutil
import struct

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DEMO = os.path.join(ROOT, "models", "demo")

QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6,
         "max_position_embeddings": 32768, "torch_dtype": "bfloat16"}
SHAPES = {
    # Published dimensions. The head is untied where the model's is; a decode step reads the same bytes either way.
    "1.5b": {**QWEN2, "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
             "intermediate_size": 8960, "vocab_size": 151936, "tie_word_embeddings": True, "eos_token_id": 151643},
    "7b": {**QWEN2, "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
           "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False, "eos_token_id": 151643},
}
BLOCK = 4 * 1024 * 1024 - 3  # values; odd, so that rows do not repeat


def tensors(c):
    """(name, shape, whether it is a norm's weight)"""
    hidden, inter, vocab = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    head_dim = hidden // c["num_attention_heads"]
    widths = {"q": hidden, "k": c["num_key_value_heads"] * head_dim, "v": c["num_key_value_heads"] * head_dim}
    yield "model.embed_tokens.weight", [vocab, hidden], False
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for name, width in widths.items():
            yield f"{at}self_attn.{name}_proj.weight", [width, hidden], False
            yield f"{at}self_attn.{name}_proj.bias", [width], False
        yield f"{at}self_attn.o_proj.weight", [hidden, hidden], False
        yield f"{at}mlp.gate_proj.weight", [inter, hidden], False
        yield f"{at}mlp.up_proj.weight", [inter, hidden], False
        yield f"{at}mlp.down_proj.weight", [hidden, inter], False
        yield f"{at}input_layernorm.weight", [hidden], True
        yield f"{at}post_attention_layernorm.weight", [hidden], True
    yield "model.norm.weight", [hidden], True
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", [vocab, hidden], False


def random_block():
    """BLOCK bf16 values: sign and mantissa are random, the exponent is that of 1/64."""
    size = 2 * BLOCK
    bits = int.from_bytes(random.Random(0).randbytes(size), "little")
    keep, exponent = (int.from_bytes(value.to_bytes(2, "little") * BLOCK, "little") for value in (0x807F, 0x3C80))
    return (bits & keep | exponent).to_bytes(size, "little")


def write_weights(c, path):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in tensors(c):
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + 2 * count]}
        at += 2 * count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block, one = random_block(), struct.pack("<H", 0x3F80)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, _, norm in tensors(c):
            left = header[name]["data_offsets"][1] - header[name]["data_offsets"][0]
            if norm:
                f.write(one * (left // 2))
                continue
            while left > 0:
                f.write(block[:left])
                left -= min(left, len(block))


def write_tokenizer(vocab, folder):
    with open(os.path.join(DEMO, "tokenizer.json"), encoding="utf-8") as f:
        tokenizer = json.load(f)
    known = tokenizer["model"]["vocab"]
    used = set(known.values()) | {token["id"] for token in tokenizer["added_tokens"]}
    known.update({f"t{i}": i for i in range(vocab) if i not in used})
    with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(tokenizer, f)
    shutil.copy(os.path.join(DEMO, "tokenizer_config.json"), folder)


def make(shape, folder, weights=True):
    config = SHAPES[shape]
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f, indent=1)
    write_tokenizer(config["vocab_size"], folder)
    if weights:
        write_weights(config, os.path.join(folder, "model.safetensors"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("out")
    parser.add_argument("--no-weights", action="store_true")
    arguments = parser.parse_args()
    make(arguments.shape, arguments.out, not arguments.no_weights)
