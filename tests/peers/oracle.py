#!/usr/bin/env python3
"""Records what exact mathematics on the model's weights says, as JSON under oracle/.

    tests/peers/oracle.py                 greedy.json and perplexity.json, from prompts.json and texts/
    tests/peers/oracle.py --prompts FILE  other prompts (a JSON list of strings), to --output

The reference is llama.cpp on the model dequantised to F32, with an f32 KV cache and flash
attention off. Its ordinary path on quantised weights rounds activations to 8 bits, so it is no
reference. The prompts run through llama-server: chat template, tokenisation, 64 greedy tokens
with the log probabilities of the best few at every step (their differences are differences of
logits). The texts run through llama-perplexity: windows of 512 tokens, none overlapping; of each,
the tokens 257 to 511 (counted from 0) are scored, each given all that stand before it in its
window; a last window that is not full is dropped, as is one newline at the end of the file.
"""

import argparse
import hashlib
import json
import pathlib
import re
import subprocess

from common import HERE, MODEL, ORACLE, dequantised, die, llama_tool, need_model, say, server

CONTEXT = 512
TOKENS = 64
TOP = 5


def greedy(peer, prompt):
    """One prompt's record: the ids the model saw, and the id and best few of every step."""
    messages = [{"role": "user", "content": prompt}]
    text = peer.post("/apply-template", {"messages": messages})["prompt"]
    # add_special lets the vocabulary decide about BOS and EOS: this model asks for neither.
    ids = peer.post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
    answer = peer.post("/completion", {
        "prompt": ids, "n_predict": TOKENS, "temperature": 0, "samplers": ["top_k"], "top_k": 1,
        "n_probs": TOP, "return_tokens": True, "cache_prompt": False,
    })
    steps = [
        {"id": step["id"], "top": [[other["id"], round(other["logprob"], 5)] for other in step["top_logprobs"]]}
        for step in answer["completion_probabilities"]
    ]
    parted = [n for n, step in enumerate(steps) if step["id"] != step["top"][0][0]]
    if parted:
        die(f"the server did not decode greedily: at steps {parted} its token is not the likeliest")
    return {
        "prompt": prompt,
        "templated": text,
        "prompt_ids": ids,
        "text": answer["content"],
        "ids": [step["id"] for step in steps],
        "finish_reason": "stop" if answer["stop_type"] == "eos" else "length",
        "steps": steps,
    }


def perplexity(wide, text, tokenise):
    """One text's record; the ids are kept so that tokenisation is compared, not trusted."""
    tool = llama_tool("llama-perplexity") or die("llama-perplexity is missing: run tests/peers/install.py")
    done = subprocess.run(
        [tool, "-m", wide, "-f", text, "-c", str(CONTEXT), "-b", str(CONTEXT), "-t", "2",
         "-ctk", "f32", "-ctv", "f32", "-fa", "off"], capture_output=True, text=True,
    )
    found = re.search(r"Final estimate: PPL = ([0-9.]+) \+/- ([0-9.]+)", done.stdout + done.stderr)
    if done.returncode != 0 or not found:
        die(f"llama-perplexity failed on {text.name}: {(done.stdout + done.stderr)[-800:]}")
    ids = tokenise(text.read_text().removesuffix("\n"))
    windows = len(ids) // CONTEXT
    return {
        "file": str(text.relative_to(HERE)) if text.is_relative_to(HERE) else str(text),
        "sha256": hashlib.sha256(text.read_bytes()).hexdigest(),
        "perplexity": float(found[1]),
        "uncertainty": float(found[2]),
        "windows": windows,
        "tokens": windows * (CONTEXT - CONTEXT // 2 - 1),
        "ids": ids,
    }


def write(path, record):
    """One line a prompt: small, and a change shows as one line in a diff."""
    lists = {name: value for name, value in record.items() if name in ("prompts", "texts")}
    head = {name: value for name, value in record.items() if name not in lists}
    body = json.dumps(head, indent=1, ensure_ascii=False)[:-2]
    for name, rows in lists.items():
        lines = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
        body += f',\n "{name}": [\n{lines}\n ]'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body + "\n}\n")
    say(f"wrote {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=MODEL)
    parser.add_argument("--prompts", type=pathlib.Path, default=HERE / "prompts.json")
    parser.add_argument("--texts", type=pathlib.Path, nargs="*", default=sorted((HERE / "texts").glob("*.txt")))
    parser.add_argument("--output", type=pathlib.Path, default=ORACLE, help="folder for the two JSON files")
    options = parser.parse_args()

    wide = dequantised(need_model(options.model).resolve())
    source = {
        "model": options.model.name,
        "model_sha256": hashlib.sha256(options.model.read_bytes()).hexdigest(),
        "method": "llama.cpp on the F32 dequantisation, f32 KV cache, flash attention off, 2 threads",
    }
    flags = ["-c", "4096", "-ctk", "f32", "-ctv", "f32", "-fa", "off", "--jinja"]
    with server(wide, *flags) as peer:
        records = []
        for number, prompt in enumerate(json.loads(options.prompts.read_text())):
            records.append(greedy(peer, prompt))
            say(f"prompt {number}: {len(records[-1]['ids'])} tokens, {records[-1]['finish_reason']}")
        write(options.output / "greedy.json", {**source, "max_tokens": TOKENS, "prompts": records})
        # A text is plain text: nothing in it is a special token.
        plain = lambda text: peer.post(
            "/tokenize", {"content": text, "add_special": True, "parse_special": False})["tokens"]
        texts = []
        for text in options.texts:
            texts.append(perplexity(wide, text.resolve(), plain))
            say(f"{text.name}: perplexity {texts[-1]['perplexity']} over {texts[-1]['tokens']} tokens")
        if texts:
            write(options.output / "perplexity.json", {**source, "context": CONTEXT, "texts": texts})


if __name__ == "__main__":
    main()
