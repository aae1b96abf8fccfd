"""The HTTP API through gateway, router and a worker whose model is a hash: errors, limits, streams, cancels, deaths.

The hash model's next token depends on every token before it, so equal text proves that no token was lost, doubled or moved.
"""

import http.client
import json
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.parse

import pytest

from harness import Cluster, Failed, Process, wait_until

HASH = ("--first-id", "3", "--eos-ids", "589", "--vocab-size", "592")
SLOW = (*HASH, "--step-delay-us", "20000")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("api"), worker=(*HASH, "--check-invariants", "--num-blocks", "2048")) as it:
        yield it


@pytest.fixture
def slow(tmp_path):
    with Cluster(tmp_path, worker=SLOW) as it:
        yield it


def connect(cluster):
    return http.client.HTTPConnection(urllib.parse.urlparse(cluster.url).netloc, timeout=60)


def call(cluster, method, path, body=None, headers=None):
    """(status, headers, bytes)"""
    connection = connect(cluster)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
        reply = connection.getresponse()
        return reply.status, dict((k.lower(), v) for k, v in reply.getheaders()), reply.read()
    finally:
        connection.close()


def post(cluster, path, body, **headers):
    status, head, data = call(cluster, "POST", path, body, headers)
    return status, head, json.loads(data)


def completion(cluster, **fields):
    status, _, reply = post(cluster, "/v1/completions", {"prompt": "1 + 2 =", "max_tokens": 24, "ignore_eos": True, "seed": 7, **fields})
    assert status == 200, reply
    return reply


def events(data):
    """The data of every SSE event; asserts the framing."""
    assert data.endswith(b"data: [DONE]\n\n")
    blocks = data.decode().split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [json.loads(block[6:]) for block in blocks[:-1]]


def stream(cluster, path, body):
    status, head, data = call(cluster, "POST", path, {**body, "stream": True})
    assert status == 200, data
    assert head["content-type"].startswith("text/event-stream")
    return events(data)


def gauge(cluster, name):
    _, _, text = call(cluster, "GET", "/metrics")
    found = re.search(rf"^{re.escape(name)}{{[^}}]*}} ([0-9.e+-]+)$", text.decode(), re.M)
    assert found, f"no {name} in /metrics"
    return float(found.group(1))


def free_again(cluster, limit_s=2.0):
    """No sequence is left at the worker and its blocks are back."""
    wait_until(lambda: gauge(cluster, "vllm:num_requests_running") == 0 and gauge(cluster, "vllm:num_requests_waiting") == 0
               and gauge(cluster, "vllm:kv_cache_usage_perc") == 0, limit_s, "the worker to be idle")


# ---- the plain paths


def test_health_ping_version_models(cluster):
    for method, path in (("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")):
        status, _, data = call(cluster, method, path)
        assert (status, data) == (200, b""), path
    status, _, data = call(cluster, "GET", "/version")
    assert status == 200 and re.fullmatch(r"\d+\.\d+\.\d+", json.loads(data)["version"])
    _, _, data = call(cluster, "GET", "/v1/models")
    models = json.loads(data)
    assert models["object"] == "list" and [m["id"] for m in models["data"]] == ["demo"]
    assert models["data"][0]["max_model_len"] == 16384
    status, _, data = call(cluster, "GET", "/v1/models/demo")
    assert status == 200 and json.loads(data) == models["data"][0]
    status, _, reply = call(cluster, "GET", "/v1/models/org/other")
    assert status == 404 and json.loads(reply)["error"]["code"] == "model_not_found"


