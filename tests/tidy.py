#!/usr/bin/env python3
"""Checks what the compiler does not: layers, include cycles, banners, generated protobuf headers, machine paths, open ends.

A gate fails the run. File sizes are a lamp: printed, never failing. `tests/layers.txt` holds the layer order.
"""

import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CODE = (".cc", ".h")
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
OPEN_ENDS = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")
MACHINE = re.compile(r"(^|[\s\"'=(])/(work|farm)/|/tmp/[a-z_]+[0-9]*/")
TEXT = (".cc", ".h", ".go", ".rs", ".py", ".sh", ".md", ".txt", ".proto", ".cmake", ".toml", ".yaml", ".json")


def tracked():
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(path for path in out.splitlines() if os.path.isfile(os.path.join(ROOT, path)))


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8", errors="replace") as f:
        return f.read()


def layers():
    rooms = {}
    for line in read("tests/layers.txt").splitlines():
        line = line.split("#")[0].strip()
        if line:
            room, allowed = line.split(":")
            rooms[room.strip()] = allowed.split()
    return rooms


def room_of(path, rooms):
    """The longest room that holds the path; None outside every room."""
    folder = os.path.dirname(path)
    while folder:
        if folder in rooms:
            return folder
        folder = os.path.dirname(folder)
    return None


def is_test(path):
    name = os.path.splitext(os.path.basename(path))[0]
    return re.search(r"_(test|fuzz)$|^test_|_test_util$|^testing$", name) is not None or "/testing/" in path


def check_layers(files, rooms):
    problems = []
    for path in files:
        room = room_of(path, rooms)
        if room is None or is_test(path) or room in ("tests", "bench"):
            continue
        for target in INCLUDE.findall(read(path)):
            if ".pb.h" in target:
                if room not in ("worker/rpc", "router/rpc"):
                    problems.append(f"{path}: generated protobuf header {target} outside an rpc room")
                continue
            there = room_of(target, rooms)
            if there is None or there == room:
                continue
            if there not in rooms[room] and target not in rooms[room]:
                problems.append(f"{path}: {room} may not include {target}")
            if there == "worker/rpc" and room == "worker" and path != "worker/serve.cc":
                problems.append(f"{path}: only worker/serve.cc, which introduces door and engine, may include worker/rpc")
    return problems


def check_cycles(files):
    """Headers that include each other in a circle."""
    known = set(files)
    edges = {path: [t for t in INCLUDE.findall(read(path)) if t in known] for path in files if path.endswith(".h")}
    state, problems = {}, []

    def visit(path, trail):
        state[path] = 1
        for target in edges.get(path, []):
            if state.get(target) == 1:
                problems.append("include cycle: " + " -> ".join(trail + [path, target]))
            elif target not in state:
                visit(target, trail + [path])
        state[path] = 2

    for path in edges:
        if path not in state:
            visit(path, [])
    return problems


def check_banners(files):
    """A header opens with its name and says its thread and what it refuses to know."""
    problems = []
    for path in files:
        if not path.endswith(".h") or is_test(path):
            continue
        head = read(path)[:1200]
        if not head.startswith(f"// {path}:"):
            problems.append(f"{path}: the first line should be '// {path}: what it owns'")
        elif "Thread" not in head or "Refuses to know" not in head:
            problems.append(f"{path}: the banner lacks 'Refuses to know' or 'Thread'")
    return problems


def check_text(paths):
    problems = []
    for path in paths:
        if not path.endswith(TEXT) or path.startswith(("gateway/gen/", "tests/fixtures/", "models/demo/")) or path == "tests/tidy.py":
            continue
        for number, line in enumerate(read(path).splitlines(), 1):
            if OPEN_ENDS.search(line) and not path.endswith((".md", ".json")):
                problems.append(f"{path}:{number}: open end: {line.strip()[:80]}")
            if MACHINE.search(line):
                problems.append(f"{path}:{number}: a path of one machine: {line.strip()[:80]}")
    return problems


def check_architecture():
    """Every `file:Name` on the page is a file that has the name."""
    problems = []
    for path, name in re.findall(r"`([\w/]+\.\w+):(\w+)`", read("ARCHITECTURE.md")):
        if not os.path.isfile(os.path.join(ROOT, path)):
            problems.append(f"ARCHITECTURE.md: no file {path}")
        elif not re.search(rf"\b{name}\b", read(path)):
            problems.append(f"ARCHITECTURE.md: {path} has no {name}")
    return problems


def sizes(files):
    long = sorted(((read(path).count("\n"), path) for path in files if not path.startswith("tests/fixtures")), reverse=True)
    return [f"{count} lines: {path}" for count, path in long if count > 500]


def main():
    paths = tracked()
    files = [path for path in paths if path.endswith(CODE)]
    rooms = layers()
    problems = check_layers(files, rooms) + check_cycles(files) + check_banners(files) + check_text(paths) + check_architecture()
    for line in sizes(files):
        print("long:", line)
    for line in problems:
        print(line)
    print(f"tidy: {len(files)} C++ files, {len(problems)} problems")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
