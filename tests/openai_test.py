"""The published OpenAI clients (Python, Node), grpcurl and a typed gRPC client against the real processes and the real demo model."""

import json
import os
import re
import subprocess
import sys

import grpc
import openai
import pytest

from harness import BUILD, DEMO, ROOT, Cluster

DEPS = os.path.join(ROOT, "build", "deps")
SMOLLM2 = os.path.join(DEPS, "models", "smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
GUIDE = [{"role": "system", "content": "你是一个数学助手，擅长计算和解释数字。"}, {"role": "user", "content": "请计算：144500 ÷ 1156 等于多少？"}]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("openai"), fake=False, worker=("--kv-cache-memory-bytes", "256M")) as it:
        yield it


@pytest.fixture(scope="module")
def client(cluster):
    return openai.OpenAI(base_url=cluster.url + "/v1", api_key="none", max_retries=0, timeout=120)


def answer(client, messages, **options):
    return client.chat.completions.create(model="demo", messages=messages, max_tokens=1024, **options)


def test_the_guides_question_plain_and_streamed(client):
    reply = answer(client, GUIDE, temperature=0.7, seed=1)
    assert "125" in reply.choices[0].message.content and reply.choices[0].finish_reason == "stop"
    assert "1156" in reply.choices[0].message.reasoning_content
    content, reasoning, usage = "", "", None
    for chunk in answer(client, GUIDE, temperature=0.7, seed=1, stream=True, stream_options={"include_usage": True}):
        if chunk.choices:
            content += chunk.choices[0].delta.content or ""
            reasoning += getattr(chunk.choices[0].delta, "reasoning_content", None) or ""
        usage = chunk.usage or usage
    assert (content, reasoning) == (reply.choices[0].message.content, reply.choices[0].message.reasoning_content)
    assert usage.completion_tokens == reply.usage.completion_tokens


@pytest.mark.parametrize("question, result", [
    ("What is 144500 / 1156?", "125"), ("请计算：73 × 48 等于多少？", "3504"), ("What is 987654 + 12345?", "999999"), ("请计算：5000 - 1234 等于多少？", "3766")])
def test_the_demo_model_computes(client, question, result):
    assert result in answer(client, [{"role": "user", "content": question}], temperature=0).choices[0].message.content


def test_python_stream_helper_and_parallel_choices(client):
    with client.chat.completions.stream(model="demo", messages=GUIDE, max_tokens=1024, n=2, seed=3, logprobs=True, top_logprobs=2) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert [c.index for c in final.choices] == [0, 1] and all(c.finish_reason == "stop" for c in final.choices)
    assert all("125" in c.message.content and len(c.logprobs.content) > 100 for c in final.choices)


def test_python_completions_models_and_errors(client):
    reply = client.completions.create(model="demo", prompt=["1+1=", "2+2="], max_tokens=5, temperature=0, logprobs=1, echo=True)
    assert len(reply.choices) == 2 and reply.choices[0].text.startswith("1+1=")
    assert [m.id for m in client.models.list()] == ["demo"] and client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError) as missing:
        answer(client.with_options(max_retries=0), GUIDE, extra_body={"model": "other"})
    assert missing.value.code == "model_not_found" and missing.value.request_id
    with pytest.raises(openai.BadRequestError) as bad:
        answer(client, GUIDE, temperature=-1)
    assert bad.value.param == "temperature"


def test_greedy_logprobs_are_consistent(client):
    """What the model says of a text as prompt equals what it said when it made the text."""
    made = client.completions.create(model="demo", prompt="12 + 30 =", max_tokens=12, temperature=0, logprobs=1)
    text, scores = made.choices[0].text, made.choices[0].logprobs
    again = client.completions.create(model="demo", prompt="12 + 30 =" + text, max_tokens=0, echo=True, logprobs=1)
    tail = again.choices[0].logprobs.token_logprobs[-len(scores.token_logprobs):]
    if again.choices[0].logprobs.tokens[-len(scores.tokens):] == scores.tokens:  # the text may tokenise differently
        assert tail == pytest.approx(scores.token_logprobs, abs=1e-3)


def test_seeds_repeat_and_differ(client):
    def text(seed):
        return client.completions.create(model="demo", prompt="A", max_tokens=30, temperature=1.5, seed=seed).choices[0].text
    assert text(1) == text(1) != text(2)