def test_chat_and_its_stream_give_the_same_text(cluster):
    body = {"messages": [{"role": "user", "content": "7 * 6?"}], "max_tokens": 64, "temperature": 0.8, "seed": 3, "ignore_eos": True}
    status, head, plain = post(cluster, "/v1/chat/completions", body)
    assert status == 200 and head["content-type"] == "application/json" and head["x-request-id"]
    message = plain["choices"][0]["message"]
    chunks = stream(cluster, "/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
    assert len({(c["id"], c["created"], c["model"]) for c in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == plain["usage"]
    assert all(c["usage"] is None for c in chunks[:-1])
    deltas = [c["choices"][0] for c in chunks[:-1]]
    for key in ("content", "reasoning_content"):
        assert "".join(d["delta"].get(key) or "" for d in deltas) == (message[key] or "")
    assert [d["finish_reason"] for d in deltas if d["finish_reason"]] == ["length"] == [plain["choices"][0]["finish_reason"]]
    assert plain["usage"]["completion_tokens"] == 64


def test_completion_is_the_same_alone_and_among_others(cluster):
    alone = completion(cluster, max_tokens=200)["choices"][0]["text"]
    texts = [None] * 12
    def run(i):
        texts[i] = completion(cluster, max_tokens=200, **({} if i % 2 else {"prompt": f"other {i}"}))["choices"][0]["text"]
    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(texts))]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert all(texts[i] == alone for i in range(1, 12, 2))
    assert len(set(texts)) == 7


def test_lists_of_prompts_and_n_come_in_order(cluster):
    reply = completion(cluster, prompt=["one", "two", "three"], n=2, max_tokens=8)
    assert [c["index"] for c in reply["choices"]] == list(range(6))
    single = [completion(cluster, prompt=p, n=2, max_tokens=8)["choices"] for p in ("one", "two", "three")]
    assert [c["text"] for c in reply["choices"]] == [c["text"] for pair in single for c in pair]
    assert reply["usage"]["completion_tokens"] == 48
    ids = completion(cluster, prompt=[[5, 6, 7], [8]], max_tokens=8)["choices"]
    assert [c["text"] for c in ids] == [completion(cluster, prompt=p, max_tokens=8)["choices"][0]["text"] for p in ([5, 6, 7], [8])]
    chunks = stream(cluster, "/v1/completions", {"prompt": ["one", "two"], "n": 2, "max_tokens": 8, "seed": 7, "ignore_eos": True})
    text = [""] * 4
    for chunk in chunks:
        for choice in chunk["choices"]:
            text[choice["index"]] += choice["text"]
    assert text == [c["text"] for c in reply["choices"][:4]]


def test_stop_strings_end_the_text_before_them_in_both_forms(cluster):
    text = completion(cluster, max_tokens=100)["choices"][0]["text"]
    stop = text[30:34]
    at = text.index(stop)
    reply = completion(cluster, max_tokens=100, stop=[stop, "no such text"])["choices"][0]
    assert (reply["text"], reply["finish_reason"], reply["stop_reason"]) == (text[:at], "stop", stop)
    kept = completion(cluster, max_tokens=100, stop=stop, include_stop_str_in_output=True)["choices"][0]
    assert kept["text"] == text[:at] + stop
    chunks = stream(cluster, "/v1/completions", {"prompt": "1 + 2 =", "max_tokens": 100, "ignore_eos": True, "seed": 7, "stop": stop})
    assert "".join(c["choices"][0]["text"] for c in chunks if c["choices"]) == text[:at]


def test_echo_logprobs_and_token_ids(cluster):
    reply = completion(cluster, echo=True, logprobs=2, max_tokens=4, return_token_ids=True)["choices"][0]
    assert reply["text"].startswith("1 + 2 =")
    logprobs = reply["logprobs"]
    assert len({len(logprobs[key]) for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}) == 1
    assert logprobs["token_logprobs"][0] is None and all(p <= 0 for p in logprobs["token_logprobs"][1:])
    assert "".join(logprobs["tokens"]) == reply["text"]
    assert len(reply["token_ids"]) == 4
    only = completion(cluster, echo=True, max_tokens=0, logprobs=1)
    assert only["choices"][0]["text"] == "1 + 2 =" and only["usage"]["completion_tokens"] == 0


def test_tokenize_and_detokenize(cluster):
    _, _, reply = post(cluster, "/tokenize", {"prompt": "你好 12", "return_token_strs": True})
    assert reply["count"] == len(reply["tokens"]) == len(reply["token_strs"]) and reply["max_model_len"] == 16384
    _, _, back = post(cluster, "/detokenize", {"tokens": reply["tokens"]})
    assert back == {"prompt": "你好 12"}
    _, _, chat = post(cluster, "/tokenize", {"messages": [{"role": "user", "content": "hi"}]})
    _, _, text = post(cluster, "/detokenize", {"tokens": chat["tokens"]})
    assert text["prompt"] == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n"


def test_curl_as_the_readme_types_it(cluster):
    body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "ignore_eos": True})
    done = subprocess.run(["curl", "-sS", "-w", "\n%{http_code}", cluster.url + "/v1/chat/completions", "-H", "Content-Type: application/json",
                           "-d", body], capture_output=True, text=True, timeout=60, check=True)
    reply, code = done.stdout.rsplit("\n", 1)
    assert code == "200" and json.loads(reply)["usage"]["completion_tokens"] == 3


