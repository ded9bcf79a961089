#!/usr/bin/env bash
# Official clients and protocol suites against `ponder serve` with the bundled model: openai and anthropic for
# Python, llm-comply, schemathesis with a small budget. Pinned versions, in an environment of their own. Where
# they cannot be had it says SKIP, and why.
#
#   tests/clients/run.sh [PROGRAM]      PROGRAM: target/release/ponder if it is left out
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

program=${1:-${CARGO_TARGET_DIR:-target}/release/ponder}
venv=${CARGO_TARGET_DIR:-target}/tools/clients
skip() {
    echo "SKIP: official clients: $*"
    exit 0
}

[ -x "$program" ] || skip "$program is not built"
if ! cmp -s tests/clients/requirements.txt "$venv/installed.txt"; then
    rm -rf "$venv"
    python3 -m venv "$venv" || skip "python3 -m venv does not work here"
    timeout 150 "$venv/bin/pip" --disable-pip-version-check -q install -r tests/clients/requirements.txt ||
        skip "the packages of tests/clients/requirements.txt cannot be installed"
    cp tests/clients/requirements.txt "$venv/installed.txt"
fi

scratch=$(mktemp -d)
"$program" serve --backend cpu --port 0 --json --served-model-name m --max-model-len 1024 --api-key test-key \
    >"$scratch/address" 2>"$scratch/log" &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -rf "$scratch"' EXIT
for _ in $(seq 100); do
    [ -s "$scratch/address" ] && break
    kill -0 "$server" 2>/dev/null || { cat "$scratch/log"; exit 1; }
    sleep 0.1
done
base=http://$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["address"])' "$scratch/address")

failed=0
check() {
    printf '\n--- %s (%s s so far)\n' "$1" "$SECONDS"
    shift
    "$@" || failed=1
}
check "openai" "$venv/bin/python" tests/clients/openai_client.py "$base"
check "anthropic" "$venv/bin/python" tests/clients/anthropic_client.py "$base"
for format in openai-chat open-responses anthropic; do
    check "llm-comply $format" "$venv/bin/python" tests/clients/comply.py "$venv/bin/llm-comply" "$base" "$format"
done
check "schemathesis" "$venv/bin/st" run "$base/openapi.json" -H "Authorization: Bearer test-key" --no-color \
    --include-tag inference --include-tag tokens --include-tag models --include-tag health \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance \
    --phases coverage,fuzzing --max-examples 10 --generation-deterministic --seed 1 --suppress-health-check all \
    --max-time 40 --request-timeout 30 --warnings off
if grep -E 'panicked|"status":500| status=500' "$scratch/log"; then
    echo "the server's log has errors"
    failed=1
fi
exit "$failed"
