"""The same model on the GPU and on the CPU: the same greedy answers."""

import json

import pytest

import tasks
from serving import SMOLLM2, SMOLLM2_FLAGS, SMOLLM2_PROMPTS, Client, compare, each, generations, needs_smollm2, questions, serve


@pytest.mark.parametrize("dtype, most", [("float32", 0), ("bfloat16", 0.1)])
def test_the_demo_model_answers_as_on_the_cpu(dtype, most, measured):
    prompts = [prompt for prompt, _ in questions(32)]
    with serve(dtype, device="cpu") as cluster:
        base = generations(Client(cluster), prompts, 160, concurrency=8)
    with serve(dtype) as cluster:
        compare("against the CPU", dtype, base, generations(Client(cluster), prompts, 160, concurrency=8), measured, most)


def test_the_demo_model_reckons_right(measured):
    rows = questions(80, seed=11)
    with serve() as cluster:
        client = Client(cluster)
        texts = each(lambda row: client.choices(prompt=row[0], max_tokens=700, temperature=0)[0]["text"], rows, 16)
    right = sum(tasks.check(text, expected) for text, (_, expected) in zip(texts, rows))
    measured(f"{right} of {len(rows)} answers are right")
    assert right >= 0.9 * len(rows)


@needs_smollm2
@pytest.mark.parametrize("dtype, most", [("float32", 0), ("bfloat16", 1)])
def test_smollm2_answers_as_on_the_cpu(dtype, most, measured):
    with serve(dtype, device="cpu", model=SMOLLM2, flags=SMOLLM2_FLAGS) as cluster:
        base = generations(Client(cluster), SMOLLM2_PROMPTS, 48, concurrency=8)
    with serve(dtype, model=SMOLLM2, flags=SMOLLM2_FLAGS) as cluster:
        compare("against the CPU", dtype, base, generations(Client(cluster), SMOLLM2_PROMPTS, 48, concurrency=8), measured, most)


def test_chat_plain_and_streamed_agree():
    body = {"messages": [{"role": "user", "content": "请计算：144500 ÷ 1156 等于多少？"}], "max_tokens": 1024, "temperature": 0}
    with serve() as cluster:
        client = Client(cluster)
        status, data = client.post(body, "/v1/chat/completions")
        assert status == 200, data
        message = json.loads(data)["choices"][0]["message"]
        status, data = client.post({**body, "stream": True}, "/v1/chat/completions")
        assert status == 200 and data.endswith(b"data: [DONE]\n\n")
    deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in data.decode().split("\n\n")[:-2]]
    assert "".join(d.get("content") or "" for d in deltas) == message["content"]
    assert message["content"].strip().endswith("125")