def test_request_id_goes_out_as_it_came_and_cors_is_open(cluster):
    _, head, _ = call(cluster, "GET", "/v1/models", headers={"X-Request-Id": "abc-1", "Origin": "http://x.example"})
    assert head["x-request-id"] == "abc-1" and head["access-control-allow-origin"] == "*"
    status, head, _ = call(cluster, "OPTIONS", "/v1/chat/completions",
                           headers={"Origin": "http://x.example", "Access-Control-Request-Method": "POST",
                                    "Access-Control-Request-Headers": "authorization,content-type"})
    assert status in (200, 204) and "POST" in head["access-control-allow-methods"]


# ---- bad input: one clear error, and nothing else is harmed


def refused(cluster, path, body, status=400, param=None, code=None):
    got, head, data = call(cluster, "POST", path, body)
    assert got == status, data
    assert head["content-type"] == "application/json"
    error = json.loads(data)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"]
    if param is not None:
        assert error["param"] is not None and error["param"].startswith(param), error
    if code is not None:
        assert error["code"] == code, error
    return error


CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT = {"prompt": "hi", "max_tokens": 2}
INTS = {"max_tokens": (-1, 2**63 - 1, 2**31), "n": (-1, 0, 2**31, 2**63 - 1), "min_tokens": (-1, 2**31, 2**63 - 1), "top_k": (-2, 2**63 - 1),
        "prompt_logprobs": (-1, 2**31), "truncate_prompt_tokens": (0, -2, 2**31, 2**63 - 1), "priority": (1, -1, 2**63 - 1), "seed": (2**63,)}
NUMBERS = {"temperature": (-0.1, 1e308 * 10), "top_p": (0, -1, 1.1), "min_p": (-0.1, 1.1), "presence_penalty": (-2.1, 2.1),
           "frequency_penalty": (-2.1, 2.1), "repetition_penalty": (0, -1)}
IDS = (-1, 592, 2**31, 2**63 - 1)


def test_numbers_out_of_range_name_their_field(cluster):
    for field, values in {**INTS, **NUMBERS}.items():
        for value in values:
            text = json.dumps({**TEXT, field: value}).replace("Infinity", "1e999")
            refused(cluster, "/v1/completions", text.encode(), param=None if "1e999" in text else field)
        for wrong in ("7", True, [1], {"a": 1}):
            refused(cluster, "/v1/completions", {**TEXT, field: wrong}, param=field)
    for value in (-1, 21, 2**31):
        refused(cluster, "/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": value}, param="top_logprobs")
        refused(cluster, "/v1/completions", {**TEXT, "logprobs": value}, param="logprobs")
    refused(cluster, "/v1/completions", b'{"prompt": "hi", "temperature": NaN}')


def test_token_ids_outside_the_vocabulary_name_their_field(cluster):
    for value in IDS:
        refused(cluster, "/v1/completions", {**TEXT, "prompt": [1, value]}, param="prompt")
        refused(cluster, "/v1/completions", {**TEXT, "stop_token_ids": [value]}, param="stop_token_ids")
        refused(cluster, "/v1/completions", {**TEXT, "allowed_token_ids": [value]}, param="allowed_token_ids")
        refused(cluster, "/v1/completions", {**TEXT, "logit_bias": {str(value): 1}}, param="logit_bias")
        refused(cluster, "/detokenize", {"tokens": [value]}, param="tokens")


