#!/usr/bin/env python3
"""What the front (gateway and router) costs, over a worker whose tokens are canned.

    bench/front.py --build build [--json]

  added p50 latency   median time of a request of one token (closed loop, one in flight), sent to first event at the HTTP client, minus
                      the worker's step delay. So it holds everything that is not the model: HTTP, JSON, tokenizer, gRPC twice,
                      the worker's own scheduler, and the load client itself.
  streamed tokens/s   64 and 256 streams over a worker that takes no time: what the front can pass on, on the cores it shares with the
                      worker and the client.
  memory              resident MiB of gateway and router after 1,000 requests, half-way, and after 10,000 more.
"""

import argparse
import json
import os

from processes import ROOT, Stack, bench_serve


def start_front(stack, build, step_delay_us):
    model = os.path.join(ROOT, "models", "demo")
    program = lambda name: os.path.join(build, name)
    worker = stack.start("worker", program("phalanx-fake-worker"), "--listen", "unix:" + stack.path("worker.sock"),
                         "--served-model-name", "demo", "--step-delay-us", step_delay_us, "--max-num-queued-reqs", 4096,
                         "--num-blocks", 32768, "--no-enable-prefix-caching")
    router = stack.start("router", program("phalanx-router"), "--model", model, "--served-model-name", "demo",
                         "--workers", worker.address, "--listen", "unix:" + stack.path("router.sock"))
    gateway = stack.start("gateway", program("phalanx-gateway"), "--router", router.address, "--host", "127.0.0.1", "--port", 0)
    address = gateway.address
    return router, gateway, address if "://" in address else "http://" + address


def latency(build, step_delay_us, backend):
    with Stack() as stack:
        _, _, url = start_front(stack, build, step_delay_us)
        result = bench_serve(build, url, "demo", backend=backend, num_prompts=1000, max_concurrency=1, num_warmups=100,
                             random_input_len=16, random_output_len=1, ignore_eos=True)
    return {"backend": backend, "step_ms": step_delay_us / 1000, "p50_ms": result["p50_ttft_ms"], "p99_ms": result["p99_ttft_ms"],
            "added_p50_ms": result["p50_ttft_ms"] - step_delay_us / 1000}


def throughput(build, streams=64):
    with Stack() as stack:
        _, _, url = start_front(stack, build, 0)
        result = bench_serve(build, url, "demo", num_prompts=streams * 4, max_concurrency=streams, num_warmups=streams,
                             random_input_len=16, random_output_len=512, ignore_eos=True)
    return {"streams": streams, "tokens_per_s": result["output_throughput"], "itl_p99_ms": result["p99_itl_ms"], "failed": result["failed"]}


def memory(build, requests=10000, parts=10):
    with Stack() as stack:
        router, gateway, url = start_front(stack, build, 0)
        marks = []
        for part in range(parts + 1):
            result = bench_serve(build, url, "demo", num_prompts=requests // parts, max_concurrency=16, random_input_len=64,
                                 random_output_len=8, seed=part, ignore_eos=True)
            marks.append({"requests": (part + 1) * (requests // parts), "router_mib": router.rss_mib(), "gateway_mib": gateway.rss_mib(),
                          "requests_per_s": result["request_throughput"], "failed": result["failed"]})
    first, middle, last = marks[0], marks[len(marks) // 2], marks[-1]
    growth = {name: last[name] - middle[name] for name in ("router_mib", "gateway_mib")}
    return {"start": first, "middle": middle, "end": last, "growth_second_half_mib": growth, "marks": marks}


def measure(build, requests=10000):
    return {"latency": [latency(build, us, backend) for us, backend in ((1000, "openai"), (0, "openai"), (0, "openai-chat"))],
            "throughput": throughput(build), "throughput_256": throughput(build, 256), "memory": memory(build, requests)}


def show(front):
    for row in front["latency"]:
        print(f"added p50 latency, {row['backend']}, step of {row['step_ms']:.0f} ms: {row['added_p50_ms']:.3f} ms "
              f"(p99 of the whole {row['p99_ms']:.2f} ms)")
    for row in (front["throughput"], front["throughput_256"]):
        print(f"streamed, {row['streams']} streams: {row['tokens_per_s']:.0f} tokens/s, p99 gap {row['itl_p99_ms']:.1f} ms, "
              f"{row['failed']} failed")
    for when in ("start", "middle", "end"):
        row = front["memory"][when]
        print(f"memory after {row['requests']} requests: router {row['router_mib']:.1f} MiB, gateway {row['gateway_mib']:.1f} MiB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build", help="the build folder")
    parser.add_argument("--requests", type=int, default=10000, help="of the memory run")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    args = parser.parse_args()
    front = measure(os.path.abspath(args.build), args.requests)
    print(json.dumps(front)) if args.json else show(front)


if __name__ == "__main__":
    main()
