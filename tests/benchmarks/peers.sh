#!/bin/bash
# Other gateways beside ours, in one run: tests/benchmarks/peers.sh [REQUESTS=300] [CONCURRENCY=16] [ROUNDS=3]
#
# PEERS is a directory with run_all.sh, which starts a mock server and every installed peer in a network of its own, adds US_CMD as one
# more row, checks what each loses and whether it tells the server of a client that left (PROBE=1), and measures them in turns.
# Ours runs with a key, metrics and the request log; LEDGER=true also with the ledger. Without PEERS there is nothing to do.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
peers=${PEERS:-$root/../shared/peers}
if [ ! -f "$peers/run_all.sh" ]; then
    echo "no other gateways to compare with: PEERS names no directory with run_all.sh"
    exit 0
fi
if [ ! -d "${PEERS_HOME:-$HOME/.cache/peers}/v-mock" ]; then
    echo "the other gateways are not installed (setup.sh in $peers)"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/gateway.yaml" <<YAML
models:
  mock-a: {backend: openai, base_url: "http://127.0.0.1:9100/v1", sessions: "off"}
keys: ["sk-us-0123456789"]
ledger: {enabled: ${LEDGER:-false}}
YAML
export US_KEY=sk-us-0123456789 PROBE=${PROBE:-1} MODELNET_STATE=$work PYTHONPATH=$root
export US_CMD="$root/.venv/bin/python -m gateway serve --config $work/gateway.yaml --port 9400"
# run_all.sh ends with the status of its last kill: what counts is that ours was measured in both modes.
unshare -rn --pid --fork --mount-proc bash "$peers/run_all.sh" "$@" | tee "$work/said" || true
test "$(grep -cE '^ +us +rps' "$work/said")" -eq 2