def test_malformed_bodies(cluster):
    for body in (b"", b"{", b"[]", b"null", b'"x"', b'{"prompt": "a"} x', b"\xff\xfe", b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}',
                 b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}"):
        refused(cluster, "/v1/completions", body)
    for body in ({}, {"messages": []}, {"messages": "hi"}, {"messages": [{"role": "king", "content": "x"}]}, {"messages": [{"content": "x"}]},
                 {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}):
        refused(cluster, "/v1/chat/completions", body, param="messages")
    refused(cluster, "/v1/completions", {}, param="prompt")
    refused(cluster, "/v1/completions", {**TEXT, "suffix": "x"}, param="suffix")
    refused(cluster, "/v1/chat/completions", {**CHAT, "tools": [{"type": "function", "function": {"name": "f"}}]}, param="tools")
    refused(cluster, "/v1/chat/completions", {**CHAT, "response_format": {"type": "json_object"}}, param="response_format")
    refused(cluster, "/v1/completions", {**TEXT, "stream_options": {"include_usage": True}}, param="stream_options")
    refused(cluster, "/v1/completions", {**TEXT, "stop": ["x"] * 17}, param="stop")
    refused(cluster, "/v1/completions", {**TEXT, "prompt": [[1]] * 5000}, param="prompt")


def test_unknown_model_path_method_and_too_large(cluster):
    refused(cluster, "/v1/completions", {**TEXT, "model": "gpt-9"}, 404, "model", "model_not_found")
    refused(cluster, "/v1/nothing", {}, 404)
    status, _, data = call(cluster, "GET", "/v1/completions")
    assert status == 405 and json.loads(data)["error"]["type"] == "invalid_request_error"


def test_too_long_a_prompt_says_both_lengths(cluster):
    error = refused(cluster, "/v1/completions", {**TEXT, "prompt": [5] * 16384}, code="context_length_exceeded")
    assert "16384" in error["message"] and re.search(r"1638[4-6]", error["message"])
    error = refused(cluster, "/v1/completions", {"prompt": [5] * 16000, "max_tokens": 1000}, code="context_length_exceeded")
    assert "16384" in error["message"] and "16000" in error["message"]


def test_unknown_fields_and_nulls_are_ignored(cluster):
    reply = completion(cluster, max_tokens=5, user="me", metadata={"a": 1}, store=True, unheard_of=[1], temperature=None, stop=None, n=None)
    assert reply["choices"][0]["text"] == completion(cluster, max_tokens=5)["choices"][0]["text"]


def test_a_stream_beside_all_that_stays_byte_identical(cluster):
    body = {"prompt": "steady", "max_tokens": 3000, "ignore_eos": True, "seed": 11}
    def text():
        return "".join(c["choices"][0]["text"] for c in stream(cluster, "/v1/completions", body))
    before, during = text(), []
    thread = threading.Thread(target=lambda: during.append(text()))
    thread.start()
    for _ in range(20):
        refused(cluster, "/v1/completions", {**TEXT, "prompt": [592]})
        refused(cluster, "/v1/completions", b"{")
        refused(cluster, "/v1/chat/completions", {**CHAT, "n": 2**31})
    thread.join()
    assert during == [before]
    assert gauge(cluster, "vllm:num_requests_running") == 0


def test_a_poisoned_request_fails_alone(tmp_path):
    with Cluster(tmp_path, worker=(*HASH, "--poison-id", "9")) as it:
        good = completion(it, max_tokens=20)["choices"][0]["text"]
        status, _, reply = post(it, "/v1/completions", {"prompt": [9, 10], "max_tokens": 4})
        assert status == 500 and reply["error"]["type"] == "server_error"
        assert completion(it, max_tokens=20)["choices"][0]["text"] == good


# ---- limits of the gateway


