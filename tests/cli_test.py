"""The real `phalanx` program, from outside: its words, its children, its ends.

Most cases run it over stand-ins for worker, router and gateway (a small script under three names, found through PHALANX_BIN_DIR), so that
a child can be made to fail, stall or die. The last ones run the real children and the demo model.
"""

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import pytest

BUILD = os.environ["PHALANX_BUILD_DIR"]
SOURCE = os.environ.get("PHALANX_SOURCE_DIR", os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PHALANX = os.path.join(BUILD, "phalanx")
DEMO = os.path.join(SOURCE, "models", "demo")
PATIENCE = 60  # seconds until a wait counts as failed

# What a stand-in does is told in $STANDIN/plan.json: {"worker": {"error": "..."}, ...}. It appends what happens to $STANDIN/log.
STANDIN = r'''#!PYTHON
import http.server, json, os, signal, sys, threading, time
role = os.path.basename(sys.argv[0]).removeprefix("phalanx-")
args = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
folder = os.environ["STANDIN"]
plan = json.load(open(os.path.join(folder, "plan.json"))).get(role, {})

def log(what, **more):
    line = json.dumps({"role": role, "what": what, "pid": os.getpid(), "time": time.monotonic(), **more}) + "\n"
    with open(os.path.join(folder, "log"), "a") as f:
        f.write(line)

def stop(number, frame):
    log("term")
    if plan.get("deaf"):
        return
    time.sleep(plan.get("drain", 0))
    log("end")
    os._exit(0)

signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, lambda *_: log("int"))
log("start", args=sys.argv[1:], keys=os.environ.get("PHALANX_API_KEY"), vllm_keys=os.environ.get("VLLM_API_KEY"))
for i in range(4):
    print(f"PHALANX_PROGRESS {i / 4} loading", flush=True)
if "error" in plan:
    print("PHALANX_ERROR", plan["error"], flush=True)
    sys.exit(1)
time.sleep(plan.get("load", 0))
address = args.get("listen", "")
if role == "gateway":
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            healthy = not plan.get("sick") or os.path.exists(os.path.join(folder, "cure"))
            log("health", healthy=healthy)
            self.send_response(200 if healthy else 503)
            self.send_header("content-length", "0")
            self.end_headers()
        def log_message(self, *_):
            pass
    try:
        server = http.server.ThreadingHTTPServer((args["host"] or "127.0.0.1", int(args["port"])), Handler)
    except OSError as error:
        print(f"PHALANX_ERROR cannot listen on port {args['port']}: {error.strerror}", flush=True)
        sys.exit(1)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
print("PHALANX_READY", address, flush=True)
while True:
    time.sleep(3600)
'''


def wait_for(condition, what):
    """Polls until the condition gives something true; that is returned."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.02)
    pytest.fail(f"waited {PATIENCE} s for {what}")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return [int(word) for word in f.read().split()]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(*words, env=None):
    """A command that ends by itself."""
    return subprocess.run([PHALANX, *words], capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, **(env or {})})


class Launch:
    """A running `phalanx serve` over the stand-ins, or over the real programs."""

    def __init__(self, words, env):
        self.folder = tempfile.mkdtemp(prefix="phx")  # short: unix sockets go into it
        self.out_path = os.path.join(self.folder, "out")
        self.err_path = os.path.join(self.folder, "err")
        self.sockets = os.path.join(self.folder, "t")
        os.mkdir(self.sockets)
        with open(self.out_path, "w") as out, open(self.err_path, "w") as err:
            self.process = subprocess.Popen([PHALANX, "serve", *words], stdout=out, stderr=err,
                                            env={**os.environ, "TMPDIR": self.sockets, **env})
        self.pid = self.process.pid

    @property
    def out(self):
        with open(self.out_path) as f:
            return f.read()

    @property
    def err(self):
        with open(self.err_path) as f:
            return f.read()

    def url(self):
        """Waits for the line that says the server is ready."""
        def look():
            found = re.search(r"^Phalanx is ready: (\S+) ", self.out, re.M)
            if not found and self.process.poll() is not None:
                pytest.fail(f"it ended with {self.process.returncode}: {self.err}")
            return found
        return wait_for(look, f"the ready line; standard error: {self.err}").group(1)

    def end(self):
        return self.process.wait(timeout=PATIENCE)

    def close(self):
        family = children_of(self.pid) if self.process.poll() is None else []
        self.process.kill()
        self.process.wait()
        for pid in family:
            wait_for(lambda pid=pid: not alive(pid), "a child of a killed launcher to go")
        shutil.rmtree(self.folder)


class Standins:
    def __init__(self, folder, **plan):
        self.folder = str(folder)
        os.mkdir(os.path.join(self.folder, "bin"))
        for role in ("worker", "router", "gateway"):
            path = os.path.join(self.folder, "bin", f"phalanx-{role}")
            with open(path, "w") as f:
                f.write(STANDIN.replace("PYTHON", sys.executable))
            os.chmod(path, 0o755)
        self.plan(**plan)
        self.model = os.path.join(self.folder, "model")
        os.mkdir(self.model)
        with open(os.path.join(self.model, "config.json"), "w") as f:
            f.write("{}")
        self.env = {"PHALANX_BIN_DIR": os.path.join(self.folder, "bin"), "STANDIN": self.folder}

    def plan(self, **plan):
        with open(os.path.join(self.folder, "plan.json"), "w") as f:
            json.dump(plan, f)

    def log(self, role=None, what=None):
        path = os.path.join(self.folder, "log")
        if not os.path.exists(path):
            return []
        with open(path) as f:
            lines = [json.loads(line) for line in f.read().splitlines()]
        return [line for line in lines if role in (None, line["role"]) and what in (None, line["what"])]

    def pids(self):
        return {line["role"]: line["pid"] for line in self.log(what="start")}

    @contextlib.contextmanager
    def serve(self, *words, port=0, env=None):
        launch = Launch([self.model, "--port", str(port), *words], {**self.env, **(env or {})})
        try:
            yield launch
        finally:
            launch.close()


@pytest.fixture
def standins(tmp_path):
    return Standins(tmp_path)


# --- words ---------------------------------------------------------------------------------------------------------------------------

def test_help_is_grouped_with_defaults_and_units():
    done = run("serve", "--help")
    assert done.returncode == 0 and done.stderr == ""
    groups = re.findall(r"^([A-Z][^\n]*):$", done.stdout, re.M)
    assert groups[:7] == ["Model", "Server", "Text and chat", "Cache and scheduler", "Device and processes", "Log", "Other"]
    for name in """host port served-model-name tokenizer dtype max-model-len max-num-seqs max-num-batched-tokens block-size
                   gpu-memory-utilization kv-cache-memory-bytes enable-prefix-caching enable-chunked-prefill enforce-eager
                   tensor-parallel-size quantization seed api-key chat-template generation-config max-logprobs max-num-queued-reqs
                   device config""".split():
        assert f"\n  --{name}" in done.stdout, name
    assert "--enable-prefix-caching, --no-enable-prefix-caching" in done.stdout
    assert re.search(r"--port VALUE\n .*default: 8000\)", done.stdout)
    assert re.search(r"--shutdown-timeout S\n[^-]*in s; default: 30\)", done.stdout)
    assert re.search(r"--block-size .*\n .*in tokens; default: 16\)", done.stdout)
    assert "--device {auto,cpu,cuda}" in done.stdout


def test_commands():
    version = run("version")
    assert version.returncode == 0 and re.fullmatch(r"phalanx \d+\.\d+\.\d+\n", version.stdout)
    assert run("--version").stdout == version.stdout
    assert "serve MODEL" in run("help").stdout and run("help").returncode == 0
    assert run().returncode == 2 and "serve MODEL" in run().stderr
    wrong = run("srve", "x")
    assert wrong.returncode == 2 and wrong.stderr == "phalanx: unknown command 'srve'; did you mean serve?\n"


def test_bench_becomes_the_bench_program(tmp_path):
    program = tmp_path / "phalanx-bench-serve"
    program.write_text('#!/bin/sh\necho "$@"\nexit 7\n')
    program.chmod(0o755)
    done = run("bench", "serve", "--model", "a b", "-x", env={"PHALANX_BIN_DIR": str(tmp_path)})
    assert (done.returncode, done.stdout) == (7, "--model a b -x\n")
    missing = run("bench", "kernels", env={"PHALANX_BIN_DIR": str(tmp_path)})
    assert missing.returncode != 0 and "phalanx-bench-kernels" in missing.stderr
    assert run("bench", "srve").stderr == "phalanx: unknown command 'srve'; did you mean serve?\n"


@pytest.mark.parametrize("words, sentence", [
    (["{m}", "--prot", "1"], "unknown flag --prot; did you mean --port?"),
    (["{m}", "--port", "x"], "--port: 'x' is not a whole number"),
    (["{m}", "--port"], "--port needs a value"),
    (["{m}", "{m}2"], "unexpected argument '{m}2'"),
    (["{m}", "--max-model-len", "0"], "--max-model-len: '0' is not between 2 and 16777216"),
    (["{m}", "-tp", "2", "--device", "cuda"], "--tensor-parallel-size '2' is not served yet with --device cuda: "),
    (["{m}", "--quantization", "bitsandbytes"], "--quantization 'bitsandbytes' is not served yet: "),
    (["{m}", "--enable-lora"], "--enable-lora is not served: "),
    (["{m}", "--tokenizer", "/no/such"], "--tokenizer: there is no folder or .gguf file '/no/such'"),
    (["{m}", "--load-format", "gguf"], "--load-format gguf: '{m}' is not a .gguf file"),
    (["{m}", "--config", "/no/such"], "--config: cannot read '/no/such'"),
    (["/no/such"], "there is no folder or .gguf file '/no/such'"),
    (["org/name"], "there is no folder or .gguf file 'org/name', and the Hugging Face cache "),
    (["{m}/.."], "'{m}/..' is a folder with neither config.json nor a .gguf file"),
    ([], "no MODEL is given: "),
])
def test_wrong_words_are_one_sentence_and_start_nothing(standins, words, sentence):
    done = run("serve", *[word.format(m=standins.model) for word in words], env={**standins.env, "HF_HOME": standins.folder})
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.startswith("phalanx serve: " + sentence.format(m=standins.model)), done.stderr
    assert done.stderr.count("\n") == 1
    assert standins.log() == []


# facts of vLLM's command line: each name is served, accepted with a value, or refused by name.
VLLM_FLAGS = """host port api-key served-model-name chat-template chat-template-content-format generation-config override-generation-config
    response-role max-logprobs seed tokenizer dtype max-model-len quantization load-format download-dir trust-remote-code enforce-eager
    tensor-parallel-size gpu-memory-utilization block-size kv-cache-dtype enable-prefix-caching max-num-batched-tokens max-num-seqs
    enable-chunked-prefill async-scheduling enable-auto-tool-choice tool-call-parser reasoning-parser max-num-queued-reqs
    max-num-queued-tokens scheduling-policy stream-interval long-prefill-token-threshold max-num-partial-prefills kv-cache-memory-bytes
    num-gpu-blocks-override data-parallel-size pipeline-parallel-size ssl-keyfile ssl-certfile ssl-ca-certs root-path allowed-origins
    allowed-methods allowed-headers allow-credentials enable-request-id-headers default-chat-template-kwargs
    exclude-tools-when-tool-choice-none enable-prompt-tokens-details enable-force-include-usage enable-server-load-tracking
    enable-per-request-metrics trust-request-chat-template structured-outputs-config.backend speculative-config enable-log-requests
    enable-log-outputs max-log-len disable-log-stats otlp-traces-endpoint uds middleware enable-lora lora-modules max-loras max-lora-rank
    prefix-caching-hash-algo kv-offloading-size enable-expert-parallel api-server-count distributed-executor-backend compilation-config
    hf-overrides logprobs-mode fingerprint-mode tool-parser-plugin kv-transfer-config h11-max-header-count
    h11-max-incomplete-event-size""".split()


@pytest.mark.parametrize("name", VLLM_FLAGS)
def test_every_flag_of_vllm_is_known(name):
    done = run("serve", "/no/such/model", f"--{name}=")  # an empty value: wrong for most, unknown for none
    assert done.returncode != 0
    assert "unknown flag" not in done.stderr
    assert name in done.stderr or "/no/such/model" in done.stderr, done.stderr


def test_a_missing_program_is_named(standins):
    os.remove(os.path.join(standins.env["PHALANX_BIN_DIR"], "phalanx-router"))
    done = run("serve", standins.model, env=standins.env)
    assert done.returncode == 1 and "cannot find the program phalanx-router in " in done.stderr
    assert standins.log() == []


# --- children ------------------------------------------------------------------------------------------------------------------------

def test_the_children_get_their_words_and_nobody_else_the_keys(standins, tmp_path):
    config = tmp_path / "serve.yaml"
    config.write_text("max-model-len: 4k\nserved_model_name: [one, two]\nenforce-eager: true\nport: 1\n")
    words = ["--config", str(config), "--seed", "5", "--api-key", "hunter2", "hunter3", "--allowed-origins", "http://a"]
    with standins.serve(*words, env={"VLLM_API_KEY": "hunter4"}) as launch:
        url = launch.url()
        assert launch.out == f'Phalanx is ready: {url} (model "one")\n'
        starts = {line["role"]: line for line in standins.log(what="start")}
        assert sorted(starts) == ["gateway", "router", "worker"]
        worker, router, gateway = (starts[role]["args"] for role in ("worker", "router", "gateway"))
        assert {f"--model={standins.model}", "--max-model-len=4000", "--enforce-eager=true", "--served-model-name=one"} <= set(worker)
        assert {f"--model={standins.model}", "--seed=5", "--served-model-name=one", "--served-model-name=two"} <= set(router)
        assert {"--port=0", "--allowed-origins=http://a"} <= set(gateway)
        listen = [word.split("=")[1] for word in worker if word.startswith("--listen=unix:")][0]
        assert f"--workers={listen}" in router
        assert os.stat(os.path.dirname(listen.removeprefix("unix:"))).st_mode & 0o777 == 0o700
        assert starts["gateway"]["keys"] == "hunter2,hunter3"
        assert starts["worker"]["keys"] is None and starts["router"]["keys"] is None
        assert all(start["vllm_keys"] is None for start in starts.values())
        assert "hunter" not in json.dumps([worker, router, gateway]) and "hunter" not in launch.err
        assert "not recorded as graphs" in launch.err


def test_ready_only_when_the_gateway_answers(standins):
    standins.plan(gateway={"sick": True})
    with standins.serve() as launch:
        wait_for(lambda: len(standins.log("gateway", "health")) >= 3, "the launcher to ask for health")
        assert launch.out == ""
        open(os.path.join(standins.folder, "cure"), "w").close()
        launch.url()


def test_several_workers_share_the_threads(standins):
    with standins.serve("--num-workers", "2", "--threads", "5") as launch:
        launch.url()
        workers = [line["args"] for line in standins.log("worker", "start")]
        assert sorted(word for args in workers for word in args if "--threads" in word) == ["--threads=2", "--threads=3"]
        router = standins.log("router", "start")[0]["args"]
        assert sum(word.startswith("--workers=") for word in router) == 2


@pytest.mark.parametrize("plan, sentence", [
    ({"worker": {"error": "config.json: 'hidden_size' is missing"}}, "config.json: 'hidden_size' is missing"),
    ({"router": {"error": "no tokenizer.json"}, "worker": {"load": 600}}, "no tokenizer.json"),
])
def test_a_child_that_cannot_start_ends_all(standins, plan, sentence):
    standins.plan(**plan)
    with standins.serve() as launch:
        assert launch.end() == 1
        assert launch.err.splitlines()[-1] == f"phalanx serve: {sentence}"
        assert launch.out == ""
        assert not any(alive(pid) for pid in standins.pids().values())
        assert os.listdir(launch.sockets) == []
        assert len(standins.log(what="start")) <= 3  # nothing was tried twice


def test_a_port_in_use_is_named(standins):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with standins.serve("--host", "127.0.0.1", port=port) as launch:
            assert launch.end() == 1
            assert str(port) in launch.err.splitlines()[-1]
            assert not any(alive(pid) for pid in standins.pids().values())


@pytest.mark.parametrize("role", ["worker", "router", "gateway"])
def test_a_child_that_dies_comes_back_at_its_address(standins, role):
    with standins.serve() as launch:
        url = launch.url()
        before = standins.pids()
        os.kill(before[role], signal.SIGKILL)
        wait_for(lambda: len(standins.log(role, "start")) == 2, f"a new {role}")
        first, second = (line["args"] for line in standins.log(role, "start"))
        if role == "gateway":  # the free port it had taken
            first = [word if word != "--port=0" else f"--port={url.rsplit(':', 1)[1]}" for word in first]
        assert second == first
        wait_for(lambda: f"{role} is ready again" in launch.err, "the log line")
        assert f"{role}: was killed by signal 9 (Killed); starting it again in 100 ms" in launch.err
        after = standins.pids()
        assert [name for name in after if after[name] != before[name]] == [role]
        assert urllib.request.urlopen(url + "/health", timeout=PATIENCE).status == 200


def test_restarts_back_off(standins):
    with standins.serve() as launch:
        launch.url()
        standins.plan(worker={"error": "no memory"})
        os.kill(standins.pids()["worker"], signal.SIGKILL)
        wait_for(lambda: "starting it again in 800 ms" in launch.err, "the fourth restart")
        assert re.findall(r"starting it again in (\d+) ms", launch.err)[:4] == ["100", "200", "400", "800"]
        assert "worker: no memory; starting it again in 200 ms" in launch.err
        assert launch.process.poll() is None


# --- ends ----------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_in_order(standins, number):
    with standins.serve() as launch:
        launch.url()
        start = time.monotonic()
        launch.process.send_signal(number)
        assert launch.end() == 0
        assert time.monotonic() - start < 5  # the promise to users
        assert [line["role"] for line in standins.log(what="end")] == ["gateway", "router", "worker"]
        assert not any(alive(pid) for pid in standins.pids().values())
        assert os.listdir(launch.sockets) == []


def test_running_requests_may_finish(standins):
    standins.plan(gateway={"drain": 2})
    with standins.serve("--shutdown-timeout", "30") as launch:
        launch.url()
        launch.process.send_signal(signal.SIGTERM)
        assert launch.end() == 0
        ended, told = standins.log("gateway", "end"), standins.log("router", "term")
        assert len(ended) == 1 and ended[0]["time"] <= told[0]["time"]


def test_what_does_not_end_is_killed(standins):
    standins.plan(gateway={"deaf": True}, router={"deaf": True}, worker={"deaf": True})
    with standins.serve("--shutdown-timeout", "0") as launch:
        launch.url()
        start = time.monotonic()
        launch.process.send_signal(signal.SIGTERM)
        assert launch.end() == 0
        assert time.monotonic() - start < 5
        assert {line["role"] for line in standins.log(what="term")} == {"gateway", "router", "worker"}
        assert not any(alive(pid) for pid in standins.pids().values())


def test_a_second_signal_means_now(standins):
    standins.plan(gateway={"drain": 600})
    with standins.serve("--shutdown-timeout", "600") as launch:
        launch.url()
        launch.process.send_signal(signal.SIGINT)
        wait_for(lambda: standins.log("gateway", "term"), "the gateway to be told")
        launch.process.send_signal(signal.SIGINT)
        assert launch.end() == 0
        assert not any(alive(pid) for pid in standins.pids().values())


def test_a_signal_while_loading(standins):
    standins.plan(worker={"load": 600, "deaf": True})
    with standins.serve() as launch:
        wait_for(lambda: len(standins.pids()) == 3, "the children")
        start = time.monotonic()
        launch.process.send_signal(signal.SIGTERM)
        assert launch.end() == 0
        assert time.monotonic() - start < 5
        assert launch.out == ""
        assert not any(alive(pid) for pid in standins.pids().values())


def test_no_child_outlives_a_killed_launcher(standins):
    with standins.serve() as launch:
        launch.url()
        launch.process.kill()
        launch.process.wait()
        for role, pid in standins.pids().items():
            wait_for(lambda pid=pid: not alive(pid), f"the {role} to go")


def test_a_ctrl_c_reaches_only_the_launcher(standins):
    """The children are in process groups of their own: the terminal's SIGINT must not break the order of the end."""
    with standins.serve() as launch:
        launch.url()
        groups = {os.getpgid(pid) for pid in standins.pids().values()}
        assert len(groups) == 3 and os.getpgid(launch.pid) not in groups


def test_a_progress_bar_on_a_terminal(standins):
    standins.plan(worker={"load": 0.5})
    master, slave = pty.openpty()
    with open(os.path.join(standins.folder, "out"), "w") as out:
        process = subprocess.Popen([PHALANX, "serve", standins.model, "--port", "0"], stdout=out, stderr=slave,
                                   env={**os.environ, **standins.env})
    os.close(slave)
    text = b""
    end = time.monotonic() + PATIENCE
    while b"%" not in text and time.monotonic() < end:
        if select.select([master], [], [], 1)[0]:
            text += os.read(master, 4096)
    process.terminate()
    with contextlib.suppress(OSError):
        while os.read(master, 4096):
            pass
    assert process.wait(timeout=PATIENCE) == 0
    os.close(master)
    assert re.search(rb"\r\x1b\[K\[#* *\] +\d+% \w+", text)


# --- the real children -----------------------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def demo(*words, model=DEMO, env=None):
    launch = Launch([model, "--port", "0", "--kv-cache-memory-bytes", "64MiB", *words], {"PHALANX_BIN_DIR": BUILD, **(env or {})})
    try:
        yield launch
    finally:
        launch.close()


def ask(url, body, path="/v1/chat/completions", headers=None):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
        return json.load(reply)


def question(model, **more):
    messages = [{"role": "user", "content": "请计算：144500 ÷ 1156 等于多少？"}]
    return {"model": model, "messages": messages, "max_tokens": 16, "temperature": 0, **more}


def test_the_demo_model_answers_under_the_name_as_typed():
    with demo("--tensor-parallel-size", "1", "--max-model-len", "16384", "--enforce-eager") as launch:
        url = launch.url()
        reply = ask(url, question(DEMO))
        assert reply["model"] == DEMO
        assert reply["usage"]["completion_tokens"] == 16
        models = json.load(urllib.request.urlopen(url + "/v1/models", timeout=PATIENCE))
        assert models["data"][0]["id"] == DEMO and models["data"][0]["max_model_len"] == 16384
        launch.process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        assert launch.end() == 0
        assert time.monotonic() - start < 5


def test_a_killed_worker_serves_again_with_the_same_answer():
    with demo("--served-model-name", "demo") as launch:
        url = launch.url()
        first = ask(url, question("demo"))["choices"][0]["message"]
        worker = next(pid for pid in children_of(launch.pid) if os.readlink(f"/proc/{pid}/exe").endswith("phalanx-worker"))
        os.kill(worker, signal.SIGKILL)

        def again():
            try:
                return ask(url, question("demo"))["choices"][0]["message"]
            except urllib.error.HTTPError as error:
                assert error.code == 503, error.read()
                return None
        assert wait_for(again, "an answer after the death") == first
        assert worker not in children_of(launch.pid)


def test_keys_are_asked_for():
    with demo("--served-model-name", "demo", env={"PHALANX_API_KEY": "right"}) as launch:
        url = launch.url()
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(url, question("demo"))
        assert refused.value.code == 401
        assert ask(url, question("demo"), headers={"Authorization": "Bearer right"})["choices"]
        words = [open(f"/proc/{pid}/cmdline").read() for pid in children_of(launch.pid)]
        assert len(words) == 3 and not any("right" in word for word in words)


def test_https_and_a_port_for_native_clients(tmp_path):
    key, certificate, port = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem"), free_port()
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost", "-addext",
                    "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate], check=True, capture_output=True)
    with demo("--ssl-certfile", certificate, "--ssl-keyfile", key, "--grpc-port", str(port)) as launch:
        url = launch.url()
        assert url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=certificate)
        with urllib.request.urlopen(url.replace("127.0.0.1", "localhost") + "/health", timeout=PATIENCE, context=context) as reply:
            assert reply.status == 200
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as native:
            assert native.recv(9)[3] == 4  # the first frame of an HTTP/2 server: SETTINGS


