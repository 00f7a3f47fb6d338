# shellcheck shell=bash
# What every node and client of a cluster has in common. head.sh, worker.sh and slurm.sh source it. `launch/files.py` has
# the same variables and ports for the files of Ray's cluster launcher and of Kubernetes, and says what they are for.
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
export RAY_enable_metrics_collection=0
export DASHBOARD_METRIC_PORT=65536
export AUTOSCALER_METRIC_PORT=65536

# Fixed ports of workers, for firewalls between nodes: docs/security.md.
# shellcheck disable=SC2034
node_ports=(
    --node-manager-port=6380 --object-manager-port=6381 --runtime-env-agent-port=6382
    --dashboard-agent-grpc-port=6383 --dashboard-agent-listen-port=6384 --min-worker-port=10002
    --max-worker-port=19999
)

prepare_node() { # prepare_node HOW_TO_GET_A_TOKEN
    ulimit -n "$(ulimit -H -n)" # Ray keeps several connections open for every process
    ulimit -l unlimited 2>/dev/null || ulimit -S -l "$(ulimit -H -l)" # RDMA locks memory
    local token=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
    if [[ -z ${RAY_AUTH_TOKEN:-} && ! -s $token ]]; then
        printf '%s\n' "$0: there is no token in $token" "  fix: $1" >&2
        exit 2
    fi
}

# Options for the object store's size, from OBJECT_STORE_BYTES (which the launchers take from the recipe's plan); without it
# Ray's own choice, 30% of the memory. More than the shared memory would lie on a disk.
store_options=()
size_object_store() {
    local wanted=${OBJECT_STORE_BYTES:-} most
    [[ -n $wanted && -d /dev/shm ]] || return 0
    most=$(($(df --output=avail --block-size=1 /dev/shm | tail -n 1) * 9 / 10))
    if [[ $wanted -gt $most ]]; then
        echo "$0: the object store has $most bytes and not the planned $wanted: /dev/shm is too small; Ray spills snapshots to disk" >&2
        wanted=$most
    fi
    # shellcheck disable=SC2034
    store_options=(--object-store-memory="$wanted")
}
