"""Starts the real processes for tests: a worker (real or with a hash for a model), a router, a gateway, over sockets in a fresh folder.

    with Cluster(tmp_path) as cluster:
        requests go to cluster.url

Everything listens on loopback or on unix sockets in `folder`; every process is ended with the cluster.
"""

import os
import queue
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request

ROOT = os.environ.get("PHALANX_SOURCE_DIR") or os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.environ.get("PHALANX_BUILD_DIR") or os.path.join(ROOT, "build")
DEMO = os.path.join(ROOT, "models", "demo")
READY_LIMIT_S = 60


class Failed(Exception):
    """A process said PHALANX_ERROR, or ended before it was ready."""


class Process:
    """One program that prints PHALANX_READY. Its log is kept in `log`."""

    def __init__(self, name, *flags, env=None, wait=True):
        self.command = [os.path.join(BUILD, name), *map(str, flags)]
        self.log, self.lines = [], queue.Queue()
        self.child = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                                      env={**os.environ, **(env or {})})
        for stream in (self.child.stdout, self.child.stderr):
            threading.Thread(target=self._read, args=(stream,), daemon=True).start()
        self.address = self._wait_ready() if wait else None

    def _read(self, stream):
        for line in stream:
            self.log.append(line.rstrip("\n"))
            if line.startswith("PHALANX_"):
                self.lines.put(line.strip())
        if stream is self.child.stdout:
            self.lines.put(None)

    def _wait_ready(self):
        end = time.monotonic() + READY_LIMIT_S
        while True:
            try:
                line = self.lines.get(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                self.kill()
                raise Failed(f"{self.command[0]} was not ready within {READY_LIMIT_S} s") from None
            if line is None or line.startswith("PHALANX_ERROR"):
                self.child.wait(10)
                raise Failed(line or "\n".join(self.log[-20:]))
            if line.startswith("PHALANX_READY"):
                return line.split(" ", 1)[1]

    def signal(self, number):
        self.child.send_signal(number)

    def stop(self, limit_s=10):
        """SIGTERM; returns the exit status."""
        if self.child.poll() is None:
            self.child.terminate()
        try:
            return self.child.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self):
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()

    def rss_bytes(self):
        with open(f"/proc/{self.child.pid}/statm", encoding="ascii") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def open_files(self):
        return len(os.listdir(f"/proc/{self.child.pid}/fd"))


class Cluster:
    """Workers, one router, one gateway. `fake` workers draw tokens by a hash; real ones load `model`."""

    def __init__(self, folder, model=DEMO, fake=True, workers=1, name="demo", worker=(), router=(), gateway=(), env=None):
        self.folder, self.model, self.fake, self.name = str(folder), model, fake, name
        self.worker_flags, self.router_flags, self.gateway_flags, self.env = worker, router, gateway, env
        self.workers, self.router, self.gateway = [None] * workers, None, None

    def socket(self, name):
        return f"unix:{self.folder}/{name}.sock"

    def start_worker(self, index=0):
        flags = ["--listen", self.socket(f"worker{index}"), "--served-model-name", self.name, *self.worker_flags]
        if self.fake:
            self.workers[index] = Process("phalanx-fake-worker", *flags)
        else:
            self.workers[index] = Process("phalanx-worker", "--model", self.model, *flags)
        return self.workers[index]

    def __enter__(self):
        try:
            for index in range(len(self.workers)):
                self.start_worker(index)
            self.router = Process("phalanx-router", "--model", self.model, "--served-model-name", self.name, "--listen", self.socket("router"),
                                  "--grpc-listen", "127.0.0.1:0", "--workers",
                                  *[self.socket(f"worker{i}") for i in range(len(self.workers))], *self.router_flags)
            self.gateway = Process("phalanx-gateway", "--router", self.socket("router"), "--host", "127.0.0.1", "--port", "0",
                                   *self.gateway_flags, env=self.env)
            self.url = f"http://127.0.0.1:{self.gateway.address.rsplit(':', 1)[1]}"
            wait_until(self.healthy, what="/health to say 200")
        except BaseException:
            self.__exit__()
            raise
        return self

    def healthy(self):
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=5) as reply:
                return reply.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def __exit__(self, *exception):
        for process in (self.gateway, self.router, *self.workers):
            if process is not None:
                process.signal(signal.SIGCONT)
                process.kill()


def wait_until(condition, limit_s=20, what="the condition"):
    """Polls; raises AssertionError after limit_s. Returns the condition's first true value."""
    end = time.monotonic() + limit_s
    while True:
        if value := condition():
            return value
        assert time.monotonic() < end, f"waited {limit_s} s for {what}"
        time.sleep(0.02)
