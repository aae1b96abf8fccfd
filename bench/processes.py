"""Starts the programs of a build folder for the benches, waits until they are ready, reads their memory and stops them."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Process:
    """One child. Its log lies in the folder; the ready line's address is in `address`."""

    def __init__(self, name, command, folder, ready=True):
        self.name, self.log = name, os.path.join(folder, name + ".log")
        self.began = time.monotonic()
        self.child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=open(self.log, "wb"), text=True, start_new_session=True)
        self.address = self.wait_ready() if ready else None
        threading.Thread(target=self.child.stdout.read, daemon=True).start()  # nobody else reads, and a pipe fills

    def wait_ready(self):
        for line in self.child.stdout:
            if line.startswith("PHALANX_READY "):
                return line.split(None, 1)[1].strip()
            if line.startswith("PHALANX_ERROR "):
                raise SystemExit(f"{self.name}: {line.split(None, 1)[1].strip()}")
        raise SystemExit(f"{self.name} ended before it was ready:\n{self.tail()}")

    def tail(self):
        with open(self.log, errors="replace") as f:
            return "".join(f.readlines()[-20:])

    def rss_mib(self):
        with open(f"/proc/{self.child.pid}/status") as f:
            return int(re.search(r"VmRSS:\s+(\d+) kB", f.read()).group(1)) / 1024

    def stop(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.child.pid, signal.SIGKILL)
                self.child.wait()


class Stack:
    """Processes that stop together, in reverse order, and their folder."""

    def __enter__(self):
        self.folder, self.processes = tempfile.TemporaryDirectory(prefix="phalanx-bench-"), []
        return self

    def start(self, name, *command, ready=True):
        process = Process(name, [str(word) for word in command], self.folder.name, ready)
        self.processes.append(process)
        return process

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def __exit__(self, *_):
        for process in reversed(self.processes):
            process.stop()
        self.folder.cleanup()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_healthy(port, process, limit=120):
    """Seconds from the start of the process until /health says 200."""
    while time.monotonic() - process.began < limit:
        if process.child.poll() is not None:
            raise SystemExit(f"{process.name} ended:\n{process.tail()}")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return time.monotonic() - process.began
        except OSError:
            pass
        time.sleep(0.005)
    raise SystemExit(f"{process.name} was not healthy after {limit} s:\n{process.tail()}")


def bench_serve(build, url, model, **flags):
    """Runs phalanx-bench-serve and returns its result. Values of True become bare flags."""
    with tempfile.TemporaryDirectory() as folder:
        command = [os.path.join(build, "phalanx-bench-serve"), "--base-url", url, "--save-result", "--result-dir", folder,
                   "--result-filename", "r.json", "--model", model, "--percentile-metrics", "ttft,tpot,itl,e2el",
                   "--metric-percentiles", "50,90,99"]
        for name, value in flags.items():
            command.append("--" + name.replace("_", "-"))
            if value is not True:
                command.append(str(value))
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}")
        with open(os.path.join(folder, "r.json")) as f:
            result = json.load(f)
        if result["failed"]:
            print(f"{result['failed']} requests failed: {result.get('first_error')}", file=sys.stderr)
        return result
