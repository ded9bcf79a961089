#!/usr/bin/env bash
# From a trained checkpoint to the shipped pair: folders, draft, figures, curves.
# `PYTHON=... ./finish.sh [RUN]`; every stage resumes, so it may be stopped and started again.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python} run=${1:-runs/target} draft=runs/draft
mkdir -p results
cp "$run"/folder/* ../target/
if [ "${RETRAIN_DRAFT:-1}" = 1 ]; then
    "$python" distill.py warm --run "$draft" --steps "${WARM_STEPS:-1500}"
    "$python" distill.py sample --run "$draft" --count "${SAMPLES:-1536}"
    "$python" distill.py distill --run "$draft" --steps "${DISTILL_STEPS:-1500}"
fi
cp "$draft"/folder/* ../target/tokenizer*.json ../draft/
"$python" evaluate.py ../target --wrong runs/wrong.txt | tee results/heldout.txt
"$python" evaluate.py ../target --think off | tee results/no-thinking.txt
"$python" evaluate.py ../target --system "Think briefly." | tee results/brief.txt
"$python" evaluate.py ../target --data ../../examples/data/mixed.jsonl | tee results/mixed.txt
"$python" distill.py measure --count 300 | tee results/draft.txt
"$python" plot.py