def test_two_workers_and_a_signal_during_a_stream():
    with demo("--served-model-name", "demo", "--num-workers", "2", "--threads", "2") as launch:
        url = launch.url()
        body = json.dumps(question("demo", stream=True, max_tokens=200, ignore_eos=True)).encode()
        request = urllib.request.Request(url + "/v1/chat/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            reply.readline()
            launch.process.send_signal(signal.SIGTERM)
            text = reply.read().decode()
        assert text.rstrip().endswith("data: [DONE]") and '"error"' not in text
        assert launch.end() == 0


def test_the_hub_cache_and_a_folder_that_holds_the_files(tmp_path):
    snapshot = tmp_path / "hub" / "models--org--demo" / "snapshots" / "abc"
    shutil.copytree(DEMO, snapshot)
    (tmp_path / "hub" / "models--org--demo" / "refs").mkdir()
    (tmp_path / "hub" / "models--org--demo" / "refs" / "main").write_text("abc")
    with demo(model="org/demo", env={"HF_HOME": str(tmp_path)}) as launch:
        assert ask(launch.url(), question("org/demo"))["model"] == "org/demo"
    plain = tmp_path / "hub" / "models--Demo-1.5B"
    shutil.copytree(DEMO, plain)
    with demo("--model", str(plain), model=str(plain)) as launch:
        assert ask(launch.url(), question(str(plain)))["model"] == str(plain)


@pytest.mark.parametrize("words, part", [
    (["--max-model-len", "20000"], "max-model-len"),
    (["--max-num-batched-tokens", "8", "--max-num-seqs", "16"], "--max-num-batched-tokens"),
    (["--chat-template", "/no/such.jinja"], "/no/such.jinja"),
    (["--ssl-certfile", "/no/such.pem", "--ssl-keyfile", "/no/such.pem"], "/no/such.pem"),
])
def test_what_a_child_refuses_is_said_in_one_sentence(words, part):
    with demo(*words) as launch:
        assert launch.end() == 1
        last = launch.err.splitlines()[-1]
        assert last.startswith("phalanx serve: ") and part in last, launch.err
        assert os.listdir(launch.sockets) == []


def test_a_port_in_use_is_named_by_the_real_gateway():
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with demo("--port", port) as launch:
            assert launch.end() == 1
            assert port in launch.err.splitlines()[-1]


def test_an_installed_tree_serves_from_anywhere(tmp_path):
    """cmake --install, moved afterwards: bin and share are there, and the launcher finds its programs beside itself."""
    install = ["cmake", "--install", BUILD, "--prefix", str(tmp_path / "made")]
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE)
    tree = tmp_path / "moved"
    (tmp_path / "made").rename(tree)
    assert (tree / "share" / "doc" / "phalanx" / "LICENSE").is_file()
    assert (tree / "share" / "phalanx" / "proto" / "phalanx" / "v1" / "inference.proto").is_file()
    model = str(tree / "share" / "phalanx" / "models" / "demo")
    env = {key: value for key, value in os.environ.items() if key != "PHALANX_BIN_DIR"}
    command = [str(tree / "bin" / "phalanx"), "serve", model, "--port", "0", "--kv-cache-memory-bytes", "64MiB"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            ready = process.stdout.readline()
            url = re.search(r"http://\S+", ready).group(0)
            assert ask(url, question(model))["usage"]["completion_tokens"] == 16
        finally:
            process.terminate()
            assert process.wait(PATIENCE) == 0


def test_an_explicit_gpu_is_never_replaced(monkeypatch):
    monkeypatch.setenv("PHALANX_CUDA_PLUGIN", "/no/such/plugin.so")
    with demo("--device", "cuda") as launch:
        assert launch.end() == 1
        assert "--device cuda: there is no CUDA plug-in" in launch.err.splitlines()[-1]


def default_of(help_text, name):
    """What a --help says about a flag: its default; None if the flag is not there."""
    found = re.search(rf"^ +--{name}[ ,\n](.*?)(?=^ +-|^\S|\Z)", help_text, re.M | re.S)
    if not found:
        return None
    text = " ".join(found.group(1).split())
    shown = re.search(r"default:? ([^;)]*)", text)
    return shown.group(1) if shown else ""


@pytest.mark.parametrize("program", ["phalanx-worker", "phalanx-router"])
def test_defaults_agree_with_the_process_that_owns_them(program):
    launcher = run("serve", "--help").stdout
    child = subprocess.run([os.path.join(BUILD, program), "--help"], capture_output=True, text=True, timeout=PATIENCE).stdout
    names = re.findall(r"^  --([a-z-]+)", child, re.M)
    ours = {"help", "config", "served-model-name", "chat-template", "tokenizer", "threads", "model"}  # other words, or resolved here
    if program == "phalanx-worker":
        ours.add("max-num-queued-reqs")  # the launcher's is the router's
    shared = [name for name in names if default_of(launcher, name) is not None and name not in ours]
    assert len(shared) >= 5
    assert {name: default_of(launcher, name) for name in shared} == {name: default_of(child, name) for name in shared}


def test_the_installed_tree_can_be_moved(tmp_path):
    prefix = tmp_path / "first"
    subprocess.run(["cmake", "--install", BUILD, "--prefix", str(prefix)], check=True, capture_output=True, timeout=PATIENCE)
    moved = tmp_path / "second"
    os.rename(prefix, moved)
    program = str(moved / "bin" / "phalanx")
    env = {name: value for name, value in os.environ.items() if name != "PHALANX_BIN_DIR"}
    process = subprocess.Popen([program, "serve", DEMO, "--port", "0", "--kv-cache-memory-bytes", "64MiB"], stdout=subprocess.PIPE,
                               text=True, env=env)
    try:
        url = re.match(r"Phalanx is ready: (\S+) ", process.stdout.readline()).group(1)
        assert ask(url, question(DEMO))["choices"]
    finally:
        process.terminate()
        assert process.wait(timeout=PATIENCE) == 0
        process.stdout.close()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
