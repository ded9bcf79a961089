#!/usr/bin/env python3
"""Whether several configurations give the same text, problem by problem.

    cargo build --release
    tests/same_answers.py --data examples/data/heldout.jsonl --temperature 0 0.6 1 \\
        --with 'plain:' --with 'draft: --draft-model bundled' --with 'short of memory: --draft-model bundled --kv-memory 12M'
    tests/same_answers.py --limit 100 --allow 1 --with 'cpu: --backend cpu' --with 'wgpu: --backend wgpu'

Each configuration is a name and flags of `ponder eval`; all are compared with the first, thinking and answer alike.
Exit code 1 if more than `--allow` problems differ.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


def texts(options, temperature):
    """{configuration: [(question, thinking, answer, tokens)]}, the problems in their order."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        command = [options.ponder, "eval", "--data", options.data, "--temperature", str(temperature), "--transcripts", file.name, "--quiet"]
        command += ["--limit", str(options.limit)] if options.limit else []
        command += [word for config in options.configs for word in ("--with", config)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = {}
        for line in map(json.loads, open(file.name)):
            row = (line["question"], line["reasoning"], line["answer"], line["thinking_tokens"] + line["answer_tokens"])
            found.setdefault(line["config"], []).append(row)
        return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ponder", default=str(TARGET / "release/ponder"))
    parser.add_argument("--data", default=str(ROOT / "examples/data/heldout.jsonl"))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0])
    parser.add_argument("--allow", type=int, default=0, help="so many problems may differ, for each configuration")
    parser.add_argument("--with", dest="configs", action="append", required=True, metavar="NAME: FLAGS")
    options = parser.parse_args()
    failed = False
    for temperature in options.temperature:
        found = texts(options, temperature)
        (first, want), *others = found.items()
        tokens = sum(row[3] for row in want)
        for name, got in others:
            parted = [(w, g) for w, g in zip(want, got, strict=True) if w != g]
            failed |= len(parted) > options.allow
            print(f"temperature {temperature}: {name}: {len(want) - len(parted)} of {len(want)} as {first} ({tokens} tokens)", flush=True)
            for w, g in parted[:3]:
                print(f"  {w[0]!r}\n    {first}: {w[1:3]}\n    {name}: {g[1:3]}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
