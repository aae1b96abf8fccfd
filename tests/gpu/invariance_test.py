"""Greedy tokens that do not depend on how a step was composed: chunks, neighbours, cache hits, preemption, graphs, a lost worker.

On a GPU the order of sums follows the shape of the step, so bf16 logits differ in their last bits. Where two ids are that close, a token
may change, and all after it; how often is measured and shown. In float32 no token may differ.
"""

import random
import threading

import pytest

from serving import (SMOLLM2, SMOLLM2_FLAGS, SMOLLM2_PROMPTS, Client, Generation, compare, each, generations, needs_smollm2, questions,
                     serve)

TOKENS = 96
MOST = {"float32": 0, "bfloat16": 0.1}  # share of generations that rounding may change


class Base:
    """Each prompt alone, nothing cached: what everything else is held against."""

    def __init__(self, dtype):
        self.dtype = dtype
        # Long prompts too, so that chunks and blocks have something to cut: earlier questions with their answers stand before.
        rows = questions(48, seed=3)
        self.prompts = [row[0] for row in rows[:12]]
        for i in range(4):
            before = "".join(prompt + f"\n</think>\n\n{answer}<|im_end|>\n" for prompt, answer in rows[12 + 8 * i:20 + 8 * i])
            self.prompts.append(before + rows[i][0])
        with serve(dtype, flags=["--no-enable-prefix-caching"]) as cluster:
            self.alone = generations(Client(cluster), self.prompts, TOKENS)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def base(request):
    return Base(request.param)


def check(base, client, measured, name, concurrency=1, prompts=None):
    order = list(range(len(base.prompts))) if prompts is None else prompts
    got = generations(client, [base.prompts[i] for i in order], TOKENS, concurrency)
    compare(name, base.dtype, [base.alone[i] for i in order], got, measured, MOST[base.dtype])


def test_among_others_and_from_the_cache(base, measured):
    with serve(base.dtype) as cluster:
        client = Client(cluster)
        check(base, client, measured, "alone, cold cache")
        before = client.gauge("vllm:prefix_cache_hits_total")
        check(base, client, measured, "alone, warm cache")
        assert client.gauge("vllm:prefix_cache_hits_total") > before
        for others in (1, 7, 63):
            with neighbours(client, others):
                check(base, client, measured, f"among {others} others")
        order = [i % len(base.prompts) for i in range(64)]
        random.Random(5).shuffle(order)
        check(base, client, measured, "64 together", 64, order)


class neighbours:
    """`count` sampled streams of other lengths that keep running."""

    def __init__(self, client, count):
        self.client, self.stop = client, threading.Event()
        self.threads = [threading.Thread(target=self.keep, args=(i,), daemon=True) for i in range(count)]

    def keep(self, index):
        rng = random.Random(index)
        rows = questions(16, seed=99)
        while not self.stop.is_set():
            self.client.post({"prompt": rng.choice(rows)[0], "max_tokens": rng.randint(8, 200), "temperature": 1.0, "ignore_eos": True})

    def __enter__(self):
        for thread in self.threads:
            thread.start()

    def __exit__(self, *exception):
        self.stop.set()
        for thread in self.threads:
            thread.join()


@pytest.mark.parametrize("tokens", [16, 64, 512, 8192])
def test_chunk_sizes(base, tokens, measured):
    with serve(base.dtype, flags=["--max-num-batched-tokens", tokens, "--max-num-seqs", min(tokens, 64)]) as cluster:
        check(base, Client(cluster), measured, "one at a time")
        check(base, Client(cluster), measured, "16 together", 16)


def test_eager(base, measured):
    with serve(base.dtype, flags=["--enforce-eager"]) as cluster:
        check(base, Client(cluster), measured, "one at a time")
        check(base, Client(cluster), measured, "16 together", 16)


def test_preemption(base, measured):
    # The longest prompt and its answer just fit; sixteen do not. The demo model takes 6144 bytes a token in float32.
    bytes_per_token = 6 * 2 * 2 * 64 * (4 if base.dtype == "float32" else 2)
    with serve(base.dtype, flags=["--kv-cache-memory-bytes", 1200 * bytes_per_token, "--max-model-len", 1024]) as cluster:
        client = Client(cluster)
        order = [i % len(base.prompts) for i in range(64)]
        check(base, client, measured, "64 together", 64, order)
        preempted = client.gauge("vllm:num_preemptions_total")
        measured(f"{preempted:.0f} preemptions")
        assert preempted > 0
        client.wait_idle()


def test_a_lost_worker(base, measured):
    """Streams move to the other worker and go on."""
    with serve(base.dtype, workers=2) as cluster:
        client = Client(cluster)
        killed = threading.Timer(0.3, cluster.workers[0].kill)
        killed.start()
        order = [i % len(base.prompts) for i in range(512)]
        got = each(lambda i: Generation(client, base.prompts[i], TOKENS), order, 32)
        killed.join()
        compare("32 at a time, one worker killed", base.dtype, [base.alone[i] for i in order], got, measured, MOST[base.dtype])
        moved = client.gauge("phalanx_router_resumes_total")
        measured(f"{moved:.0f} sequences moved")
        assert moved > 0


@needs_smollm2
@pytest.mark.parametrize("dtype, most", [("float32", 0), ("bfloat16", 1)])
def test_a_model_that_wavers(dtype, most, measured):
    """SmolLM2 often has two ids that are close: how often bf16 then takes the other one."""
    with serve(dtype, model=SMOLLM2, flags=SMOLLM2_FLAGS) as cluster:
        client = Client(cluster)
        alone = generations(client, SMOLLM2_PROMPTS, 64)
        compare("the same again", dtype, alone, generations(client, SMOLLM2_PROMPTS, 64), measured, most)
        compare("8 together", dtype, alone, generations(client, SMOLLM2_PROMPTS, 64, 8), measured, most)
        compare("64 together", dtype, alone * 8, generations(client, SMOLLM2_PROMPTS * 8, 64, 64), measured, most)
    with serve(dtype, model=SMOLLM2, flags=[*SMOLLM2_FLAGS, "--max-num-batched-tokens", 16, "--max-num-seqs", 16]) as cluster:
        compare("chunks of 16", dtype, alone, generations(Client(cluster), SMOLLM2_PROMPTS, 64), measured, most)
