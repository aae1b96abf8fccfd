"""Bad luck with a device: no plug-in, no driver, too little memory, a device error in a step. No GPU is needed.

The real programs run over a plug-in whose table is the CPU's under the name "cuda", and which breaks on demand (tests/fakes/fake_plugin.cc
lists how). The CPU back end promises the same tokens whatever the batch, so a request that lived through a lost worker or a preemption must
say what an undisturbed one says.
"""

import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest

from cli_test import Launch, wait_for
from harness import BUILD, DEMO, Cluster, Failed, Process

PLUGIN = os.path.join(BUILD, "libphalanx_fake_plugin.so")
MIB = 1 << 20
SMALL = ("--max-model-len", "1024", "--max-num-seqs", "16", "--max-num-batched-tokens", "64")  # a fake GPU has 2 GiB


def fake(**faults):
    """The environment of a worker that finds the fake plug-in; fail="linear:7" plants a fault."""
    return {"PHALANX_CUDA_PLUGIN": PLUGIN, **{f"PHALANX_FAKE_{name.upper()}": str(value) for name, value in faults.items()}}


def worker(*flags, env):
    return Process("phalanx-worker", "--model", DEMO, "--listen", "127.0.0.1:0", *SMALL, *flags, env=env)


def refused(*flags, env):
    """A worker that cannot start: exit code 1 and one sentence, which is returned."""
    run = subprocess.run([os.path.join(BUILD, "phalanx-worker"), "--model", DEMO, "--listen", "127.0.0.1:0", *SMALL, *flags],
                         env={**os.environ, **env}, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1, run.stderr
    errors = re.findall(r"^PHALANX_ERROR (.*)$", run.stdout, re.M)
    assert len(errors) == 1 and errors[0] in run.stderr
    return errors[0]


@pytest.fixture
def serve():
    """Starts `phalanx serve` on the fake GPU."""
    running = []

    def start(*flags, model=DEMO, device="cuda", env):
        running.append(Launch([model, "--served-model-name", "demo", "--port", "0", "--device", device, *SMALL, *flags],
                              {"PHALANX_BIN_DIR": BUILD, **env}))
        return running[-1]
    yield start
    for launch in running:
        launch.close()


def post(url, prompt, patience_s=10, **more):
    """The open reply to a greedy completion. A 503, which says that nothing was begun, is asked again, as clients do."""
    body = {"model": "demo", "prompt": prompt, "max_tokens": 48, "temperature": 0, "ignore_eos": True, **more}
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    end = time.monotonic() + patience_s
    while True:
        try:
            return urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() >= end:
                raise
            time.sleep(0.05)


def complete(url, prompt, **more):
    """The text of a greedy completion, and why it ended."""
    with post(url, prompt, **more) as reply:
        choice = json.load(reply)["choices"][0]
        return choice["text"], choice["finish_reason"]


def together(url, prompts, **more):
    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda prompt: complete(url, prompt, **more), prompts))


def streams(url, prompts, when_all_run, **more):
    """As `together`, streamed; calls `when_all_run` once each stream has its first tokens."""
    all_run = threading.Barrier(len(prompts), action=when_all_run)

    def read(prompt):
        text, reason, begun = "", None, False
        with post(url, prompt, stream=True, **more) as reply:
            for line in reply:
                if not line.startswith(b"data: {"):
                    continue
                if not begun:
                    all_run.wait(30)
                begun = True
                event = json.loads(line[6:])
                assert "choices" in event, event
                text += event["choices"][0]["text"]
                reason = event["choices"][0]["finish_reason"] or reason
        return text, reason
    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(read, prompts))


PROMPTS = [f"{i} + {i * 7} = " for i in range(1, 7)]


@pytest.fixture(scope="module")
def truth():
    """What the prompts give where nothing goes wrong, of 48 tokens and of 200."""
    launch = Launch([DEMO, "--served-model-name", "demo", "--port", "0", "--device", "cpu", *SMALL], {"PHALANX_BIN_DIR": BUILD})
    try:
        return {tokens: together(launch.url(), PROMPTS, max_tokens=tokens) for tokens in (48, 200)}
    finally:
        launch.close()


# --- the device cannot be opened -------------------------------------------------------------------------------------

