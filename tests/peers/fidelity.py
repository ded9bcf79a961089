#!/usr/bin/env python3
"""Compares what ponder says with the recorded oracle, token by token and text by text.

    tests/peers/fidelity.py                        on the CPU
    tests/peers/fidelity.py --backend wgpu         or cuda
    tests/peers/fidelity.py --oracle FOLDER        other prompts and texts, recorded by oracle.py

The bar: at most one prompt in ten may part from the oracle over 64 tokens, and only where the
oracle's own two logits are within 0.05; perplexity within 0.1 % with an f32 KV cache, 0.3 % with the
default one and 0.5 % with FP8. Exit code 1 if any of these is missed.
"""

import argparse
import json
import pathlib
import sys

from common import HERE, MODEL, ORACLE, die, need_model, ponder, ponder_binary, say

GAP = 0.05
MAY_PART = 0.1
PERPLEXITY = {"f32": 0.1, "f16": 0.3, "bf16": 0.3, "fp8": 0.5}  # per cent
END_OF_TEXT = 2  # <|im_end|>; the oracle records it, a front end may leave it out


def without_end(ids):
    return ids[:-1] if ids and ids[-1] == END_OF_TEXT else ids


def parting(mine, prompt):
    """Where `mine` leaves the oracle: (step, the oracle's logit gap there, note), or None."""
    theirs = without_end(prompt["ids"])
    mine = without_end(mine)
    if mine == theirs:
        return None
    step = next((n for n, pair in enumerate(zip(mine, theirs)) if pair[0] != pair[1]), min(len(mine), len(theirs)))
    if step >= len(prompt["steps"]):
        return step, float("inf"), "went on where the oracle stops at its limit"
    ours = mine[step] if step < len(mine) else END_OF_TEXT
    # Log probabilities of one step share their normaliser: a difference is a difference of logits.
    top = dict(map(tuple, prompt["steps"][step]["top"]))
    best = prompt["steps"][step]["top"][0]
    if ours not in top:
        return step, float("inf"), f"chose {ours}, not among the oracle's best {len(top)}"
    return step, best[1] - top[ours], f"chose {ours}, the oracle {best[0]}"


def check_prompts(binary, options, oracle):
    equal, rows, failed = 0, [], False
    for number, prompt in enumerate(oracle["prompts"]):
        try:
            answer = ponder(
                binary, "run", "--model", options.model, "--backend", options.backend, "--threads", options.threads,
                "--kv-cache-dtype", "f32", "--temperature", 0, "--max-tokens", oracle["max_tokens"],
                "--", prompt["prompt"],
            )
        except (RuntimeError, ValueError) as error:
            rows.append((number, "failed", "", "", str(error)))
            failed = True
            continue
        note = ""
        if answer["prompt_tokens"] != len(prompt["prompt_ids"]):
            note = f"prompt has {answer['prompt_tokens']} tokens, the oracle's {len(prompt['prompt_ids'])}; "
        if answer.get("prompt_token_ids", prompt["prompt_ids"]) != prompt["prompt_ids"]:
            note += "prompt token ids differ; "
        failed |= bool(note)
        apart = parting(answer["token_ids"], prompt)
        if apart is None:
            equal += 1
            if note:
                rows.append((number, "equal", "", "", note))
        else:
            step, gap, why = apart
            failed |= gap > GAP
            rows.append((number, "parts", step, f"{gap:.4f}", note + why))
        say(f"prompt {number}: {'equal' if apart is None else f'parts at step {apart[0]}'}")

    total = len(oracle["prompts"])
    print(f"Greedy tokens: {equal} of {total} prompts equal over {oracle['max_tokens']} tokens "
          f"({options.backend}, f32 KV cache)\n")
    if rows:
        print("| prompt | | step | logit gap | |\n|---|---|---|---|---|")
        for row in rows:
            print("| " + " | ".join(map(str, row)) + " |")
        print()
    return not failed and equal >= (1 - MAY_PART) * total


def check_texts(binary, options, oracle):
    good = True
    print("| text | KV cache | oracle | ponder | difference | bar |\n|---|---|---|---|---|---|")
    for text in oracle["texts"]:
        path = HERE / text["file"]
        for dtype in options.kv_cache_dtypes:
            try:
                answer = ponder(
                    binary, "perplexity", "--model", options.model, "--file", path, "--context", oracle["context"],
                    "--backend", options.backend, "--threads", options.threads, "--kv-cache-dtype", dtype,
                )
            except (RuntimeError, ValueError) as error:
                print(f"| {path.name} | {dtype} | {text['perplexity']} | failed: {error} | | |")
                good = False
                continue
            per_cent = 100 * (answer["perplexity"] / text["perplexity"] - 1)
            counted = answer["tokens"] == text["tokens"]
            good &= counted and abs(per_cent) <= PERPLEXITY[dtype]
            other = "" if counted else f" ({answer['tokens']} tokens scored, the oracle {text['tokens']})"
            print(f"| {path.name} | {dtype} | {text['perplexity']:.4f} | {answer['perplexity']:.4f}{other} "
                  f"| {per_cent:+.4f} % | {PERPLEXITY[dtype]} % |")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=MODEL)
    parser.add_argument("--ponder", help="the binary (default: $PONDER, or target/release/ponder)")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--oracle", type=pathlib.Path, default=ORACLE)
    parser.add_argument("--kv-cache-dtypes", nargs="*", default=["f32", "f16", "fp8"], help="for the texts")
    parser.add_argument("--prompts-only", action="store_true")
    parser.add_argument("--texts-only", action="store_true")
    options = parser.parse_args()
    need_model(options.model)
    binary = ponder_binary(options.ponder) or die("no ponder binary: cargo build --release, or --ponder PATH")

    good = True
    if not options.texts_only:
        good &= check_prompts(binary, options, json.loads((options.oracle / "greedy.json").read_text()))
    if not options.prompts_only:
        good &= check_texts(binary, options, json.loads((options.oracle / "perplexity.json").read_text()))
    print(f"\nfidelity: {'reached' if good else 'NOT reached'}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
