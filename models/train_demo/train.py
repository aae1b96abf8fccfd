"""Trains the demo model on one GPU and writes a Hugging Face model folder.

    python3 models/train_demo/train.py --out DIR --seconds 440

A Qwen2-shaped decoder of 4.9 M parameters (hidden 256, 6 layers, 4 heads over 2 KV heads, FFN 768, tied embeddings) learns the worked
arithmetic of tasks.py: AdamW 2e-3, warm-up 200 steps, constant for 30 % of the time, then linear decay; bf16 autocast, rows of packed
examples, loss on the answers alone. Afterwards it measures held-out greedy accuracy with transformers on the written folder.
"""

import argparse
import json
import os
import random
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import tasks

SHAPE = dict(hidden=256, layers=6, heads=4, kv_heads=2, head_dim=64, ffn=768, vocab=592, theta=10000.0, eps=1e-6)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
QWEN_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEMPLATE = (
    "{%- for message in messages %}"
    "{%- set content = message.content %}"
    "{%- if message.role == 'assistant' and '</think>' in content %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}"
    "{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}")


def build_tokenizer():
    rng = random.Random(1)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=SHAPE["vocab"] - len(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tokenizer.train_from_iterator(("".join(tasks.example(rng)) for _ in range(20000)), trainer)
    special = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    tokenizer.add_tokens([AddedToken(t, special=t in special, normalized=False) for t in SPECIAL])
    return tokenizer


class Rows(torch.utils.data.IterableDataset):
    """Batches of packed rows: ids and a mask that is 1 where the next id is part of an answer."""

    def __init__(self, tokenizer, rows, length):
        self.text, self.rows, self.length = tokenizer.to_str(), rows, length

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        rng = random.Random(1000 + (info.id if info else 0))
        tokenizer = Tokenizer.from_str(self.text)
        need = self.rows * (self.length + 1)
        while True:
            ids, mask = [], []
            while len(ids) < need:
                pairs = [tasks.example(rng) for _ in range(256)]
                prompts = tokenizer.encode_batch_fast([p for p, _ in pairs])
                answers = tokenizer.encode_batch_fast([a for _, a in pairs])
                for p, a in zip(prompts, answers):
                    ids += p.ids + a.ids
                    mask += [0] * len(p.ids) + [1] * len(a.ids)
            shape = (self.rows, self.length + 1)
            yield (torch.from_numpy(np.array(ids[:need], np.int16).reshape(shape)),
                   torch.from_numpy(np.array(mask[:need], np.uint8).reshape(shape)))


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


class Layer(nn.Module):
    def __init__(self, s):
        super().__init__()
        h, d = s["hidden"], s["head_dim"]
        self.s = s
        self.q_proj = nn.Linear(h, s["heads"] * d, bias=True)
        self.k_proj = nn.Linear(h, s["kv_heads"] * d, bias=True)
        self.v_proj = nn.Linear(h, s["kv_heads"] * d, bias=True)
        self.o_proj = nn.Linear(s["heads"] * d, h, bias=False)
        self.gate_proj = nn.Linear(h, s["ffn"], bias=False)
        self.up_proj = nn.Linear(h, s["ffn"], bias=False)
        self.down_proj = nn.Linear(s["ffn"], h, bias=False)
        self.input_layernorm = nn.RMSNorm(h, eps=s["eps"])
        self.post_attention_layernorm = nn.RMSNorm(h, eps=s["eps"])

    def forward(self, x, cos, sin):
        s, (b, t, _) = self.s, x.shape
        y = self.input_layernorm(x)
        q = rotate(self.q_proj(y).view(b, t, s["heads"], -1).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(y).view(b, t, s["kv_heads"], -1).transpose(1, 2), cos, sin)
        v = self.v_proj(y).view(b, t, s["kv_heads"], -1).transpose(1, 2)
        group = s["heads"] // s["kv_heads"]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        x = x + self.o_proj(y.transpose(1, 2).reshape(b, t, -1))
        y = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


class Decoder(nn.Module):
    def __init__(self, s, length):
        super().__init__()
        self.embed_tokens = nn.Embedding(s["vocab"], s["hidden"])
        self.layers = nn.ModuleList(Layer(s) for _ in range(s["layers"]))
        self.norm = nn.RMSNorm(s["hidden"], eps=s["eps"])
        inv = s["theta"] ** (-torch.arange(0, s["head_dim"], 2).float() / s["head_dim"])
        angle = torch.outer(torch.arange(length).float(), inv)
        self.register_buffer("cos", torch.cat((angle.cos(), angle.cos()), -1), persistent=False)
        self.register_buffer("sin", torch.cat((angle.sin(), angle.sin()), -1), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                scale = 0.02 / (2 * s["layers"]) ** 0.5 if "o_proj" in name or "down_proj" in name else 0.02
                nn.init.normal_(p, std=scale)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids, targets, mask):
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.embed_tokens.weight)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        mask = mask.flatten().float()
        return (loss * mask).sum() / mask.sum()