def test_node_client(cluster):
    done = subprocess.run(["node", "client.mjs", cluster.url], cwd=os.path.join(ROOT, "tests", "openai_node"), capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert "125" in report["plain"] and report["plain"] == report["streamed"]
    assert report["finish"] == ["stop", "stop"] and report["models"] == ["demo"]
    assert report["error"] == {"status": 400, "param": "temperature"} and report["missing"] == 404


# ---- the native door


@pytest.fixture(scope="module")
def native(cluster, tmp_path_factory):
    """Python stubs of phalanx.v1, made from the protos as a client would."""
    folder = tmp_path_factory.mktemp("stubs")
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I", os.path.join(ROOT, "proto"), f"--python_out={folder}",
                    f"--grpc_python_out={folder}", "phalanx/v1/inference.proto", "phalanx/v1/sampling.proto"], check=True, timeout=60)
    sys.path.insert(0, str(folder))
    from phalanx.v1 import inference_pb2, inference_pb2_grpc
    with grpc.insecure_channel(native_address(cluster)) as channel:
        yield inference_pb2_grpc.InferenceStub(channel), inference_pb2


def native_address(cluster):
    return next(m.group(1) for line in cluster.router.log if (m := re.search(r"listening on (127\.0\.0\.1:\d+)", line)))


def test_native_chat_complete_tokenize_list(native, client):
    stub, pb = native
    assert [m.id for m in stub.ListModels(pb.ListModelsRequest()).models] == ["demo"]
    messages = [pb.Message(role=m["role"], content=m["content"]) for m in GUIDE]
    request = pb.ChatRequest(messages=messages)
    request.sampling.temperature, request.sampling.max_tokens, request.sampling.seed = 0.7, 1024, 1
    chunks = list(stub.Chat(request))
    reply = answer(client, GUIDE, temperature=0.7, seed=1)
    assert "".join(c.content for c in chunks) == reply.choices[0].message.content
    assert "".join(c.reasoning_content for c in chunks) == reply.choices[0].message.reasoning_content
    assert chunks[-1].usage.completion_tokens == reply.usage.completion_tokens == sum(len(c.token_ids) for c in chunks)
    ids = stub.Tokenize(pb.TokenizeRequest(text="12 + 30 =")).ids
    complete = pb.CompleteRequest(tokens=pb.TokenList(ids=ids))
    complete.sampling.temperature, complete.sampling.max_tokens = 0, 12
    text = "".join(c.text for c in stub.Complete(complete))
    assert text == client.completions.create(model="demo", prompt="12 + 30 =", max_tokens=12, temperature=0).choices[0].text


def test_native_errors_are_statuses(native):
    stub, pb = native
    for change, code in ((lambda r: setattr(r, "model", "x"), grpc.StatusCode.NOT_FOUND),
                         (lambda r: setattr(r.sampling, "temperature", -1), grpc.StatusCode.INVALID_ARGUMENT),
                         (lambda r: r.sampling.stop_token_ids.append(2**32 - 1), grpc.StatusCode.INVALID_ARGUMENT)):
        request = pb.CompleteRequest(text="a")
        change(request)
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.Complete(request))
        assert refused.value.code() == code and refused.value.details()


def test_grpcurl(cluster):
    done = subprocess.run([os.path.join(DEPS, "bin", "grpcurl"), "-plaintext", "-import-path", os.path.join(ROOT, "proto"), "-proto",
                           "phalanx/v1/inference.proto", "-d", '{"text": "1+1=", "sampling": {"maxTokens": 3, "temperature": 0}}',
                           native_address(cluster), "phalanx.v1.Inference/Complete"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert '"finishReason": "FINISH_REASON_LENGTH"' in done.stdout and '"completionTokens": 3' in done.stdout


# ---- a real small model in GGUF form


def test_smollm2_chats_and_scores_as_transformers_does(tmp_path):
    """Mean log-probability of three prompts within 0.02 of transformers' fp32 run of the same file (tests/tools/make_goldens.py)."""
    with open(os.path.join(ROOT, "tests", "fixtures", "models", "smollm2_oracle.json"), encoding="utf-8") as f:
        oracle = json.load(f)
    with Cluster(tmp_path, model=SMOLLM2, fake=False, name="smollm2", worker=("--kv-cache-memory-bytes", "256M")) as it:
        client = openai.OpenAI(base_url=it.url + "/v1", api_key="none", timeout=120)
        reply = client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "What is the capital of France?"}],
                                               max_tokens=40, temperature=0)
        assert "Paris" in reply.choices[0].message.content
        for row in oracle:
            scored = client.completions.create(model="smollm2", prompt=row["ids"], max_tokens=1, echo=True, logprobs=1, temperature=0)
            scores = scored.choices[0].logprobs.token_logprobs[1:len(row["ids"])]
            mean = sum(scores) / len(scores)
            print(f"mean log-probability {mean:.5f}, transformers {row['mean_logprob']:.5f}")
            assert mean == pytest.approx(row["mean_logprob"], abs=0.02)
