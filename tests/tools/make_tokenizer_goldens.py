"""Writes tests/fixtures/text/{tokenizers.json,spm/,metaspace/,words/}: ids and texts from other implementations.

    python3 tests/tools/make_tokenizer_goldens.py   (needs tokenizers, regex, sentencepiece; build/deps from scripts/fetch_fixtures.sh)

Byte-level vocabularies are also run through a second implementation written here over the `regex` package, so that the
pre-tokenizer's patterns are not only compared with themselves. SmolLM2's GGUF has no other oracle than that.
"""
import io
import json
import os
import random
import sys

import regex
import sentencepiece
from tokenizers import Tokenizer

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from gguf_metadata import read_metadata  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEPS = os.environ.get("PHALANX_DEPS", os.path.join(ROOT, "build", "deps"))
OUT = os.path.join(ROOT, "tests", "fixtures", "text")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CORPUS = """The quick brown fox jumps over the lazy dog. Hello, world! This is a small text for a small vocabulary.
How many people live in the city of Paris? About two million people live there, they say. It's what I'd call large.
你好，世界。今天天气很好。请计算一百四十四除以十二。 Привет, мир! Как дела? Hola, ¿qué tal? Ça va très bien, merci beaucoup.
for (int i = 0; i < 10; ++i) { total += values[i]; }  return total;
""" * 4


def texts():
    rng = random.Random(7)
    out = ["", " ", "  ", "   leading", "trailing   ", "a", "Hello, world!", "Hello  world   x    y", "don't DON'T we'll I'M they'Re 's", "12345678 1 22 333 4444 ٣٤٥ Ⅷ ½",
           "tabs\tand\nnewlines\r\nand\n\n\nmore \n x", "你好，世界！请计算：144500 ÷ 1156 等于多少？", "日本語のテキスト、カタカナ、ひらがな。", "한국어 텍스트입니다", "مرحبا بالعالم", "שלום עולם", "हिन्दी पाठ",
           "ภาษาไทย", "Ελληνικά Кириллица", "👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 😀😀", "e\u0301 é ﬁ Å Å", "\u0000nul\u0000", "\u200b\u200d\ufeff", "\u00a0nbsp\u3000wide", "<|im_start|>user\nhi<|im_end|>\n", "a<|endoftext|>b", "<|begin_of_text|><|eot_id|>",
           "<think>x</think>", "</s><s><unk>", "<0x41>", "▁a ▁▁b", "def f(x):\n    return x  # ünï\n\n\tif x:\n\t\tpass", "http://example.com/a?b=c&d=%20#e", "{\"a\": [1, 2.5e-3, null]}", "ALLCAPS camelCase snake_case", "!!!??? ... --- ===>", "x" * 300,
           "ab" * 200, " " * 100, "\n" * 50, "\U0010ffff\U0001f468", "ǅ ß İ ı", "a\u0300\u0301\u0302", "1e10 0x1F 3.14159", "$100.00 €5 ¥3", "\x01\x02\x7f\x80\x9f", "\ufffd replacement"]
    ranges = [(32, 127), (0xA0, 0x250), (0x370, 0x600), (0x4E00, 0x5000), (0x1F300, 0x1F650), (0, 0x20), (0x2000, 0x2070), (0xAC00, 0xAD00), (0x0E00, 0x0E80)]
    for _ in range(40):
        picked = rng.sample(ranges, 3)
        out.append("".join(chr(rng.randrange(*rng.choice(picked))) if rng.random() > 0.15 else " " for _ in range(rng.randrange(1, 60))))
    for _ in range(10):
        out.append(bytes(rng.randrange(256) for _ in range(40)).decode("utf-8", "replace"))
    return out


def byte_alphabet():
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, extra = {}, 0
    for b in range(256):
        table[b] = chr(b) if b in own else chr(256 + extra)
        extra += b not in own
    return table