def test_api_keys_body_limit_and_what_stays_open(tmp_path):
    with Cluster(tmp_path, worker=HASH, gateway=("--max-body-bytes", "100000"), env={"PHALANX_API_KEY": "k-one,k-two"}) as it:
        assert call(it, "GET", "/health")[0] == 200
        for headers in ({}, {"Authorization": "Bearer k-on"}, {"Authorization": "Bearer "}, {"Authorization": "Basic k-one"}):
            status, _, data = call(it, "GET", "/v1/models", headers=headers)
            assert status == 401 and json.loads(data)["error"]["code"] == "invalid_api_key"
            assert call(it, "GET", "/metrics", headers=headers)[0] == 401
        for key in ("Bearer k-one", "bearer k-two"):
            assert call(it, "GET", "/v1/models", headers={"Authorization": key})[0] == 200
        status, _, data = call(it, "POST", "/v1/completions", {**TEXT, "prompt": "x" * 200000}, {"Authorization": "Bearer k-one"})
        assert status == 413 and json.loads(data)["error"]["type"] == "invalid_request_error"
        assert not any("k-one" in line for line in it.gateway.log)


def test_full_house_is_429_with_retry_after(tmp_path):
    with Cluster(tmp_path, worker=SLOW, router=("--max-num-queued-reqs", "2")) as it:
        codes, heads = [], []
        def run():
            status, head, _ = call(it, "POST", "/v1/completions", {**TEXT, "max_tokens": 50, "ignore_eos": True})
            codes.append(status)
            heads.append(head)
        threads = [threading.Thread(target=run) for _ in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert codes.count(200) >= 2 and codes.count(429) >= 1 and set(codes) == {200, 429}
        for code, head in zip(codes, heads):
            if code == 429:
                assert 1 <= int(head["retry-after"]) <= 60
        assert call(it, "POST", "/v1/completions", TEXT)[0] == 200


def test_no_worker_is_503_with_retry_after_and_health_says_so(tmp_path):
    with Cluster(tmp_path, worker=HASH) as it:
        it.workers[0].kill()
        wait_until(lambda: not it.healthy(), what="/health to say 503")
        status, head, data = call(it, "POST", "/v1/completions", TEXT)
        assert status == 503 and int(head["retry-after"]) >= 1 and json.loads(data)["error"]["code"] == "unavailable"
        it.start_worker()
        wait_until(it.healthy, what="/health to say 200 again")
        assert call(it, "POST", "/v1/completions", TEXT)[0] == 200


# ---- leaving, dying, stalling


def open_request(cluster, body):
    """Sends a request over a raw socket and returns it, unread."""
    host = urllib.parse.urlparse(cluster.url)
    raw = socket.create_connection((host.hostname, host.port), timeout=30)
    data = json.dumps(body).encode()
    raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data))
    return raw


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_frees_its_blocks(slow, streamed):
    body = {"prompt": "x" * 200, "max_tokens": 10000, "ignore_eos": True, "stream": streamed}
    clients = [open_request(slow, body) for _ in range(3)]
    wait_until(lambda: gauge(slow, "vllm:num_requests_running") == 3, what="three running requests")
    assert gauge(slow, "vllm:kv_cache_usage_perc") > 0
    if streamed:
        assert b"data: " in clients[0].recv(4096) + clients[0].recv(4096)
    for client in clients:
        client.close()
    free_again(slow)


def test_a_stalled_reader_holds_up_nobody(cluster):
    body = {"prompt": "x", "max_tokens": 16000, "ignore_eos": True, "stream": True, "n": 8}
    stalled = open_request(cluster, body)
    before = completion(cluster, max_tokens=100)["choices"][0]["text"]
    for _ in range(5):
        assert completion(cluster, max_tokens=100)["choices"][0]["text"] == before
    stalled.close()
    wait_until(lambda: gauge(cluster, "vllm:num_requests_running") == 0, what="the stalled request to be gone")