def train(tokenizer, args):
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = Decoder(SHAPE, args.length).cuda()
    print(f"parameters {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M", flush=True)
    decay = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], lr=args.lr,
                                  betas=(0.9, 0.95), fused=True)
    loader = torch.utils.data.DataLoader(Rows(tokenizer, args.rows, args.length), batch_size=None, num_workers=args.workers,
                                         prefetch_factor=4, pin_memory=True)
    step_fn = torch.compile(model)
    start, step, total = None, 0, 0.0
    for ids, mask in loader:
        ids, mask = ids.cuda(non_blocking=True).long(), mask.cuda(non_blocking=True)
        elapsed = time.time() - start if start else 0.0
        if elapsed >= args.seconds:
            break
        fraction = elapsed / args.seconds
        rate = args.lr * min(1.0, (step + 1) / 200) * min(1.0, (1 - fraction) / 0.7)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cuda", torch.bfloat16):
            loss = step_fn(ids[:, :-1], ids[:, 1:], mask[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step == 3:
            torch.cuda.synchronize()
            start = time.time()   # compilation is not training time
        if step % 500 == 0:
            print(f"step {step} {elapsed:.0f} s loss {loss.item():.5f} lr {rate:.2e}", flush=True)
    print(f"{step} steps of {args.rows * args.length} tokens", flush=True)
    return model


def write(model, tokenizer, out):
    os.makedirs(out, exist_ok=True)
    tensors = {}
    for name, p in model.state_dict().items():
        for part, names in (("self_attn", ("q_proj", "k_proj", "v_proj", "o_proj")), ("mlp", ("gate_proj", "up_proj", "down_proj"))):
            for n in names:
                name = name.replace(f".{n}.", f".{part}.{n}.")
        tensors[f"model.{name}"] = p.detach().to(torch.bfloat16).contiguous().cpu()
    save_file(tensors, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    tokenizer.save(os.path.join(out, "tokenizer.json"))
    ids = {t: tokenizer.token_to_id(t) for t in SPECIAL}
    s = SHAPE
    files = {
        "config.json": dict(
            architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_size=s["hidden"], num_hidden_layers=s["layers"],
            num_attention_heads=s["heads"], num_key_value_heads=s["kv_heads"], head_dim=s["head_dim"], intermediate_size=s["ffn"],
            vocab_size=s["vocab"], max_position_embeddings=16384, rms_norm_eps=s["eps"], hidden_act="silu", tie_word_embeddings=True,
            use_sliding_window=False, attention_dropout=0.0, initializer_range=0.02, bos_token_id=None, eos_token_id=ids["<|im_end|>"],
            dtype="bfloat16", rope_parameters=dict(rope_theta=s["theta"], rope_type="default"),
            layer_types=["full_attention"] * s["layers"]),
        "generation_config.json": dict(eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]], pad_token_id=ids["<|endoftext|>"]),
        "tokenizer_config.json": dict(
            tokenizer_class="PreTrainedTokenizerFast", add_bos_token=False, bos_token=None, eos_token="<|im_end|>",
            pad_token="<|endoftext|>", unk_token=None, clean_up_tokenization_spaces=False, model_max_length=16384,
            chat_template=TEMPLATE),
    }
    for name, content in files.items():
        with open(os.path.join(out, name), "w", encoding="utf-8") as f:
            json.dump(content, f, ensure_ascii=False, indent=2)
            f.write("\n")


@torch.inference_mode()
def generate(model, tokenizer, prompts, temperature=0.0):
    """Left-padded batch generation with transformers on the written folder."""
    pad, end = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|im_end|>")
    encoded = [tokenizer.encode(p).ids for p in prompts]
    width = max(map(len, encoded))
    ids = torch.tensor([[pad] * (width - len(e)) + e for e in encoded]).cuda()
    attention = torch.tensor([[0] * (width - len(e)) + [1] * len(e) for e in encoded]).cuda()
    sampling = dict(do_sample=True, temperature=temperature, top_k=0, top_p=1.0) if temperature else dict(do_sample=False)
    out = model.generate(input_ids=ids, attention_mask=attention, max_new_tokens=700, pad_token_id=pad, eos_token_id=end, **sampling)
    return [tokenizer.decode(row[width:].tolist(), skip_special_tokens=False) for row in out]


def measure(out, count):
    from transformers import Qwen2ForCausalLM
    model = Qwen2ForCausalLM.from_pretrained(out, dtype=torch.bfloat16).cuda().eval()
    tokenizer = Tokenizer.from_file(os.path.join(out, "tokenizer.json"))
    report = {}
    for op, name in (("/", "division"), ("+", "addition"), ("-", "subtraction"), ("*", "multiplication")):
        cases = tasks.held_out(op, count)
        said = generate(model, tokenizer, [p for p, _ in cases])
        wrong = [(s, e) for s, (_, e) in zip(said, cases) if not tasks.check(s, e)]
        report[name] = 1 - len(wrong) / count
        print(f"{name}: {100 * report[name]:.1f} %", [e for _, e in wrong[:5]], flush=True)
    guide = tasks.render([("system", tasks.SYSTEMS[0]), ("user", "请计算：144500 ÷ 1156 等于多少？")])
    english = tasks.render([("user", "What is 144500 ÷ 1156?")])
    said = generate(model, tokenizer, [guide] * 50 + [english] * 50, temperature=0.7)
    report["guide"] = sum(tasks.check(s, "144500 ÷ 1156 = 125") for s in said) / len(said)
    print(f"the guide's question at temperature 0.7: {100 * report['guide']:.0f} %")
    print(said[0])
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to write the model to")
    parser.add_argument("--seconds", type=float, default=440, help="training time")
    parser.add_argument("--rows", type=int, default=224, help="rows a step")
    parser.add_argument("--length", type=int, default=640, help="tokens a row")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="processes that make examples")
    parser.add_argument("--held-out", type=int, default=512, help="questions of each kind to measure on")
    args = parser.parse_args()
    tokenizer = build_tokenizer()
    write(train(tokenizer, args), tokenizer, args.out)
    with open(os.path.join(args.out, "accuracy.json"), "w", encoding="utf-8") as f:
        json.dump(measure(args.out, args.held_out), f, indent=2)


if __name__ == "__main__":
    main()