class SecondBpe:
    """Byte-level BPE in the plainest way: added tokens, regex, merges by rank."""

    def __init__(self, vocab, merges, added, stages, nfc=False, ignore_merges=False):
        self.vocab, self.added = vocab, added
        self.ranks = {tuple(m.split(" ")) if isinstance(m, str) else tuple(m): i for i, m in enumerate(merges)}
        self.stages, self.nfc, self.ignore = [regex.compile(s) for s in stages], nfc, ignore_merges
        self.alphabet = byte_alphabet()
        self.split = regex.compile("(" + "|".join(regex.escape(a) for a in sorted(added, key=len, reverse=True)) + ")")

    def words(self, text):
        parts = [text]
        for stage in self.stages:
            cut = []
            for part in parts:
                at = 0
                for m in stage.finditer(part):
                    cut += [part[at:m.start()], m.group()]
                    at = m.end()
                cut.append(part[at:])
            parts = [p for p in cut if p]
        return parts

    def word(self, word):
        symbols = [self.alphabet[b] for b in word.encode()]
        if self.ignore and "".join(symbols) in self.vocab:
            return [self.vocab["".join(symbols)]]
        while len(symbols) > 1:
            best = min(range(len(symbols) - 1), key=lambda i: self.ranks.get((symbols[i], symbols[i + 1]), 1 << 60))
            if (symbols[best], symbols[best + 1]) not in self.ranks:
                break
            symbols[best:best + 2] = [symbols[best] + symbols[best + 1]]
        # A byte that has no token is left out, as the library does without an unknown token.
        return [self.vocab[s] for s in symbols if s in self.vocab]

    def encode(self, text):
        import unicodedata
        ids = []
        for part in self.split.split(text) if self.added else [text]:
            if part in self.added:
                ids.append(self.added[part])
            elif part:
                part = unicodedata.normalize("NFC", part) if self.nfc else part
                ids += [i for w in self.words(part) for i in self.word(w)]
        return ids

    def decode(self, ids, special):
        names = {v: k for k, v in self.vocab.items()} | {v: k for k, v in self.added.items()}
        back = {c: b for b, c in self.alphabet.items()}
        out = b""
        for i in ids:
            name = names.get(i)
            if name is None or i in special:
                continue
            out += bytes(back[c] for c in name) if all(c in back for c in name) else name.encode()
        return out.decode("utf-8", "replace")


def id_lists(size, seed):
    rng = random.Random(seed)
    lists = [[rng.randrange(size) for _ in range(rng.randrange(1, 30))] for _ in range(24)]
    lists.append([size + 5, rng.randrange(size), 2**31 - 1])
    # Mostly the small ids: single bytes, which make broken and split characters.
    lists += [[rng.randrange(min(size, 280)) for _ in range(40)] for _ in range(16)]
    return lists + [[]]


def from_library(path, corpus, seed):
    hf = Tokenizer.from_file(path)
    size = max(hf.get_vocab(True).values()) + 1
    # What no text gives back whole: surrogates cannot be in Python's UTF-8 input, so plain texts are enough.
    return hf, {"ids": [hf.encode(t, add_special_tokens=False).ids for t in corpus],
                "special": [hf.encode(t, add_special_tokens=True).ids for t in corpus[:12]],
                "decodes": [{"ids": ids, "keep": hf.decode([i for i in ids if i < size], skip_special_tokens=False),
                             "skip": hf.decode([i for i in ids if i < size], skip_special_tokens=True)} for ids in id_lists(size, seed)]}