NO_DRIVER = "no usable NVIDIA GPU: CUDA driver version is insufficient for CUDA runtime version"
NO_CODE = "GPU 0 has compute capability 6.1, for which this plug-in was not built (CUDA_ARCHS): no kernel image is available"
UNUSABLE = {
    "no file": ({"PHALANX_CUDA_PLUGIN": "/no/such/plugin.so"}, "there is no CUDA plug-in at /no/such/plugin.so: No such file or directory"),
    "not a library": ({"PHALANX_CUDA_PLUGIN": os.path.join(DEMO, "config.json")}, "config.json: invalid ELF header"),
    "another library": ({"PHALANX_CUDA_PLUGIN": "/lib/x86_64-linux-gnu/libm.so.6"}, "exports no PhalanxKernelTable"),
    "not for this machine": (fake(no_table=1), "this back end cannot work on this machine"),
    "another version": (fake(version=1), "the kernel table is version 1, this program needs version"),
    "another back end": (fake(name="rocm"), "is rocm"),
    "no driver": (fake(create=f"3:{NO_DRIVER}"), NO_DRIVER),
    "no card": (fake(create="3:no usable NVIDIA GPU: no CUDA-capable device is detected"), "no CUDA-capable device is detected"),
    "an old card": (fake(create=f"3:{NO_CODE}"), NO_CODE),
    "a full card": (fake(create="2:scratch memory: no memory for 67108864 bytes"), "no memory for 67108864 bytes"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_auto_goes_to_the_cpu_and_says_why_in_one_line(what):
    env, reason = UNUSABLE[what]
    process = worker("--device", "auto", env=env)
    try:
        said = [line for line in process.log if "on the CPU: " in line]
        assert len(said) == 1 and reason in said[0], process.log
        assert sum(reason in line for line in process.log) == 1
        assert process.stop() == 0
    finally:
        process.kill()


@pytest.mark.parametrize("what", UNUSABLE)
def test_an_explicit_gpu_is_refused_for_the_same_reason(what):
    env, reason = UNUSABLE[what]
    error = refused("--device", "cuda", env=env)
    assert error.startswith("--device cuda: ") and reason in error


def test_serve_ends_with_the_reason(serve):
    launch = serve(env=fake(create=f"3:{NO_DRIVER}"))
    assert launch.end() == 1
    assert launch.err.splitlines()[-1].startswith("phalanx serve: --device cuda: ")
    assert NO_DRIVER in launch.err.splitlines()[-1]


def test_serve_falls_back_and_answers(serve, truth):
    launch = serve(device="auto", env=fake(create=f"3:{NO_DRIVER}"))
    assert complete(launch.url(), PROMPTS[0]) == truth[48][0]
    assert launch.err.count(NO_DRIVER) == 1


def test_an_operation_that_is_missing_is_named_at_load():
    assert "cuda lacks the operation attention" in refused("--device", "cuda", env=fake(lacks="attention"))


# --- too little memory -----------------------------------------------------------------------------------------------

def test_weights_that_do_not_fit():
    error = refused(env=fake(memory=f"{8 * MIB}:{4 * MIB}"))
    found = re.match(r"too little memory for the weights: ([\d.]+) MiB are needed, 3.9\d MiB of 8.00 MiB are free; ", error)
    assert found and float(found.group(1)) > 4 and "take a smaller model" in error, error


def test_workspaces_that_do_not_fit():
    error = refused("--max-num-seqs", "60000", "--max-num-batched-tokens", "60000", env=fake(memory=f"{100 * MIB}:{100 * MIB}"))
    assert re.match(r"too little memory for [\w ]+: [\d.]+ [MG]iB are needed, ", error), error
    assert error.endswith("; lower --max-num-seqs or --max-num-batched-tokens")


def test_a_kv_cache_that_does_not_fit_and_the_advice_works():
    env = fake(memory=f"{200 * MIB}:{100 * MIB}")
    flags = ("--max-model-len", "16384", "--gpu-memory-utilization", "0.6")
    error = refused(*flags, env=env)
    assert "one sequence of max_model_len 16384 needs " in error
    assert "0.60 of the device's 0.195 GiB, less " in error and " that weights, workspaces and other programs take" in error
    assert error.endswith("or raise --gpu-memory-utilization")
    longest = re.search(r"; lower --max-model-len to (\d+)", error).group(1)
    process = worker(*flags, "--max-model-len", longest, env=env)
    assert process.stop() == 0
    process = worker(*flags, "--gpu-memory-utilization", "1", env=env)
    assert process.stop() == 0


def test_a_kv_cache_in_bytes_that_does_not_fit():
    error = refused("--kv-cache-memory-bytes", "1MiB", env=fake())
    assert "but only 0.001 GiB are available; lower --max-model-len to " in error and error.endswith("or raise --kv-cache-memory-bytes")
    error = refused("--max-model-len", "16384", "--kv-cache-memory-bytes", "1GiB", env=fake(memory=f"{400 * MIB}:{200 * MIB}"))
    assert error.startswith("too little memory for a layer's part of the KV cache: ")
    assert error.endswith("GiB in all: lower --kv-cache-memory-bytes or --gpu-memory-utilization")


# --- a device error in a step ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("operation", ["linear", "attention", "copy_to_host", "sample"])
def test_a_device_error_ends_the_worker_and_no_running_request(serve, truth, tmp_path, operation):
    launch = serve(env=fake(fail=f"{operation}:1", when=tmp_path / "now", once=tmp_path / "struck"))
    assert streams(launch.url(), PROMPTS, (tmp_path / "now").touch, max_tokens=200) == truth[200]
    assert (tmp_path / "struck").exists()
    wait_for(lambda: "worker is ready again" in launch.err, "the restart")
    why = f"device error: {operation} failed on cuda with code 4: {operation}: an illegal memory access"
    assert re.search(rf"E \[worker\] {why}", launch.err)
    assert re.search(rf"worker: {why}.*; starting it again in 100 ms", launch.err)
    assert complete(launch.url(), PROMPTS[0]) == truth[48][0]


def test_a_worker_with_a_broken_device_ends_with_code_1(tmp_path, monkeypatch):
    for name, value in fake(fail="attention:100").items():
        monkeypatch.setenv(name, value)
    with Cluster(tmp_path, fake=False, worker=SMALL) as cluster:
        with pytest.raises(urllib.error.HTTPError):
            complete(cluster.url, PROMPTS[0], patience_s=0)
        assert cluster.workers[0].child.wait(60) == 1
        assert any(line.startswith("PHALANX_ERROR device error: attention failed on cuda") for line in cluster.workers[0].log)


def test_a_device_that_breaks_again_and_again_is_an_error_and_no_hang(serve):
    launch = serve(env=fake(fail="attention:60"))
    with pytest.raises(urllib.error.HTTPError) as failed:
        complete(launch.url(), PROMPTS[0], patience_s=0)
    assert failed.value.code in (500, 502, 503)
    assert json.load(failed.value)["error"]["message"]
    assert launch.process.poll() is None, "the launcher goes on trying"


def test_a_device_error_while_loading_is_named():
    assert refused("--device", "cuda", env=fake(fail="pack_weight:3")).startswith("pack_weight failed on cuda with code 4: ")
    assert refused("--device", "cuda", env=fake(fail="attention:1")).startswith("attention failed on cuda with code 4: ")


def test_logits_that_are_not_numbers_end_one_request_only(serve, truth, tmp_path):
    launch = serve(env=fake(nan=10, once=tmp_path / "struck"))
    try:
        text, reason = complete(launch.url(), PROMPTS[0])
        assert reason not in ("stop", "length"), text
    except urllib.error.HTTPError as error:
        assert error.code >= 500 and json.load(error)["error"]["message"]
    assert (tmp_path / "struck").exists()
    assert complete(launch.url(), PROMPTS[1]) == truth[48][1]
    assert "starting it again" not in launch.err


# --- out of KV blocks ------------------------------------------------------------------------------------------------

def test_out_of_blocks_preempts_and_aborts_nobody(serve, truth):
    block = 2 * 6 * 2 * 64 * 16 * 2     # keys and values, layers, kv heads, head_dim, tokens, bytes
    launch = serve("--max-model-len", "512", "--kv-cache-memory-bytes", str(34 * block), env=fake())
    url = launch.url()
    assert together(url, PROMPTS, max_tokens=200) == truth[200]
    with urllib.request.urlopen(url + "/metrics", timeout=60) as reply:
        preemptions = re.search(r"^vllm:num_preemptions_total\S* ([\d.e+]+)$", reply.read().decode(), re.M)
    assert preemptions and float(preemptions.group(1)) > 0


# --- no weights ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_made_up_weights_need_no_weight_files(serve, tmp_path, device):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(DEMO, name), model)
    launch = serve("--load-format", "dummy", model=str(model), device=device, env=fake())
    first = complete(launch.url(), PROMPTS[0])
    assert first[1] == "length" and first == complete(launch.url(), PROMPTS[0])


def test_a_slow_load_is_told_in_the_log(serve):
    launch = serve(env=fake(pack_ms=120))      # 26 matrices
    launch.url()
    told = [int(share) for share in re.findall(r"\[serve\] worker: loading weights: (\d+) %", launch.err)]
    assert 1 <= len(told) <= 3 and told == sorted(told) and told[-1] >= 75


def test_load_formats_that_are_not_served_are_refused():
    with pytest.raises(Failed, match="--load-format"):
        Process("phalanx-worker", "--model", DEMO, "--listen", "127.0.0.1:0", "--load-format", "npcache")
    assert "is not a .gguf file" in refused("--load-format", "gguf", env={})
