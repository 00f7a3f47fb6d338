#!/usr/bin/env bash
# Made by `python -m launch.files` from launch/templates/head.sh: change that.
#
# Starts the head of a Ray cluster on this machine.   launch/head.sh [ADDRESS] [options of `ray start`]
#
# Other nodes reach it at ADDRESS; without one, or with 127.0.0.1, only this machine does. Every connection needs the token
# in ~/.ray/auth_token or in the file of RAY_AUTH_TOKEN_PATH. The dashboard listens on 127.0.0.1 only. Given options
# override those here. Jobs inherit this environment: export their variables first, for example HF_TOKEN.
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
    echo "  fix: umask 077; $bin/ray get-auth-token --generate" >&2
    exit 2
fi

address=127.0.0.1
if [[ $# -gt 0 && $1 != -* ]]; then address=$1; shift; fi
# Ray resolves 127.0.0.1 to the host's own address, unless clusters are disabled.
if [[ $address == 127.* ]]; then export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0; fi
exec ray start --head --node-ip-address="$address" --port=6379 "${ports[@]}" \
    --dashboard-host=127.0.0.1 --dashboard-port=8265 --ray-client-server-port=6385 "$@"
