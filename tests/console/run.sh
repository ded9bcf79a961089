#!/usr/bin/env bash
# The web console in headless Chromium, against `ponder serve` with the bundled model: a conversation with thinking,
# a budget, "answer now", errors, hostile output, traces, keys, accessibility. Where Chromium or the packages cannot
# be had it says SKIP, and why.
#
#   tests/console/run.sh [PROGRAM [IMAGES]]    PROGRAM: target/release/ponder if it is left out
#                                              IMAGES: a folder for the pictures that docs/ and the README show
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source .ci/install.sh

program=${1:-${CARGO_TARGET_DIR:-target}/release/ponder}
images=${2:-}
venv=${CARGO_TARGET_DIR:-target}/tools/console
skip() {
    echo "SKIP: web console: $*"
    exit 0
}

[ -x "$program" ] || skip "$program is not built"
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
if [ -z "$chromium" ]; then
    install chromium fonts-dejavu-core || skip "there is no chromium, and it cannot be installed"
    chromium=$(command -v chromium) || skip "there is no chromium"
fi
if ! cmp -s tests/console/requirements.txt "$venv/installed.txt"; then
    rm -rf "$venv"
    python3 -m venv "$venv" || skip "python3 -m venv does not work here"
    timeout 150 "$venv/bin/pip" --disable-pip-version-check -q install -r tests/console/requirements.txt ||
        skip "the packages of tests/console/requirements.txt cannot be installed"
    cp tests/console/requirements.txt "$venv/installed.txt"
fi

scratch=$(mktemp -d)
"$program" serve --backend cpu --threads 1 --port 0 --json --served-model-name ponder-bundled --api-key test-key \
    --max-num-seqs 6 --max-model-len 2048 --kv-memory 6291456 --draft-model suffix >"$scratch/address" 2>"$scratch/log" &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -rf "$scratch"' EXIT
for _ in $(seq 300); do
    [ -s "$scratch/address" ] && break
    kill -0 "$server" 2>/dev/null || { cat "$scratch/log"; exit 1; }
    sleep 0.1
done
base=http://$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["address"])' "$scratch/address")

failed=0
"$venv/bin/python" tests/console/browser.py "$base" "$chromium" "${images:-$scratch}" || failed=1
if grep -E 'panicked|"status":500| status=500' "$scratch/log"; then
    echo "the server's log has errors"
    failed=1
fi
exit "$failed"
