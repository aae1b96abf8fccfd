#!/usr/bin/env python3
"""Runs the test suites, shows how far they are, and ends with one line: `N passed, N failed`.

    tests/run.py --build build                       everything that CI runs
    tests/run.py --build build --suites unit,tidy    some of it
    tests/run.py --build build --suites gpu          what needs a GPU (docs/gpu.md); nothing is built, so an unpacked tree will do

A suite is a function that yields (passed, failed, skipped) and prints what failed. A suite that cannot run counts as a failure.
"""

import argparse
import glob
import os
import re
import shutil
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


def ctest(build, *selection):
    """C++ tests: ctest runs the programs, their own reports are counted."""
    with tempfile.TemporaryDirectory() as folder:
        status, text = run(["ctest", "--test-dir", build, *selection, "--output-on-failure",
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
    return ctest(build, "-L", "unit", *without_grpc(build))


def long(build):
    """The long C++ tests: more seeds, larger grids."""
    if "nightly" not in run(["ctest", "--test-dir", build, "--print-labels"])[1]:
        return 0, 0, 0
    return ctest(build, "-L", "nightly", *without_grpc(build))


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


def pytest(*files, env=None, flags=()):
    """Black-box tests over the real processes. Lines that begin with `measured:` are shown although nothing failed."""
    def suite(build):
        status, text = run([sys.executable, "-m", "pytest", "-q", "--maxfail=20", "-p", "no:cacheprovider", *flags, *files],
                           env={"PHALANX_BUILD_DIR": os.path.abspath(build), **(env(build) if env else {})})
        counts = {word: sum(map(int, re.findall(rf"(\d+) {word}", text.splitlines()[-1] if text else "")))
                  for word in ("passed", "failed", "error", "errors", "skipped")}
        failed = counts["failed"] + counts["error"] + counts["errors"]
        print("".join(f"  {line}\n" for line in text.splitlines() if line.startswith(("measured: ", "SKIPPED "))), end="")
        print(tail(text, 150 if status else 1))
        return counts["passed"], max(failed, int(status != 0)), counts["skipped"]
    return suite


# ---- CUDA


def plugin(build):
    return os.path.join(os.path.abspath(build), "libphalanx_cuda.so")


def plugin_env(build):
    """An unpacked tree brings the libraries of its programs in lib/ (scripts/pack_gpu_tests.sh)."""
    libraries = os.path.join(os.path.abspath(build), "lib")
    paths = [path for path in (libraries if os.path.isdir(libraries) else "", os.environ.get("LD_LIBRARY_PATH", "")) if path]
    return {"PHALANX_OPS_PLUGIN": plugin(build), **({"LD_LIBRARY_PATH": ":".join(paths)} if paths else {})}


def programs(pattern):
    """GoogleTest programs of the build folder, started directly: an unpacked tree has no ctest files."""
    def suite(build):
        found = sorted(path for path in glob.glob(os.path.join(build, pattern)) if os.path.isfile(path) and os.access(path, os.X_OK))
        if not found:
            print(f"  there is no {os.path.join(build, pattern)}")
            return 0, 1, 0
        ended_badly = 0
        with tempfile.TemporaryDirectory() as folder:
            for path in found:
                status, text = run([os.path.abspath(path)], env={"GTEST_OUTPUT": f"xml:{folder}/", **plugin_env(build)})
                ended_badly += status != 0
                if status:
                    print(tail(text, 100))
            passed, failed, skipped = google_counts(folder)
        return passed, max(failed, ended_badly), skipped
    return suite


def cuda(build):
    """Without a GPU: the plug-in was built from this tree, it loads, it has this program's table, and its choices pass their tests."""
    if os.environ.get("PHALANX_NO_CUDA"):
        print("  " + "!" * 100 + "\n  !! PHALANX_NO_CUDA is set: THE CUDA PLUG-IN WAS NOT BUILT AND NOT TESTED\n  " + "!" * 100)
        return 0, 0, 1
    passed, failed, skipped = ctest(os.path.join(build, "cuda"))
    status, text = run([os.path.join(build, "phalanx-bench-kernels"), "--plugin", plugin(build), "--decode", "0", "--prefill", "0"])
    loads = status == 0 or "no usable NVIDIA GPU" in text
    if not loads:
        print(tail(text))
    return passed + loads, failed + (not loads), skipped


def sanitizer(tool, *flags, tests="*", limit=600):
    """The conformance tests of the operations under a tool of NVIDIA's compute-sanitizer."""
    def suite(build):
        program = shutil.which("compute-sanitizer")
        if program is None:
            print(f"  !! SKIPPED: compute-sanitizer is not on PATH, so {tool} did not run; it comes with the CUDA toolkit")
            return 0, 0, 1
        # One test provokes an allocation that cannot be: the call's own error is no finding.
        status, text = run([program, "--tool", tool, "--error-exitcode", "9", *flags, os.path.join(build, "kernels", "ops_test"),
                            f"--gtest_filter={tests}"], env=plugin_env(build), limit=limit)
        found = re.search(r"\[  PASSED  \] (\d+) test", text)
        print("".join(f"  {line}\n" for line in text.splitlines() if "SUMMARY" in line), end="")
        if status or not found:
            print(tail(text, 120))
        return int(status == 0 and found is not None), int(status != 0 or found is None), 0
    return suite


SUITES = {
    "tidy": tidy,
    "generated": generated,
    "unit": unit,
    "cuda": cuda,
    "cargo": cargo,
    "gateway": go("gateway"),
    "bench-serve": go("bench/serve"),
    "api": pytest("tests/api_test.py"),
    "openai": pytest("tests/openai_test.py"),
    "cli": pytest("tests/cli_test.py"),
    "luck": pytest("tests/luck_test.py"),
    "tp": pytest("tests/tp_test.py", flags=("-rP",)),
    "nightly": long,
    "gpu-choices": programs("cuda/*_test"),
    "gpu-operations": programs("kernels/ops_test"),
    "gpu-parity": programs("worker/model/parity_test"),
    "gpu-memcheck": sanitizer("memcheck", "--report-api-errors", "no", "--leak-check", "full"),
    # The three large grids take minutes under it; Repeat.* and the rest launch the same kernels.
    "gpu-racecheck": sanitizer("racecheck", tests="-Ops.Linear:Ops.AttentionOfPrompts:Ops.AttentionOfLongPrompts"),
    "gpu-processes": pytest("tests/gpu", env=plugin_env, flags=("-rs", "--tb=short")),
}
GPU = [name for name in SUITES if name.startswith("gpu-")]
CI = [name for name in SUITES if name != "nightly" and name not in GPU]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build", help="the build folder")
    parser.add_argument("--suites", default=",".join(CI), help="comma-separated; gpu = all of gpu-*; all: " + ", ".join(SUITES))
    args = parser.parse_args()
    totals, start = [0, 0, 0], time.monotonic()
    names = [name for word in args.suites.split(",") for name in (GPU if word == "gpu" else [word])]
    if unknown := [name for name in names if name not in SUITES]:
        parser.error(f"unknown suite: {', '.join(unknown)}")
    for index, name in enumerate(names, 1):
        print(f"[{index}/{len(names)}] {name} ...", flush=True)
        began = time.monotonic()
        counts = SUITES[name](os.path.abspath(args.build))
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
