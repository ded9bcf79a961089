"""mistral.rs behind a pipe: one JSON request a line in, one JSON answer a line out.

A process of its own, because the binding must be imported with its thread count already in the
environment, and because it lives in the peers' virtual environment.

    python mistralrs_worker.py FOLDER FILE.gguf     {"prompt": "…", "max_tokens": 8} → {"prefill": …}
"""

import json
import sys

import mistralrs


def main():
    folder, file = sys.argv[1:]
    runner = mistralrs.Runner(
        mistralrs.Which.GGUF(quantized_model_id=folder, quantized_filename=file), max_seqs=1, prefix_cache_n=0
    )
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        # It has no "ignore end of text": the two stop tokens are made impossible instead.
        answer = runner.send_completion_request(mistralrs.CompletionRequest(
            prompt=asked["prompt"], model="default", max_tokens=asked["max_tokens"], temperature=0.0,
            logit_bias={0: -100.0, 2: -100.0},
        ))
        usage = answer.usage
        print(json.dumps({
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "prefill": usage.avg_prompt_tok_per_sec,
            "decode": usage.avg_compl_tok_per_sec,
        }), flush=True)


if __name__ == "__main__":
    main()
