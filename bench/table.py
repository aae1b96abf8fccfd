#!/usr/bin/env python3
"""The speed table of this machine: each figure beside its goal and the floor or roof it is held against. `make bench` runs it.

    bench/table.py --build build [--model FILE.gguf] [--quick]

Writes bench/results/<date>-<cpu>.json. The machine should have nothing else to do. README.md here says how to read it.
"""

import argparse
import datetime
import glob
import json
import os
import re
import subprocess

import front as front_bench
from processes import ROOT, Stack, bench_serve, free_port, wait_healthy

RESULTS = os.path.join(ROOT, "bench", "results")


def kernels(build, quick):
    command = [os.path.join(build, "phalanx-bench-kernels"), "--json", "--budget-ms", "50" if quick else "200", "--decode", "1", "16"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def canned(build):
    """The load client's own limit: it and a server of canned tokens share the cores."""
    with Stack() as stack:
        server = stack.start("canned", os.path.join(build, "phalanx-bench-serve"), "canned")
        return bench_serve(build, server.address, "canned", num_prompts=512, max_concurrency=64, random_input_len=16,
                           random_output_len=1000)


def ready_seconds(build, model):
    with Stack() as stack:
        port = free_port()
        return wait_healthy(port, start_serve(stack, build, model, port))


def start_serve(stack, build, model, port):
    return stack.start("serve", os.path.join(build, "phalanx"), "serve", model, "--host", "127.0.0.1", "--port", port,
                       "--served-model-name", "bench", ready=False)


def model_runs(build, model, quick):
    """One stream, 16 streams, prompts of 512 tokens, through the whole stack. A virtual machine's memory is faster in one minute and slower
    in the next, so the roofs are measured right before and after each round, and ratios are taken within it."""
    rounds, runs = 1 if quick else 5, []
    ready_seconds(build, model)  # the file is in the page cache from here on
    ready = [ready_seconds(build, model) for _ in range(1 if quick else 3)]
    with Stack() as stack:
        port = free_port()
        wait_healthy(port, start_serve(stack, build, model, port))
        url = f"http://127.0.0.1:{port}"
        run = lambda **flags: bench_serve(build, url, "bench", ignore_eos=True, **flags)
        run(num_prompts=4, max_concurrency=4, random_input_len=64, random_output_len=16, seed=99)
        roof = kernels(build, True)
        for seed in range(rounds):
            one = run(num_prompts=3, max_concurrency=1, random_input_len=16, random_output_len=128, seed=seed)
            sixteen = run(num_prompts=32, max_concurrency=16, random_input_len=16, random_output_len=128, seed=100 + seed)
            prefill = run(num_prompts=4, max_concurrency=1, random_input_len=512, random_output_len=1, seed=200 + seed)
            after = kernels(build, True)
            runs.append({"one": one, "sixteen": sixteen, "prefill": prefill,
                         "roof": {key: max(roof[key], after[key]) for key in ("read_bytes_per_s", "fma_flops_per_s", "gemm_flops_per_s")}})
            roof = after
    return {"rounds": runs, "ready_s": ready}


def spread(values):
    """Median, and lowest to highest as text."""
    values = sorted(values)
    return values[len(values) // 2], f"{values[0]:.2f}..{values[-1]:.2f}"


def model_rows(kernel, runs):
    rounds = runs["rounds"]
    tpot, tpot_spread = spread(r["one"]["median_tpot_ms"] for r in rounds)
    share, share_spread = spread(kernel["weight_bytes"] / r["roof"]["read_bytes_per_s"] * 1e3 / r["one"]["median_tpot_ms"] for r in rounds)
    ratio, ratio_spread = spread(r["sixteen"]["output_throughput"] / r["one"]["output_throughput"] for r in rounds)
    # What 16 streams can reach at most: one reads at the roof, sixteen multiply at the roof.
    roof, _ = spread(16 * kernel["weight_bytes"] / r["roof"]["read_bytes_per_s"] /
                     max(16 * kernel["token_flops"] / r["roof"]["gemm_flops_per_s"], kernel["weight_bytes"] / r["roof"]["read_bytes_per_s"])
                     for r in rounds)
    ttft, _ = spread(r["prefill"]["median_ttft_ms"] for r in rounds)
    flops, flops_spread = spread(kernel["token_flops"] * 512 / r["roof"]["gemm_flops_per_s"] * 1e3 / r["prefill"]["median_ttft_ms"]
                                 for r in rounds)
    one, _ = spread(r["one"]["output_throughput"] for r in rounds)
    sixteen, _ = spread(r["sixteen"]["output_throughput"] for r in rounds)
    ready, ready_spread = spread(runs["ready_s"])
    return [("decode, 1 stream: TPOT", tpot, "ms", tpot_spread, "", "", None),
            ("  share of the read roof", share, "", share_spread, f"{share:.0%}", ">= 80 %", share >= 0.8),
            ("decode, 1 stream", one, "tok/s", "", "", "", None),
            ("decode, 16 streams", sixteen, "tok/s", "", "", "", None),
            ("  over 1 stream", ratio, "x", ratio_spread, f"{ratio:.1f}x", ">= 6x", ratio >= 6),
            ("  most that the roofs allow", roof, "x", "", "", "", None),
            ("prefill of 512: TTFT", ttft, "ms", "", "", "", None),
            ("  share of the product peak", flops, "", flops_spread, f"{flops:.0%}", ">= 50 %", flops >= 0.5),
            ("prefill of 512", 512 / ttft * 1e3, "tok/s", "", "", "", None),
            ("ready, command to /health", ready, "s", ready_spread, "", "< 2", ready < 2)]


def rows_of(kernel, runs, client, front):
    """(what, value, unit, floor or roof as text, ratio as text, goal as text, whether the goal is met; None = no goal)"""
    read, gemm, fma = kernel["read_bytes_per_s"], kernel["gemm_flops_per_s"], kernel["fma_flops_per_s"]
    rows = [("stream read, all threads", read / 1e9, "GB/s", "", "", "", None),
            ("f32 fma peak", fma / 1e9, "GFLOP/s", "", "", "", None),
            ("bf16 product peak", gemm / 1e9, "GFLOP/s", f"fma peak {fma / 1e9:.0f}", f"{gemm / fma:.0%}", "", None)]
    if runs:
        rows += model_rows(kernel, runs)
    speed = client["output_throughput"]
    rows.append(("load client, canned server", speed, "tok/s", "", "", ">= 50,000", speed >= 50000))
    for row in front["latency"]:
        what, added = f"front, {row['backend']}, step {row['step_ms']:.0f} ms: added p50", row["added_p50_ms"]
        rows.append((what, added, "ms", "", "", "< 1.5", added < 1.5))
    speed, memory = front["throughput"]["tokens_per_s"], front["memory"]
    rows.append(("front, 64 streams", speed, "tok/s", "", "", ">= 20,000", speed >= 20000))
    for name in ("router", "gateway"):
        key = name + "_mib"
        growth = memory["growth_second_half_mib"][key]
        rows.append((f"{name} after {memory['end']['requests']} requests", memory["end"][key], "MiB",
                     f"half-way {memory['middle'][key]:.1f}", f"{growth:+.1f}", "flat", growth < max(2.0, 0.05 * memory["middle"][key])))
    return rows


def show(rows):
    print(f"{'what':<46} {'value':>12} {'unit':<8} {'held against':<16} {'ratio':>7} {'goal':>10}")
    for what, value, unit, floor, ratio, goal, met in rows:
        shown = f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"
        print(f"{what:<46} {shown:>12} {unit:<8} {floor:<16} {ratio:>7} {goal:>10} {'' if met is None else 'met' if met else 'MISSED'}")


def cpu_name():
    with open("/proc/cpuinfo") as f:
        return re.search(r"model name\s*:\s*(.+)", f.read()).group(1).strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build", help="the build folder")
    parser.add_argument("--model", help="SmolLM2-135M-Instruct; default: what the set-up fetched")
    parser.add_argument("--quick", action="store_true", help="one round, 4,000 requests in the memory run")
    args = parser.parse_args()
    build = os.path.abspath(args.build)
    model = args.model or next(iter(sorted(glob.glob(os.path.join(ROOT, "build", "deps", "models", "smollm2", "*.gguf")))), None)
    if model is None:
        print("SmolLM2 is not here (scripts/fetch_models.sh): its rows are left out")
    kernel = kernels(build, args.quick)
    runs = model_runs(build, model, args.quick) if model else None
    client, front = canned(build), front_bench.measure(build, 4000 if args.quick else 10000)
    rows = rows_of(kernel, runs, client, front)
    print(kernel["device"])
    show(rows)
    os.makedirs(RESULTS, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", f"{cpu_name()} {kernel['isa']} {kernel['threads']} threads".lower()).strip("-")
    path = os.path.join(RESULTS, f"{datetime.date.today().isoformat()}-{slug}.json")
    with open(path, "w") as f:
        names = ("what", "value", "unit", "held_against", "ratio", "goal", "met")
        json.dump({"date": datetime.date.today().isoformat(), "device": kernel["device"], "load_average": os.getloadavg()[0],
                   "rows": [dict(zip(names, row)) for row in rows], "kernels": kernel, "model": runs,
                   "client": client, "front": front}, f, indent=1)
        f.write("\n")
    print("written to", os.path.relpath(path, ROOT))


if __name__ == "__main__":
    main()
