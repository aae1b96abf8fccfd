#!/usr/bin/env python3
"""The speed table of a GPU: models of real shapes with random weights through the whole stack, beside vLLM, the goal and the floor.

    bench/gpu_table.py --build build [--rounds 3] [--out FILE.json] [--only 1.5b]

Makes the models in a temporary folder (3.1 GB for the 1.5B; the 7B needs no weights file), starts `phalanx serve` on this machine's GPU and
drives it with phalanx-bench-serve on the same host. vLLM's column is that of bench/peers.json, measured earlier on a card of the same kind;
on other cards it is left out. Prints the table last. Nothing here is a test.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import tempfile

import shapes
from processes import Stack, bench_serve, free_port, wait_healthy

HERE = os.path.dirname(os.path.abspath(__file__))

# name, input, output, streams, prompts of a round
LOADS = {
    "1.5b": [("c1", 1024, 128, 1, 16), ("c8", 1024, 128, 8, 64), ("c64", 1024, 128, 64, 256), ("c256", 1024, 128, 256, 768),
             ("long c64", 128, 512, 64, 192), ("long c256", 128, 512, 256, 512)],
    "1.5b eager": [("c1", 1024, 128, 1, 12)],
    "7b": [("c1", 1024, 128, 1, 6), ("c64", 1024, 128, 64, 128), ("c256", 1024, 128, 256, 512)],
}
# what, (server, load), figure of the client's result, goal; "lower" figures are times
ROWS = [
    ("1.5B, C=1, 1024/128: TPOT", ("1.5b", "c1"), "median_tpot_ms", 1.25),
    ("1.5B, C=1, 1024/128: TTFT", ("1.5b", "c1"), "median_ttft_ms", 9.0),
    ("1.5B, C=8, 1024/128: TPOT", ("1.5b", "c8"), "median_tpot_ms", 1.5),
    ("1.5B, C=64, 1024/128", ("1.5b", "c64"), "output_throughput", 14000),
    ("1.5B, C=256, 1024/128", ("1.5b", "c256"), "output_throughput", 18000),
    ("1.5B, C=64, 128/512", ("1.5b", "long c64"), "output_throughput", None),
    ("1.5B, C=256, 128/512", ("1.5b", "long c256"), "output_throughput", 55000),
    ("1.5B, C=1, --enforce-eager: TPOT", ("1.5b eager", "c1"), "median_tpot_ms", 2.5),
    ("7B, C=1, 1024/128: TPOT", ("7b", "c1"), "median_tpot_ms", 5.3),
    ("7B, C=64, 1024/128", ("7b", "c64"), "output_throughput", None),
    ("7B, C=256, 1024/128", ("7b", "c256"), "output_throughput", 4900),
]


def start(stack, build, model, *flags):
    """(base URL, seconds from the command to /health 200)"""
    port = free_port()
    process = stack.start("serve", os.path.join(build, "phalanx"), "serve", model, "--host", "127.0.0.1", "--port", port, "--device", "cuda",
                          "--served-model-name", "bench", "--max-model-len", 16384, *flags, ready=False)
    return f"http://127.0.0.1:{port}", wait_healthy(port, process)


def load(build, url, spec, seed, **flags):
    _, prompt, output, streams, prompts = spec
    return bench_serve(build, url, "bench", ignore_eos=True, random_vocab_size=590, random_input_len=prompt, random_output_len=output,
                       max_concurrency=streams, num_prompts=prompts, seed=seed, **flags)


def serve(build, name, model, flags, rounds):
    """Runs every load of a server `rounds` times, with other prompts each time; the first request after ready apart."""
    with Stack() as stack:
        url, ready = start(stack, build, model, *flags)
        first = bench_serve(build, url, "bench", ignore_eos=True, random_vocab_size=590, random_input_len=1024, random_output_len=128,
                            max_concurrency=1, num_prompts=1, seed=7)
        runs = {spec[0]: [load(build, url, spec, 100 * i + number, num_warmups=min(spec[3], 64)) for i in range(rounds)]
                for number, spec in enumerate(LOADS[name])}
        print(f"{name}: ready after {ready:.2f} s", flush=True)
        return {"ready_s": ready, "first": first, "runs": runs}


def gpu_name():
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(query, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[0].strip()


def peers(gpu):
    with open(os.path.join(HERE, "peers.json"), encoding="utf-8") as f:
        known = json.load(f)
    return known.get(gpu, {})


def spread(values):
    values = sorted(values)
    return values[len(values) // 2], values[0], values[-1]


def shown(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def print_row(what, values, goal, peer, floor, lower):
    middle, low, high = spread(values)
    met = "" if goal is None else "met" if (middle <= goal if lower else middle >= goal) else "missed"
    unit = "ms" if lower else "tok/s"
    columns = (what, f"{shown(middle)} {unit}", f"{shown(low)}..{shown(high)}", shown(peer) if peer else "", shown(goal) if goal else "",
               floor, met)
    print("| " + " | ".join(columns) + " |")


def print_table(results, peer):
    print("| load | Phalanx, median | spread | vLLM 0.26 | goal | floor, or roof | |\n|---|---|---|---|---|---|---|")
    for what, (server, name), figure, goal in ROWS:
        if server not in results:
            continue
        values = [run[figure] for run in results[server]["runs"][name]]
        known = peer.get(what, {})
        print_row(what, values, goal, known.get("vllm"), known.get("floor", ""), figure.endswith("_ms"))
    for server, result in results.items():
        loads = result["runs"]["c1"]
        later = spread([run["median_e2el_ms"] for run in loads])[0]
        print(f"| {server}: command to ready | {result['ready_s']:.2f} s | | | {'4 s' if server == '1.5b' else ''} | | |")
        print(f"| {server}: first request / a later one | {result['first']['median_e2el_ms'] / later:.2f}x | "
              f"{result['first']['median_e2el_ms']:.0f} / {later:.0f} ms | | 1.2x | | |")


def measure(build, folder, rounds, only):
    small, large = os.path.join(folder, "1.5b"), os.path.join(folder, "7b")
    results = {}
    if only in (None, "1.5b"):
        shapes.make("1.5b", small)
        results["1.5b"] = serve(build, "1.5b", small, [], rounds)
        results["1.5b eager"] = serve(build, "1.5b eager", small, ["--enforce-eager"], rounds)
        shutil.rmtree(small)
    if only in (None, "7b"):
        shapes.make("7b", large, weights=False)
        results["7b"] = serve(build, "7b", large, ["--load-format", "dummy"], rounds)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build", help="folder of the programs and the plug-in")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["1.5b", "7b"])
    parser.add_argument("--out", help="all results as JSON")
    args = parser.parse_args()
    gpu = gpu_name()
    with tempfile.TemporaryDirectory(prefix="phalanx-gpu-") as folder:
        results = measure(os.path.abspath(args.build), folder, args.rounds, args.only)
    if args.out:
        slim = json.loads(re.sub(r"\bNaN\b", "null", json.dumps(results)))
        with open(args.out, "w", encoding="utf-8") as f:
            json.dump({"gpu": gpu, "date": datetime.date.today().isoformat(), "rounds": args.rounds, "results": slim}, f, indent=1)
    print(f"\n{gpu}, {args.rounds} rounds, {datetime.date.today().isoformat()}\n")
    print_table(results, peers(gpu))


if __name__ == "__main__":
    main()
