#!/usr/bin/env bash
# Made by `python -m launch.files` from launch/templates/head.sh: change that.
#
# Starts the head of a Ray cluster on this machine.   launch/head.sh [ADDRESS] [options of `ray start`]
#
# Others reach it at ADDRESS; without one, or with 127.0.0.1, nobody can. Nobody without the token gets in:
# ~/.ray/auth_token, or the file that RAY_AUTH_TOKEN_PATH names. The dashboard listens on 127.0.0.1 only. An option that
# is given replaces the one here. Jobs inherit this environment: export what they need, HF_TOKEN for example, before.
set -euo pipefail

bin=$(realpath "${VENV:-$(dirname "${BASH_SOURCE[0]}")/../.venv}")/bin
export PATH=$bin:$PATH # jobs too find `python` by it
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
export RAY_enable_metrics_collection=0
export DASHBOARD_METRIC_PORT=65536
export AUTOSCALER_METRIC_PORT=65536
# What workers listen on has to be known where a firewall stands between nodes: docs/security.md.
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
# Ray takes 127.0.0.1 to mean "find this host's own address", unless it believes that it cannot be a cluster here.
if [[ $address == 127.* ]]; then export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0; fi
exec ray start --head --node-ip-address="$address" --port=6379 "${ports[@]}" \
    --dashboard-host=127.0.0.1 --dashboard-port=8265 --ray-client-server-port=6385 "$@"
