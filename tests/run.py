#!/usr/bin/env python3
"""Runs the test suites, shows how far they are, and ends with one line: `N passed, N failed`.

    tests/run.py --build build                       everything that CI runs
    tests/run.py --build build --suites unit,tidy    some of it

A suite is a function that yields (passed, failed, skipped) and prints what failed. A suite that cannot run counts as a failure.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOURCE_ENV = {"PHALANX_SOURCE_DIR": ROOT, "PHALANX_DEPS": os.path.join(ROOT, "build", "deps")}

# Allocations that cannot be are refused, as the real allocator does. Reports from inside libraries that are not instrumented are left out.
SANITIZER_ENV = {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=0:allocator_may_return_null=1",
                 "ASAN_OPTIONS": "detect_stack_use_after_return=1:allocator_may_return_null=1",
                 "UBSAN_OPTIONS": "print_stacktrace=1"}


def run(command, cwd=ROOT, env=None, limit=1500):
    """Runs a command with its output captured. A time-out reads as exit status 124."""
    try:
        done = subprocess.run(command, cwd=cwd, env={**os.environ, **SOURCE_ENV, **(env or {})}, text=True, errors="replace",
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit)
        return done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        text = late.stdout or b""
        return 124, (text.decode(errors="replace") if isinstance(text, bytes) else text) + f"\ntimed out after {limit} s\n"


def tail(text, lines=60):
    return "\n".join(text.splitlines()[-lines:])


def google_counts(folder):
    """Cases of every GoogleTest report in the folder, and the names of the programs that wrote one."""
    passed = failed = skipped = 0
    for name in sorted(os.listdir(folder)):
        for case in ElementTree.parse(os.path.join(folder, name)).getroot().iter("testcase"):
            if case.find("failure") is not None:
                failed += 1
            elif case.get("result") == "skipped" or case.find("skipped") is not None:
                skipped += 1
                print(f"  skipped: {case.get('classname')}.{case.get('name')}")
            else:
                passed += 1
    return passed, failed, skipped


def without_grpc(build):
    """Debian's gRPC is not instrumented, so the race detector does not see its locks: what runs over it says nothing there."""
    with open(os.path.join(build, "CMakeCache.txt"), encoding="utf-8") as f:
        if not re.search(r"^PHALANX_SANITIZE:\w+=thread$", f.read(), re.M):
            return []
    print("  left out: tests over gRPC, whose locks the race detector does not see")
    return ["-LE", "grpc"]


def ctest(build, label):
    """C++ tests: ctest runs the programs, their own reports are counted."""
    with tempfile.TemporaryDirectory() as folder:
        status, text = run(["ctest", "--test-dir", build, "-L", label, *without_grpc(build), "--output-on-failure",
                            "-j", str(os.cpu_count() or 2)],
                           env={"GTEST_OUTPUT": f"xml:{folder}/", **SANITIZER_ENV})
        passed, failed, skipped = google_counts(folder)
    if status:
        print(tail(text, 200))
    programs = re.search(r"(\d+)% tests passed, (\d+) tests failed out of (\d+)", text)
    if not programs or programs.group(3) == "0":
        return 0, 1, 0
    return passed, max(failed, int(programs.group(2))), skipped


def unit(build):
    return ctest(build, "unit")


def long(build):
    """The long C++ tests: more seeds, larger grids."""
    return ctest(build, "nightly") if "nightly" in run(["ctest", "--test-dir", build, "--print-labels"])[1] else (0, 0, 0)


def cargo(build):
    """Tests of the Rust crate."""
    status, text = run(["cargo", "test", "--release", "--locked", "--quiet"], cwd=os.path.join(ROOT, "text"),
                       env={"CARGO_TARGET_DIR": os.path.join(ROOT, "build", "cargo")})
    found = re.findall(r"(\d+) passed; (\d+) failed; (\d+) ignored", text)
    passed, failed, ignored = (sum(int(row[i]) for row in found) for i in range(3))
    if status:
        print(tail(text, 120))
    return passed, max(failed, int(status != 0)), ignored


def go(folder):
    """Vets and tests one Go module."""
    def suite(build):
        where = os.path.join(ROOT, folder)
        status, text = run(["go", "vet", "./..."], cwd=where)
        if status:
            print(tail(text))
            return 0, 1, 0
        status, text = run(["go", "test", "-v", "./..."], cwd=where)
        passed, failed, skipped = (len(re.findall(rf"^\s*--- {word}:", text, re.M)) for word in ("PASS", "FAIL", "SKIP"))
        if status:
            print(tail("\n".join(line for line in text.splitlines() if not re.match(r"\s*(=== |--- PASS)", line)), 150))
        return passed, max(failed, int(status != 0)), skipped
    return suite


def tidy(build):
    """Layers, include cycles, banners, generated files."""
    status, text = run([sys.executable, "tests/tidy.py"])
    print(tail(text, 40 if status else 3))
    return int(status == 0), int(status != 0), 0


def generated(build):
    """The committed generated code is what the protos say."""
    status, text = run(["bash", "tests/verify_generated.sh"])
    if status:
        print(tail(text))
    return int(status == 0), int(status != 0), 0


def pytest(*files):
    """Black-box tests over the real processes."""
    def suite(build):
        status, text = run([sys.executable, "-m", "pytest", "-q", "--maxfail=20", "-p", "no:cacheprovider", *files],
                           env={"PHALANX_BUILD_DIR": os.path.abspath(build)})
        counts = {word: sum(map(int, re.findall(rf"(\d+) {word}", text.splitlines()[-1] if text else "")))
                  for word in ("passed", "failed", "error", "errors", "skipped")}
        failed = counts["failed"] + counts["error"] + counts["errors"]
        print(tail(text, 150 if status else 1))
        return counts["passed"], max(failed, int(status != 0)), counts["skipped"]
    return suite


SUITES = {
    "tidy": tidy,
    "generated": generated,
    "unit": unit,
    "cargo": cargo,
    "gateway": go("gateway"),
    "bench-serve": go("bench/serve"),
    "api": pytest("tests/api_test.py"),
    "openai": pytest("tests/openai_test.py"),
    "cli": pytest("tests/cli_test.py"),
    "nightly": long,
}
CI = [name for name in SUITES if name != "nightly"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build", help="the build folder")
    parser.add_argument("--suites", default=",".join(CI), help="comma-separated; all: " + ", ".join(SUITES))
    args = parser.parse_args()
    totals, start = [0, 0, 0], time.monotonic()
    names = args.suites.split(",")
    if unknown := [name for name in names if name not in SUITES]:
        parser.error(f"unknown suite: {', '.join(unknown)}")
    for index, name in enumerate(names, 1):
        print(f"[{index}/{len(names)}] {name} ...", flush=True)
        began = time.monotonic()
        counts = SUITES[name](args.build)
        totals = [a + b for a, b in zip(totals, counts)]
        print(f"[{index}/{len(names)}] {name}: {counts[0]} passed, {counts[1]} failed, {counts[2]} skipped, {time.monotonic() - began:.0f} s",
              flush=True)
    if totals[2]:
        print(f"{totals[2]} skipped")
    print(f"{time.monotonic() - start:.0f} s")
    print(f"{totals[0]} passed, {totals[1]} failed")
    return int(totals[1] > 0 or totals[0] == 0)


if __name__ == "__main__":
    sys.exit(main())