def collect(cluster, body, out):
    connection = connect(cluster)
    connection.request("POST", "/v1/completions", json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
    out.append(connection.getresponse().read())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_worker_changes_no_token_of_a_stream(tmp_path, number):
    """Two workers; the one that runs the streams dies or freezes in mid-stream: the other goes on with the very same tokens."""
    body = {"prompt": "steady", "max_tokens": 150, "ignore_eos": True, "seed": 5, "temperature": 0.9, "presence_penalty": 0.5}
    with Cluster(tmp_path, worker=SLOW, workers=2) as it:
        whole = completion(it, **body)["choices"][0]["text"]
        replies = []
        threads = [threading.Thread(target=collect, args=(it, body, replies)) for _ in range(4)]
        [t.start() for t in threads]
        time.sleep(1.0)
        it.workers[0].signal(number)
        [t.join(60) for t in threads]
        texts = ["".join(c["choices"][0]["text"] for c in events(data) if c["choices"]) for data in replies]
        assert texts == [whole] * 4


def test_a_lost_only_worker_ends_its_streams_with_an_error_and_serves_again(tmp_path):
    with Cluster(tmp_path, worker=SLOW) as it:
        replies = []
        thread = threading.Thread(target=collect, args=(it, {"prompt": "x", "max_tokens": 2000, "ignore_eos": True}, replies))
        thread.start()
        wait_until(lambda: gauge(it, "vllm:num_requests_running") == 1, what="a running request")
        time.sleep(0.3)
        it.workers[0].kill()
        thread.join(60)
        assert not thread.is_alive()
        last = replies[0].decode().split("\n\n")
        assert last[-2:] == ["data: [DONE]", ""] and json.loads(last[-3][6:])["error"]["type"] == "server_error"
        it.start_worker()
        wait_until(it.healthy, what="/health to say 200 again")
        assert call(it, "POST", "/v1/completions", TEXT)[0] == 200


def test_sigterm_lets_running_requests_finish(tmp_path):
    with Cluster(tmp_path, worker=SLOW) as it:
        replies = []
        thread = threading.Thread(target=collect, args=(it, {"prompt": "x", "max_tokens": 60, "ignore_eos": True,
                                                           "stream_options": {"include_usage": True}}, replies))
        thread.start()
        wait_until(lambda: gauge(it, "vllm:num_requests_running") == 1, what="a running request")
        it.gateway.signal(signal.SIGTERM)
        thread.join(60)
        chunks = events(replies[0])
        assert chunks[-1]["usage"]["completion_tokens"] == 60
        assert it.gateway.child.wait(10) == 0
        assert it.router.stop() == 0
        assert it.workers[0].stop() == 0


# ---- processes that cannot start


def test_wrong_flags_and_paths_are_one_sentence(tmp_path):
    for name, flags, words in (
            ("phalanx-worker", ("--model", tmp_path / "no"), "no"),
            ("phalanx-worker", ("--model", tmp_path, "--max-model-le", "5"), "--max-model-len"),
            ("phalanx-worker", (), "--model"),
            ("phalanx-router", ("--model", tmp_path / "no", "--workers", "127.0.0.1:1", "--listen", f"unix:{tmp_path}/r"), "no"),
            ("phalanx-router", ("--nonsense",), "--nonsense"),
            ("phalanx-gateway", ("--nonsense",), "--nonsense")):
        with pytest.raises(Failed) as failure:
            Process(name, *flags).kill()
        assert words in str(failure.value).splitlines()[0], failure.value


def test_port_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Failed, match=str(port)):
            Process("phalanx-gateway", "--router", f"unix:{tmp_path}/r", "--host", "127.0.0.1", "--port", port).kill()
        with pytest.raises(Failed, match=str(port)):
            Process("phalanx-fake-worker", "--listen", f"127.0.0.1:{port}").kill()


# ---- metrics


def test_metrics_have_each_family_once_under_vllms_names(cluster):
    completion(cluster)
    _, head, data = call(cluster, "GET", "/metrics")
    assert head["content-type"].startswith("text/plain")
    text = data.decode()
    families = re.findall(r"^# TYPE (\S+) ", text, re.M)
    assert len(families) == len(set(families))
    for name in ("vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:prompt_tokens_total", "vllm:generation_tokens_total",
                 "vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds", "vllm:e2e_request_latency_seconds",
                 "vllm:request_success_total", "vllm:prefix_cache_hits_total", "vllm:num_preemptions_total", "vllm:cache_config_info",
                 "http_requests_total"):
        assert name in families, name
    assert re.search(r'vllm:request_success_total{[^}]*finished_reason="length"[^}]*} [1-9]', text)
