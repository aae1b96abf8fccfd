#!/usr/bin/env python3
"""Makes tests/fixtures/models: tiny random models of every family with the logits and greedy tokens of transformers.

    python3 -m venv V && V/bin/pip install -r scripts/requirements-goldens.txt
    V/bin/python tests/tools/make_goldens.py [--smollm2 FILE.gguf]

Each folder holds a model as users have them (config.json and safetensors, or a .gguf) and golden.safetensors:
  input_ids [n] i64, logits [n, vocab] f32 (fp32 arithmetic on the stored weights), logits_bf16 [n, vocab] f32 (transformers in
  bfloat16), greedy [m] i64 (fp32 continuation).
blocks.gguf holds random blocks of every encoding and what the `gguf` package decodes them to.
smollm2_oracle.json holds token ids of three prompts and their mean log-probability on the real SmolLM2 file.
The committed files are what the tests read; nothing here runs in them.
"""
import argparse
import json
import pathlib
import shutil

import gguf
import numpy as np
import torch
import transformers
from gguf.quants import dequantize, quantize
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "models"
PROMPT = 40
GREEDY = 24
VOCAB = 96
Q = gguf.GGMLQuantizationType

LLAMA = dict(cls="Llama", hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)

# name -> the family's fields; "store" is the checkpoint's dtype, "dialect" the transformers version that config.json imitates.
MODELS = {
    "llama_mha": dict(LLAMA, store=torch.float32, dialect=4, rope=dict(rope_type="default", rope_theta=5000.0)),
    "llama3_rope": dict(LLAMA, num_attention_heads=6, num_key_value_heads=2, hidden_size=96, tie_word_embeddings=True,
                        store=torch.bfloat16, dialect=5,
                        rope=dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                  original_max_position_embeddings=64)),
    "llama_linear": dict(LLAMA, num_key_value_heads=2, attention_bias=True, mlp_bias=True, store=torch.float32, dialect=4,
                         rope=dict(rope_type="linear", rope_theta=10000.0, factor=2.0)),
    "mistral_window": dict(LLAMA, cls="Mistral", num_key_value_heads=1, sliding_window=11, head_dim=16, store=torch.float16, dialect=4,
                           rope=dict(rope_type="default", rope_theta=10000.0)),
    "qwen2_g7": dict(LLAMA, cls="Qwen2", num_attention_heads=7, num_key_value_heads=1, hidden_size=56, head_dim=8,
                     tie_word_embeddings=True, store=torch.bfloat16, dialect=5, shards=3,
                     rope=dict(rope_type="default", rope_theta=10000.0)),
    "qwen2_window": dict(LLAMA, cls="Qwen2", num_key_value_heads=2, use_sliding_window=True, sliding_window=9, max_window_layers=1,
                         store=torch.float32, dialect=4, rope=dict(rope_type="default", rope_theta=10000.0)),
    "qwen3": dict(LLAMA, cls="Qwen3", num_attention_heads=6, num_key_value_heads=2, head_dim=24, store=torch.bfloat16, dialect=5,
                  rope=dict(rope_type="default", rope_theta=1000000.0)),
}

# name -> (source fields, encodings of the matrices in turn).
GGUF_MODELS = {
    "gguf_llama": (dict(MODELS["llama3_rope"], tie_word_embeddings=False),
                   [Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.F16, Q.BF16, Q.F32]),
    "gguf_qwen2": (dict(LLAMA, cls="Qwen2", num_key_value_heads=2, tie_word_embeddings=True, store=torch.float32,
                        rope=dict(rope_type="default", rope_theta=10000.0)), [Q.Q8_0, Q.F16]),
    "gguf_qwen3": (dict(LLAMA, cls="Qwen3", num_key_value_heads=2, head_dim=32, store=torch.float32,
                        rope=dict(rope_type="default", rope_theta=10000.0)), [Q.Q5_1, Q.Q8_0]),
}


