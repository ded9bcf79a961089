#!/usr/bin/env python3
"""Measures ponder beside its peers in one run: same machine, same threads, taking turns.

    tests/peers/speed.py                 prefill and decode on the CPU, batch 8, memory
    tests/peers/speed.py --vulkan        ponder on wgpu beside llama.cpp's Vulkan backend (lavapipe)
    tests/peers/speed.py --peers-only    the targets, before there is a ponder
    tests/peers/speed.py --json          the same as one JSON object
    tests/peers/speed.py --urgent        as root on a busy machine: go before all others

Prefill is a prompt of 512 tokens, decode 128 tokens after a short prompt, batch 1. Every engine
runs once a round, one after another, so that a busy spell of the machine hits all; the table has
medians over the rounds (and the best round, in parentheses). A peer that is missing or fails is
named in the table and counted. Exit code 1 if a required ratio is missed or ponder fails.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys

from common import (
    HERE, MODEL, PYTHON, die, llama_tool, need_model, ponder, ponder_binary, say, server,
)

# What issue 2 asks: ponder's rate over the fastest peer's.
REQUIRED = {"cpu": {"prefill": 0.7, "decode": 2.0}, "vulkan": {"prefill": 5.0, "decode": 5.0}}
BATCH_8 = 3.0
HOST_US_MAX = 100
MEMORY_SLACK = 150_000_000


class Missing(Exception):
    """A peer that cannot run here, and why, in one line."""


# Each engine is a generator-based context: entering it loads the model, what it yields measures
# one round and returns {"prefill": tokens per second, "decode": tokens per second}.


@contextlib.contextmanager
def llama_cpp(options):
    tool = llama_tool("llama-bench")
    if tool is None:
        raise Missing("llama-bench is not built (tests/peers/install.py)")

    def measure():
        done = subprocess.run(
            [tool, "-m", options.model, "-t", str(options.threads), "-p", str(options.prompt), "-n", str(options.decode),
             "-r", "1", "-o", "json"], capture_output=True, text=True)
        if done.returncode != 0:
            raise Missing(f"llama-bench ended with {done.returncode}: {done.stderr.strip()[-200:]}")
        rows = json.loads(done.stdout)
        return {"decode" if row["n_gen"] else "prefill": row["avg_ts"] for row in rows}

    yield measure


@contextlib.contextmanager
def llama_server(options, vulkan=False):
    rounds = iter(range(10**6))
    flags = ["-c", "2048"]
    with contextlib.ExitStack() as stack:
        try:
            peer = stack.enter_context(server(options.model, *flags, threads=options.threads, vulkan=vulkan))
        except RuntimeError as error:
            raise Missing(str(error)) from error

        def complete(length, tokens):
            # Plain words' ids, other ones each time, so that no cache can help.
            start = 1000 + 7 * next(rounds)
            prompt = [start + 3 * n % 20_000 for n in range(length)]
            try:
                return peer.post("/completion", {
                    "prompt": prompt, "n_predict": tokens, "ignore_eos": True, "cache_prompt": False,
                    "samplers": ["top_k"], "top_k": 1,
                })["timings"]
            except OSError as error:
                raise Missing(f"llama-server: {error}") from error

        complete(8, 4)  # warm up: Vulkan compiles its pipelines on first use
        yield lambda: {
            "prefill": complete(options.prompt, 1)["prompt_per_second"],
            "decode": complete(8, options.decode)["predicted_per_second"],
        }


@contextlib.contextmanager
def mistral_rs(options):
    if not PYTHON.exists():
        raise Missing("not installed (tests/peers/install.py)")
    environment = dict(os.environ, RAYON_NUM_THREADS=str(options.threads))
    worker = subprocess.Popen(
        [PYTHON, HERE / "mistralrs_worker.py", options.model.parent, options.model.name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)

    def answer():
        # Its log lines share stdout with the answers.
        for line in worker.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise Missing(f"the binding ended with {worker.wait()}")

    def complete(words, tokens):
        print(json.dumps({"prompt": " the" * words, "max_tokens": tokens}), file=worker.stdin, flush=True)
        return answer()

    try:
        answer()
        complete(8, 4)
        yield lambda: {
            "prefill": complete(options.prompt, 1)["prefill"],
            "decode": complete(8, options.decode)["decode"],
        }
    finally:
        worker.kill()
        worker.wait()


def bench(options, backend, prompt, decode, batch=1):
    return ponder(
        options.binary, "bench", "--model", options.model, "--backend", backend, "--threads", options.threads,
        "--prompt-tokens", prompt, "--decode-tokens", decode, "--batch", batch)


# Like the peers, ponder decodes after a short prompt: after a long one everybody is slower.
SHORT = 8


@contextlib.contextmanager
def ponder_engine(options, backend):
    def measure():
        try:
            return {
                "prefill": bench(options, backend, options.prompt, 1)["prefill_tokens_per_second"],
                "decode": bench(options, backend, SHORT, options.decode)["decode_tokens_per_second"],
            }
        except (RuntimeError, ValueError, KeyError) as error:
            raise Missing(f"{type(error).__name__}: {error}") from error

    yield measure


def engines(options):
    if options.vulkan:
        found = {"llama.cpp Vulkan (prebuilt server)": lambda: llama_server(options, vulkan=True)}
    else:
        found = {
            "llama.cpp (source)": lambda: llama_cpp(options),
            "llama-server (prebuilt)": lambda: llama_server(options),
            "mistral.rs": lambda: mistral_rs(options),
        }
    if options.binary:
        found["ponder"] = lambda: ponder_engine(options, "wgpu" if options.vulkan else "cpu")
    return found


def take_turns(options):
    """Rounds of all engines in turn: {name: {"prefill": […], "decode": […]} or a reason}."""
    rates, missing = {}, {}
    with contextlib.ExitStack() as stack:
        ready = {}
        for name, open_engine in engines(options).items():
            try:
                ready[name] = stack.enter_context(open_engine())
                rates[name] = {"prefill": [], "decode": []}
            except Missing as why:
                missing[name] = str(why)
        for number in range(options.rounds):
            for name in list(ready):
                try:
                    found = ready[name]()
                except Missing as why:
                    missing[name] = str(why)
                    del ready[name], rates[name]
                    continue
                for kind, rate in found.items():
                    rates[name][kind].append(rate)
                say(f"round {number + 1}, {name}: prefill {found['prefill']:.1f}, decode {found['decode']:.1f}")
    return rates, missing


def somewhere(found, *names):
    """The first of `names` anywhere in nested JSON: some figures may sit one level down."""
    if isinstance(found, dict):
        for name in names:
            if name in found:
                return found[name]
        found = list(found.values())
    for inner in found if isinstance(found, list) else []:
        value = somewhere(inner, *names)
        if value is not None:
            return value
    return None


def memory(options):
    """ponder's largest resident size over one long prompt, and what it may be at most."""
    call = [options.binary, "bench", "--model", options.model, "--backend", "cpu", "--threads", options.threads,
            "--prompt-tokens", options.prompt, "--decode-tokens", options.decode, "--batch", 1, "--json"]
    process = subprocess.Popen(list(map(str, call)), stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    if status != 0:
        raise RuntimeError(f"ponder bench ended with status {status}")
    pool = somewhere(json.loads(output), "kv_pool_bytes", "kv_bytes")
    limit = options.model.stat().st_size + (pool or 0) + MEMORY_SLACK
    return {"resident": usage.ru_maxrss * 1024, "kv_pool": pool, "limit": limit}


def ponder_alone(options):
    """What has no peer: batch 8 against 1, host time per step at batch 16, memory."""
    alone, one = {}, bench(options, "cpu", SHORT, options.decode)
    eight = bench(options, "cpu", SHORT, options.decode, 8)
    alone["batch_8_ratio"] = eight["decode_tokens_per_second"] / one["decode_tokens_per_second"]
    sixteen = bench(options, "cpu", SHORT, options.decode, 16)
    alone["actors_us_per_step"], alone["host_us_per_step"] = sixteen["actors_us_per_step"], sixteen["host_us_per_step"]
    alone["memory"] = memory(options)
    return alone


def judge(options, rates, alone):
    """Each requirement as (what, measured, required, good)."""
    rows = []
    peers = {name: found for name, found in rates.items() if name != "ponder"}
    if options.binary and "ponder" in rates and peers:
        for kind, bar in REQUIRED["vulkan" if options.vulkan else "cpu"].items():
            fastest = max(peers, key=lambda name: statistics.median(peers[name][kind]))
            ratio = statistics.median(rates["ponder"][kind]) / statistics.median(peers[fastest][kind])
            rows.append((f"{kind}: ponder / {fastest}", f"{ratio:.2f}", f"≥ {bar}", ratio >= bar))
    if alone:
        ratio, used = alone["batch_8_ratio"], alone["memory"]
        actors, host = alone["actors_us_per_step"], alone["host_us_per_step"]
        rows.append(("decode: batch 8 / batch 1", f"{ratio:.2f}", f"≥ {BATCH_8}", ratio >= BATCH_8))
        rows.append((f"plan, reserve, messages, apply, batch 16 ({host:.0f} µs with the way to the device's thread and back)",
                     f"{actors:.0f} µs", f"≤ {HOST_US_MAX} µs", actors <= HOST_US_MAX))
        pool = "KV pool" if used["kv_pool"] is not None else "KV pool (not reported: counted as 0)"
        rows.append((f"resident size against file + {pool} + 150 MB", f"{used['resident'] / 1e6:.0f} MB",
                     f"≤ {used['limit'] / 1e6:.0f} MB", used["resident"] <= used["limit"]))
    return rows


def print_table(options, rates, missing, rows):
    print(f"{options.model.name}, {options.threads} threads, prompt {options.prompt}, decode {options.decode}, "
          f"{options.rounds} rounds, load average {os.getloadavg()[0]:.1f}: median (best) tokens per second\n")
    print("| engine | prefill | decode |\n|---|---|---|")
    show = lambda list: f"{statistics.median(list):.1f} ({max(list):.1f})"
    for name, found in rates.items():
        print(f"| {name} | {show(found['prefill'])} | {show(found['decode'])} |")
    for name, why in missing.items():
        print(f"| {name} | missing: {why} | |")
    if rows:
        print("\n| ratio | measured | required | |\n|---|---|---|---|")
        for what, measured, bar, good in rows:
            print(f"| {what} | {measured} | {bar} | {'yes' if good else '**no**'} |")
    print(f"\n{len(rates)} engines measured, {len(missing)} missing")


def go_first():
    """Linux shares the processor among sessions, then by niceness within each: so raise a session."""
    if os.getpid() != os.getsid(0):
        os.setsid() if os.getpid() != os.getpgrp() else die("--urgent: start me with setsid -w")
    pathlib.Path("/proc/self/autogroup").write_text("-15")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=MODEL)
    parser.add_argument("--ponder", help="the binary (default: $PONDER, or target/release/ponder)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="default 5; with --vulkan 2")
    parser.add_argument("--prompt", type=int, default=512, help="tokens to prefill")
    parser.add_argument("--decode", type=int, help="tokens to decode; default 128, with --vulkan 32")
    parser.add_argument("--vulkan", action="store_true")
    parser.add_argument("--peers-only", action="store_true")
    parser.add_argument("--urgent", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.urgent:
        go_first()
    # A software Vulkan device is fifty times slower: a full run would take half an hour.
    options.rounds = options.rounds or (2 if options.vulkan else 5)
    options.decode = options.decode or (32 if options.vulkan else 128)
    options.model = need_model(options.model).resolve()
    options.binary = None if options.peers_only else ponder_binary(options.ponder)
    if not options.binary and not options.peers_only:
        die("no ponder binary: cargo build --release, or --ponder PATH, or --peers-only")

    rates, missing = take_turns(options)
    alone = ponder_alone(options) if "ponder" in rates and not options.vulkan else None
    rows = judge(options, rates, alone)
    if options.json:
        print(json.dumps({"rates": rates, "missing": missing, "ponder": alone, "load": os.getloadavg()[0], "ratios": [
            dict(zip(("what", "measured", "required", "good"), row)) for row in rows]}, indent=1))
    else:
        print_table(options, rates, missing, rows)
    sys.exit(0 if all(row[-1] for row in rows) and "ponder" not in missing else 1)


if __name__ == "__main__":
    main()
