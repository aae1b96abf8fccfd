"""Ten thousand mixed requests with random cancels: every reply is right, and nothing is left behind."""

import collections
import json
import os
import random
import subprocess
import threading
import time

from serving import DEVICE, ROUNDING, Client, Generation, each, generations, greedy, questions, serve

REQUESTS = int(os.environ.get("PHALANX_SOAK_REQUESTS", "10000"))
LIMIT_S = float(os.environ.get("PHALANX_SOAK_LIMIT_S", "600"))
STREAMS = 48
MIB = 1 << 20


def gpu_bytes():
    """Memory in use on the first card that this process may see; 0 without one."""
    if DEVICE == "cpu":
        return 0
    card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    out = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", card], capture_output=True,
                         text=True, check=True).stdout
    return int(out.strip()) * MIB


class Soak:
    def __init__(self, client):
        self.client = client
        self.prompts = [prompt for prompt, _ in questions(24, seed=21)]
        self.alone = generations(client, self.prompts, 48, concurrency=8)
        self.margins, self.draws = [], {}
        self.done = collections.Counter()
        self.lock = threading.Lock()

    # Each kind takes a random generator and a prompt's number, and raises when a reply is wrong.
    def greedy(self, rng, i):
        ids = greedy(self.client, [self.prompts[i]], 48)[0]
        if (margin := self.alone[i].margin(ids)) is not None:
            with self.lock:
                self.margins.append(margin)

    def seeded(self, rng, i):
        """The same seed draws the same, up to rounding: differences are counted."""
        seed, n = rng.randrange(4), 1 + i % 3
        choices = self.client.choices(prompt=self.prompts[i], max_tokens=24, temperature=0.8, top_p=0.95, seed=seed, n=n,
                                      return_token_ids=True)
        assert len(choices) == n
        drawn = [c["token_ids"] for c in choices]
        with self.lock:
            first = self.draws.setdefault((i, seed), drawn)
            self.done["draws that differ"] += first != drawn

    def stream(self, rng, i):
        status, data = self.client.post({"messages": [{"role": "user", "content": f"{rng.randrange(9999)} + {i} = ?"}], "stream": True,
                                         "max_tokens": rng.randint(1, 80), "stream_options": {"include_usage": True}},
                                        "/v1/chat/completions")
        assert status == 200 and data.endswith(b"data: [DONE]\n\n"), data[-300:]
        events = [json.loads(event[6:]) for event in data.decode().split("\n\n")[:-2]]
        assert not any("error" in event for event in events) and events[-1]["usage"]["completion_tokens"] >= 1

    def logprobs(self, rng, i):
        choice = self.client.choices(prompt=self.prompts[i], max_tokens=16, temperature=rng.choice([0, 1]), logprobs=rng.randint(0, 20),
                                     prompt_logprobs=rng.choice([None, 0, 3]))[0]
        got = choice["logprobs"]["token_logprobs"]
        assert 1 <= len(got) <= 16 and all(value <= 1e-4 for value in got), got

    def penalties(self, rng, i):
        bias = {str(rng.randrange(500)): rng.choice([-100, 5])} if rng.random() < 0.5 else None
        choice = self.client.choices(prompt=self.prompts[i], max_tokens=rng.randint(1, 60), presence_penalty=rng.uniform(-2, 2),
                                     frequency_penalty=rng.uniform(-2, 2), repetition_penalty=rng.uniform(0.8, 1.5), logit_bias=bias)[0]
        assert choice["finish_reason"] in ("stop", "length")

    def narrowed(self, rng, i):
        choice = self.client.choices(prompt=self.prompts[i], max_tokens=40, min_tokens=10, top_k=rng.choice([1, 5, 50]),
                                     min_p=rng.choice([0, 0.05]), top_p=rng.choice([0.5, 1]), stop=["7", "\n\n"], return_token_ids=True)[0]
        assert len(choice["token_ids"]) >= 10

    def refused(self, rng, i):
        status, data = self.client.post({"prompt": self.prompts[i], "max_tokens": 10**6})
        assert status == 400, (status, data)

    def cancelled(self, rng, i):
        """Leaves at once, after the headers, or in mid-stream."""
        connection = self.client.connect()
        body = {"prompt": self.prompts[i], "max_tokens": 400, "ignore_eos": True, "stream": rng.random() < 0.8, "n": rng.choice([1, 1, 3])}
        try:
            if rng.random() < 0.3:
                connection.request("POST", "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
                time.sleep(rng.uniform(0, 0.02))
                return
            if not body["stream"]:
                connection.timeout = 0.01 + rng.random() * 0.05
            reply = self.client.send(connection, body)
            assert reply.status == 200
            reply.read(rng.randint(1, 4000))
        except TimeoutError:
            pass
        finally:
            connection.close()

    KINDS = {greedy: 25, seeded: 15, stream: 20, logprobs: 8, penalties: 8, narrowed: 8, refused: 2, cancelled: 14}

    def run(self, begin, end):
        """Requests `begin` to `end`, each decided by its number alone."""
        def one(number):
            rng = random.Random(number)
            kind = rng.choices(list(self.KINDS), self.KINDS.values())[0]
            kind(self, rng, rng.randrange(len(self.prompts)))
            with self.lock:
                self.done[kind.__name__] += 1
        each(one, range(begin, end), STREAMS)


def memory(cluster):
    processes = {"worker": cluster.workers[0], "router": cluster.router, "gateway": cluster.gateway}
    return {"gpu": gpu_bytes(), **{name: process.rss_bytes() for name, process in processes.items()}}


def test_soak(measured):
    # A KV cache of 1,500 tokens: of 48 streams some are preempted, and the prefix index is emptied again and again.
    with serve(flags=["--kv-cache-memory-bytes", 1500 * 6 * 2 * 2 * 64 * 2, "--max-model-len", 1024]) as cluster:
        client = Client(cluster)
        soak = Soak(client)
        marks, began = [], time.monotonic()
        for part in range(5):
            soak.run(part * REQUESTS // 5, (part + 1) * REQUESTS // 5)
            client.wait_idle()
            marks.append(memory(cluster))
            assert time.monotonic() - began < LIMIT_S, f"{LIMIT_S} s are over (PHALANX_SOAK_LIMIT_S)"
        seconds = time.monotonic() - began
        measured(f"{REQUESTS} requests in {seconds:.0f} s: " + ", ".join(f"{count} {kind}" for kind, count in sorted(soak.done.items())))
        measured(f"{client.gauge('vllm:num_preemptions_total'):.0f} preemptions, {client.gauge('vllm:generation_tokens_total'):.0f} tokens")
        rounded = [margin for margin in soak.margins if margin <= ROUNDING["bfloat16"]]
        measured(f"greedy: {len(soak.margins)} of {soak.done['greedy']} differ from the same alone")
        assert len(rounded) == len(soak.margins), f"differences that are no rounding: {sorted(soak.margins)[-5:]}"
        for name in marks[0]:
            measured(f"{name} memory after each fifth, MiB: " + ", ".join(f"{mark[name] / MIB:.0f}" for mark in marks))
        # Graphs and arenas may still grow in the first half; then nothing does.
        for name in marks[0]:
            assert marks[4][name] - marks[2][name] <= 32 * MIB, f"{name} grows: {[mark[name] // MIB for mark in marks]} MiB"
        assert client.gauge("phalanx_router_worker_losses_total") == 0
        # It still answers, and as before.
        after = each(lambda prompt: Generation(client, prompt, 48), soak.prompts, 8)
        assert all(margin is None or margin <= ROUNDING["bfloat16"] for margin in (a.margin(b.ids) for a, b in zip(soak.alone, after)))
        assert cluster.workers[0].stop() == 0