def make_model(fields, seed):
    fields = {k: v for k, v in fields.items() if k not in ("store", "dialect", "shards")}
    cls = fields.pop("cls")
    rope = fields.pop("rope")
    config = getattr(transformers, cls + "Config")(
        vocab_size=VOCAB, max_position_embeddings=256, rms_norm_eps=1e-5, rope_parameters=rope, bos_token_id=1, eos_token_id=2,
        attn_implementation="eager", **{k: v for k, v in fields.items()})
    model = getattr(transformers, cls + "ForCausalLM")(config).eval().float()
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if "norm" in name:
            value.data = 1 + 0.2 * noise
        elif name.endswith("bias"):
            value.data = 0.3 * noise
        elif "embed_tokens" in name:
            value.data = 0.5 * noise
        else:
            value.data = 1.4 * noise / value.shape[1] ** 0.5
    return model


def round_weights(model, dtype):
    for value in model.parameters():
        value.data = value.data.to(dtype).float()


def golden(model, folder, seed):
    ids = torch.randint(3, VOCAB, (1, PROMPT), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        logits = model(ids).logits[0]
        known = ids
        for _ in range(GREEDY):
            known = torch.cat([known, model(known).logits[:, -1:].argmax(-1)], dim=1)
        import copy
        logits_bf16 = copy.deepcopy(model).bfloat16()(ids).logits[0].float()
    save_file({"input_ids": ids[0].contiguous(), "logits": logits.contiguous(), "logits_bf16": logits_bf16.contiguous(),
               "greedy": known[0, PROMPT:].contiguous()}, folder / "golden.safetensors")
    print(f"{folder.name}: |logits| {logits.abs().max():.2f}, bf16 differs by {(logits - logits_bf16).abs().max():.3f}")


def config_json(model, fields):
    config = model.config.to_dict()
    for key in ("transformers_version", "_name_or_path", "dtype", "_attn_implementation", "attn_implementation"):
        config.pop(key, None)
    config["architectures"] = [type(model).__name__]
    dtype = str(fields["store"]).removeprefix("torch.")
    if fields["dialect"] == 5:
        config["dtype"] = dtype
    else:
        config["torch_dtype"] = dtype
        rope = dict(config.pop("rope_parameters"))
        config.pop("layer_types", None)
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope["rope_type"] == "default" else {"type": rope.pop("rope_type"), **rope}
        if fields["cls"] == "Qwen2" and fields.get("use_sliding_window"):
            config.update(use_sliding_window=True, sliding_window=fields["sliding_window"], max_window_layers=fields["max_window_layers"])
    return config


def save_checkpoint(model, folder, fields):
    tensors = {k: v.to(fields["store"]).contiguous() for k, v in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    shards = fields.get("shards", 1)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {n: tensors[n] for n in names[i::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map.update({n: file for n in part})
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1))


def permute(weight, heads):
    """What llama's GGUF converters do to rows of q and k: HF row (half, i) of a head becomes row 2 i + half."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[rest]}.{kind}"
    return f"{GGUF_NAMES[stem]}.{kind}"


def save_gguf(model, folder, fields, encodings):
    config = model.config
    arch = fields["cls"].lower()
    writer = gguf.GGUFWriter(folder / "model.gguf", arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if "head_dim" in fields:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    writer.add_array("tokenizer.ggml.tokens", [f"<{i}>" for i in range(VOCAB)])
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(1)
    turn = 0
    state = model.state_dict()
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    for name, value in state.items():
        data = value.numpy().astype(np.float32)
        encoding = Q.F32
        if data.ndim == 2:
            encoding = encodings[turn % len(encodings)]
            turn += 1
        encoded = quantize(data, encoding)
        value.copy_(torch.from_numpy(dequantize(encoded, encoding).astype(np.float32).reshape(data.shape).copy()))
        if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            encoded = permute(encoded, heads)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(encoded), raw_dtype=encoding)
    if config.rope_parameters["rope_type"] == "llama3":
        rotary = model.model.rotary_emb
        plain = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, rotary.inv_freq.shape[0]) * 2.0 / (rotary.inv_freq.shape[0] * 2))
        writer.add_tensor("rope_freqs.weight", (plain / rotary.inv_freq).numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_blocks(path):
    """Random blocks of every encoding. Scales are finite halves; everything else is any byte."""
    rng = np.random.default_rng(7)
    halves = {Q.Q8_0: [0], Q.Q4_0: [0], Q.Q4_1: [0, 2], Q.Q5_0: [0], Q.Q5_1: [0, 2], Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208]}
    writer = gguf.GGUFWriter(path, "blocks")
    for kind in [Q.F16, Q.BF16, *halves]:
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        count = 2048 // elements
        if kind == Q.F16:
            raw = np.arange(0, 65536, 29, dtype=np.uint16)[:2048]
            raw = np.where((raw & 0x7C00) == 0x7C00, raw & 0x83FF, raw).astype(np.uint16).view(np.uint8).reshape(1, -1)
        else:
            raw = rng.integers(0, 256, (count, size), dtype=np.uint8)
            if kind == Q.BF16:
                raw = rng.standard_normal(2048).astype(np.float32).view(np.uint32).__rshift__(16).astype(np.uint16).view(np.uint8)
            for at in halves.get(kind, []):
                scale = (rng.standard_normal(count) * rng.choice([1e-6, 0.01, 1.0], count)).astype(np.float16)
                raw[:, at:at + 2] = scale.view(np.uint8).reshape(count, 2)
            raw = raw.reshape(1, -1)
        decoded = dequantize(raw, kind).astype(np.float32).reshape(-1)
        writer.add_tensor(kind.name, np.ascontiguousarray(raw), raw_dtype=kind)
        writer.add_tensor(kind.name + ".decoded", decoded)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_oracle(file, out):
    file = pathlib.Path(file)
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    prompts = [
        "The capital of France is Paris. It lies on the river Seine, and about two million people live there.",
        "def add(a, b):\n    \"\"\"Returns the sum of two numbers.\"\"\"\n    return a + b\n\nprint(add(2, 3))\n",
        tokenizer.apply_chat_template([{"role": "user", "content": "Why is the sky blue?"}], tokenize=False, add_generation_prompt=True)
        + "The sky appears blue because air scatters short wavelengths of sunlight more than long ones.",
    ]
    rows = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(-1)
            greedy = model.generate(ids, max_new_tokens=16, do_sample=False, eos_token_id=None)[0, ids.shape[1]:]
        mean = logprobs[:-1].gather(1, ids[0, 1:, None]).mean().item()
        rows.append({"ids": ids[0].tolist(), "mean_logprob": round(mean, 6), "greedy": greedy.tolist()})
        print(f"smollm2: {ids.shape[1]} ids, mean log-probability {mean:.4f}")
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    out.write_text("[\n" + lines + "\n]\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", help="the GGUF that scripts/fetch_models.sh fetches; without it the oracle is left as it is")
    args = parser.parse_args()
    torch.set_num_threads(2)
    for seed, (name, fields) in enumerate(MODELS.items()):
        folder = ROOT / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        model = make_model(fields, seed)
        round_weights(model, fields["store"])
        save_checkpoint(model, folder, fields)
        (folder / "config.json").write_text(json.dumps(config_json(model, fields), indent=1) + "\n")
        golden(model, folder, seed)
    for seed, (name, (fields, encodings)) in enumerate(GGUF_MODELS.items()):
        folder = ROOT / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        model = make_model(fields, 100 + seed)
        save_gguf(model, folder, fields, encodings)
        golden(model, folder, seed)
    make_blocks(ROOT / "blocks.gguf")
    if args.smollm2:
        make_oracle(args.smollm2, ROOT / "smollm2_oracle.json")


if __name__ == "__main__":
    main()