def check_second(name, path, corpus, golden):
    with open(path, encoding="utf-8") as f:
        json_ = json.load(f)
    split = json_["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    added = {t["content"]: t["id"] for t in json_["added_tokens"]}
    second = SecondBpe(json_["model"]["vocab"], json_["model"]["merges"], added, [split],
                       nfc=(json_["normalizer"] or {}).get("type") == "NFC", ignore_merges=json_["model"]["ignore_merges"])
    for text, ids in zip(corpus, golden["ids"]):
        assert second.encode(text) == ids, (name, text, second.encode(text), ids)


def smollm2(corpus):
    meta = read_metadata(os.path.join(DEPS, "models", "smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"))
    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    added = {t: i for i, (t, kind) in enumerate(zip(tokens, types)) if kind == 3}
    second = SecondBpe({t: i for i, t in enumerate(tokens)}, meta["tokenizer.ggml.merges"], added, [r"\p{N}", GPT2])
    special = set(added.values())
    return {"ids": [second.encode(t) for t in corpus], "special": [second.encode(t) for t in corpus[:12]],
            "decodes": [{"ids": ids, "keep": second.decode(ids, ()), "skip": second.decode(ids, special)} for ids in id_lists(len(tokens), 5)]}


def sentencepiece_model():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS.splitlines()), model_writer=model, vocab_size=600, model_type="bpe",
                                             byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity",
                                             remove_extra_whitespaces=False, split_digits=True, minloglevel=2, num_threads=1)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def write(name, body):
    path = os.path.join(OUT, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(body, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")
    return path


def tiny(spm):
    """tokenizer.json files of the kinds that no fetched model has."""
    tokens = [spm.id_to_piece(i) for i in range(spm.get_piece_size())]
    scores = {t: spm.get_score(i) for i, t in enumerate(tokens)}
    vocab = {t: i for i, t in enumerate(tokens)}
    merges = []
    for t in tokens[259:]:
        local = [(t[:i], t[i:], scores[t]) for i in range(1, len(t)) if t[:i] in vocab and t[i:] in vocab]
        merges += sorted(local, key=lambda m: (vocab[m[0]], vocab[m[1]]))
    merges.sort(key=lambda m: (m[2], len(m[0]), len(m[1])), reverse=True)
    added = [{"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} for i in range(3)]
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
             "byte_fallback": True, "vocab": vocab, "merges": [list(m[:2]) for m in merges]}
    frame = {"version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
             "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
             "added_tokens": added, "model": model, "post_processor": None, "pre_tokenizer": None}
    plain = dict(frame, truncation=None, padding=None)
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    llama = {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
             "decoder": {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}}
    meta = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    metaspace = {"normalizer": None, "pre_tokenizer": meta, "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, meta]}}
    words = {"normalizer": None, "decoder": None, "pre_tokenizer": {"type": "Whitespace"},
             "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "hello": 3, "world": 4, "a": 5}, "unk_token": "<unk>"}}
    write("spm/tokenizer.json", dict(frame, **llama))
    write("spm/tokenizer_config.json", {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "add_bos_token": True, "add_eos_token": False})
    write("metaspace/tokenizer.json", dict(plain, **metaspace))
    write("words/tokenizer.json", dict(plain, **words))
    # Goldens come from the same files without truncation and padding, which the room switches off.
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "spm.json")
        with open(path, "w", encoding="utf-8") as f:
            json.dump(dict(plain, **llama), f)
        hf = Tokenizer.from_file(path)
        return tokens, [scores[t] for t in tokens], hf


def valid_runs(hf, ids):
    """Whether every run of byte tokens is valid UTF-8, or holds nothing valid: where both decoders say the same."""
    run = b""
    for i in [*ids, -1]:
        name = hf.id_to_token(i) if i >= 0 else None
        if name and name.startswith("<0x") and len(name) == 6:
            run += bytes([int(name[3:5], 16)])
            continue
        try:
            run.decode()
        except UnicodeDecodeError:
            if any(c != "\ufffd" for c in run.decode("utf-8", "replace")):
                return False
        run = b""
    return True


def byte_fallback_goldens(hf, corpus):
    size = hf.get_vocab_size(True)
    lists = [ids for ids in id_lists(size, 9) if valid_runs(hf, [i for i in ids if i < size])]
    rng = random.Random(3)
    # Characters in byte tokens, whole and cut, between ordinary tokens.
    for _ in range(30):
        ids = []
        for _ in range(rng.randrange(1, 8)):
            if rng.random() < 0.5:
                raw = rng.choice(["é", "龘", "😀", "ก"]).encode()
                raw = raw[:rng.randrange(1, len(raw) + 1)]
                ids += [3 + b for b in raw]
            ids.append(rng.randrange(259, size))
        lists.append(ids)
    decodes = [{"ids": ids, "keep": hf.decode([i for i in ids if i < size], skip_special_tokens=False),
                "skip": hf.decode([i for i in ids if i < size], skip_special_tokens=True)} for ids in lists]
    return {"ids": [hf.encode(t, add_special_tokens=False).ids for t in corpus], "special": [], "decodes": decodes}


def main():
    corpus = texts()
    out = {"texts": corpus, "tokenizers": {}}
    places = {name: os.path.join(DEPS, "fixtures", "text", name, "tokenizer.json") for name in ("qwen3", "llama3", "llama3_1")}
    places["demo"] = os.path.join(ROOT, "models", "demo", "tokenizer.json")
    for seed, (name, path) in enumerate(places.items()):
        _, golden = from_library(path, corpus, seed)
        check_second(name, path, corpus, golden)
        out["tokenizers"][name] = golden
    out["tokenizers"]["smollm2"] = smollm2(corpus)
    spm = sentencepiece_model()
    tokens, scores, hf = tiny(spm)
    out["tokenizers"]["spm"] = byte_fallback_goldens(hf, corpus)
    out["tokenizers"]["metaspace"] = byte_fallback_goldens(Tokenizer.from_file(os.path.join(OUT, "metaspace", "tokenizer.json")), corpus)
    _, words = from_library(os.path.join(OUT, "words", "tokenizer.json"), corpus, 11)
    out["tokenizers"]["words"] = words
    kinds = [2] + [3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    # Texts that hold the marks or control tokens themselves are read differently by design.
    plain = [t for t in corpus if "▁" not in t and "<" not in t and "\0" not in t and t]
    out["sentencepiece"] = {"tokens": tokens, "scores": scores, "types": kinds, "texts": plain,
                            "ids": [spm.encode(t) for t in plain], "decoded": [spm.decode(spm.encode(t)) for t in plain]}
    path = write("tokenizers.json", out)
    print(path, os.path.getsize(path), "bytes,", len(corpus), "texts")


if __name__ == "__main__":
    main()
