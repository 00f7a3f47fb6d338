#!/usr/bin/env bash
# Made by `python -m launch.files` from launch/templates/worker.sh: change that.
#
# Adds this machine to a Ray cluster.   launch/worker.sh HEAD ADDRESS [options of `ray start`]
#
# HEAD is the head's address; other nodes reach this machine at ADDRESS. It needs the head's token in ~/.ray/auth_token or
# in the file of RAY_AUTH_TOKEN_PATH, readable only by you. Given options override those here.
set -euo pipefail

bin=$(realpath "${VENV:-$(dirname "${BASH_SOURCE[0]}")/../.venv}")/bin
export PATH=$bin:$PATH # jobs find `python` by it too
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
export RAY_enable_metrics_collection=0
export DASHBOARD_METRIC_PORT=65536
export AUTOSCALER_METRIC_PORT=65536
# Fixed ports of workers, for firewalls between nodes: docs/security.md.
ports=(
    --node-manager-port=6380 --object-manager-port=6381 --runtime-env-agent-port=6382
    --dashboard-agent-grpc-port=6383 --dashboard-agent-listen-port=6384 --min-worker-port=10002
    --max-worker-port=19999
)
ulimit -n "$(ulimit -H -n)" # Ray keeps several connections open for every process
if [[ -z ${RAY_AUTH_TOKEN:-} && ! -s ${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token} ]]; then
    echo "$0: there is no token in ${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" >&2
    echo "  fix: copy the head's, readable by you alone" >&2
    exit 2
fi

if [[ $# -lt 2 || $2 == -* ]]; then echo "usage: launch/worker.sh HEAD ADDRESS [options of \`ray start\`]" >&2; exit 2; fi
head=$1 address=$2
shift 2
exec ray start --address="$head:6379" --node-ip-address="$address" "${ports[@]}" "$@"
