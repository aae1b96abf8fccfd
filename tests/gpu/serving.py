"""A served model under test, greedy generation with margins, and what two generations of one prompt have to say about each other."""

import concurrent.futures
import contextlib
import glob
import http.client
import json
import os
import re
import tempfile
import threading
import urllib.parse

import pytest

import tasks
from harness import DEMO, ROOT, Cluster, wait_until

SMOLLM2 = next(iter(glob.glob(os.path.join(ROOT, "build", "deps", "models", "smollm2", "*.gguf"))), None)
SMOLLM2_FLAGS = ["--max-model-len", 1024]
SMOLLM2_PROMPTS = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in (
    "What is the capital of France?", "Write one sentence about the sea.", "List three colours.", "Why is the sky blue?",
    "Count from one to ten.", "Translate 'good morning' into Spanish.", "What is 2 + 2?", "Tell me a very short story.")]
needs_smollm2 = pytest.mark.skipif(SMOLLM2 is None, reason="SmolLM2 is not here: scripts/fetch_models.sh fetches it (98 MB)")
DEVICE = os.environ.get("PHALANX_TEST_DEVICE", "cuda")
# Logits of one prompt differ between shapes of a step by rounding alone. Two ids whose log-probabilities lie closer than this may change
# places; anything else is an error. bf16 keeps 8 bits: a value is off by up to 1/256 of itself after each of some dozens of operations.
ROUNDING = {"float32": 1e-3, "bfloat16": 0.25}
# How far the log-probability of one of the two best ids may lie from that of another run, before the first difference. The second best of
# the demo model is 5 to 15 behind, and so it shows errors that never change a token.
SHIFT = {"float32": 1e-3, "bfloat16": 0.6}


@contextlib.contextmanager
def serve(dtype="bfloat16", device=DEVICE, model=DEMO, workers=1, flags=()):
    """A cluster with real workers on `device`. Its KV cache is small, so that many fit on one card."""
    worker = ["--device", device, "--dtype", dtype]
    if "--kv-cache-memory-bytes" not in flags:
        worker += ["--kv-cache-memory-bytes", "268435456"]
    with tempfile.TemporaryDirectory() as folder:
        with Cluster(folder, model=model, fake=False, workers=workers, worker=(*worker, *map(str, flags))) as cluster:
            yield cluster


class Client:
    """JSON over connections that are kept, one a thread."""

    def __init__(self, cluster, timeout_s=120):
        self.netloc, self.timeout_s, self.own = urllib.parse.urlparse(cluster.url).netloc, timeout_s, threading.local()

    def connect(self):
        return http.client.HTTPConnection(self.netloc, timeout=self.timeout_s)

    def send(self, connection, body, path="/v1/completions"):
        connection.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return connection.getresponse()

    def post(self, body, path="/v1/completions"):
        """(status, bytes)"""
        if getattr(self.own, "connection", None) is None:
            self.own.connection = self.connect()
        try:
            reply = self.send(self.own.connection, body, path)
            return reply.status, reply.read()
        except BaseException:
            self.own.connection.close()
            self.own.connection = None
            raise

    def choices(self, **body):
        status, data = self.post(body)
        assert status == 200, data[:500]
        return json.loads(data)["choices"]

    def gauge(self, name):
        connection = self.connect()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        found = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? ([0-9.e+-]+)$", text, re.M)
        assert found, f"no {name} in /metrics"
        return sum(map(float, found))

    def wait_idle(self, limit_s=10):
        """No sequence is left, and no KV block is in use."""
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        wait_until(lambda: all(self.gauge(name) == 0 for name in names), limit_s, "the worker to be idle and its KV blocks to be free")


def questions(count, seed=7):
    """[(prompt, expected last line)] of the demo model, every kind of task."""
    parts = [tasks.held_out(op, -(-count // 4), seed) for op in "/*+-"]
    return [row for group in zip(*parts) for row in group][:count]


GREEDY = {"temperature": 0, "return_token_ids": True, "add_special_tokens": False}


def greedy(client, prompts, max_tokens, concurrency=1, **fields):
    """The token ids of each prompt's continuation."""
    def one(prompt):
        return client.choices(**{**GREEDY, "prompt": prompt, "max_tokens": max_tokens, **fields})[0]["token_ids"]
    return each(one, prompts, concurrency)


def each(function, rows, concurrency):
    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(function, rows))


class Generation:
    """A prompt's greedy ids with the two best ids at each place and their log-probabilities."""

    def __init__(self, client, prompt, max_tokens, **fields):
        choice = client.choices(**{**GREEDY, "prompt": prompt, "max_tokens": max_tokens, "logprobs": 2,
                                   "return_tokens_as_token_ids": True, **fields})[0]
        self.ids = choice["token_ids"]
        self.top = [{int(name.split(":")[1]): value for name, value in row.items()} for row in choice["logprobs"]["top_logprobs"]]

    def margin(self, other):
        """None if the ids `other` are the same. Else how far behind, at the first difference, its id was: infinity if it was not second."""
        for place, id in enumerate(self.ids):
            if place >= len(other):
                return float("inf")
            if other[place] != id:
                return self.top[place].get(id, float("inf")) - self.top[place].get(other[place], float("-inf"))
        return None if len(other) == len(self.ids) else float("inf")

    def shift(self, other):
        """The largest difference of a log-probability, up to the first place where the ids differ."""
        largest = 0.0
        for place, (mine, its) in enumerate(zip(self.top, other.top)):
            largest = max([largest, *(abs(mine[id] - its[id]) for id in mine.keys() & its.keys())])
            if self.ids[place] != other.ids[place]:
                break
        return largest


def generations(client, prompts, max_tokens, concurrency=1, **fields):
    return each(lambda prompt: Generation(client, prompt, max_tokens, **fields), prompts, concurrency)


def compare(name, dtype, base, others, measured, most):
    """Every difference must be a matter of rounding. `most`: the largest share of generations that may have another token."""
    margins = [margin for a, b in zip(base, others) if (margin := a.margin(b.ids)) is not None]
    worst, shift = max(margins, default=0.0), max(a.shift(b) for a, b in zip(base, others))
    measured(f"{name}: {len(margins)} of {len(others)} generations differ" + (f", margins up to {worst:.4f}" if margins else "")
             + f"; log-probabilities within {shift:.5f}")
    assert worst <= ROUNDING[dtype], f"{name}: another token that is no rounding, margin {worst}"
    assert shift <= SHIFT[dtype], f"{name}: a log-probability is off by {shift}"
    assert len(margins) <= most * len(others), f"{name}: {len(margins)} of {len(others)} differ"
