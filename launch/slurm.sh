#!/usr/bin/env bash
# Made by `python -m launch.files` from launch/templates/slurm.sh: change that.
#
# A run on SLURM, on as many nodes as it is given. From the project's folder, which all nodes must see:
#
#   sbatch --nodes=2 --gpus-per-node=8 --time=24:00:00 launch/slurm.sh RECIPE [key.path=value ...]
#
# It starts Ray on the job's nodes, with a token of its own that only you can read, and `rlhf pipeline` on the first.
# Another command than `pipeline` goes before the recipe: `launch/slurm.sh ppo RECIPE`.
#
# When the job is preempted, or its time is nearly over, the run commits a checkpoint and ends with exit code 75. The
# job is then put back into the queue and goes on from there. `scancel --batch --signal=INT JOB` has the same done without
# going on; a plain `scancel JOB` ends it at once, and it would go on from the last checkpoint.
#
#SBATCH --job-name=rlhf
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@150
set -euo pipefail

die() { printf 'launch/slurm.sh: %s\n' "$@" >&2; exit 2; }

[[ -n ${SLURM_JOB_ID:-} ]] || die "This starts with sbatch." "  fix: sbatch --nodes=2 launch/slurm.sh RECIPE"
cd "$SLURM_SUBMIT_DIR"
bin=${VENV:-.venv}/bin
[[ -x launch/head.sh && -x $bin/rlhf ]] ||
    die "$PWD is not the project's folder, or it has no environment." "  fix: make env, and sbatch from there"
command=pipeline
case ${1:-} in sft | reward | dpo | ppo | pipeline) command=$1; shift ;; esac
[[ $# -ge 1 ]] || die "The recipe is missing." "  fix: sbatch --nodes=2 launch/slurm.sh RECIPE"

# A signal is passed on to the run, wherever this script is. SIGTERM comes from SLURM: the job will go on later.
asked='' run=''
# shellcheck disable=SC2329
ask() { asked=$1; [[ -z $run ]] || kill -TERM "$run" 2>/dev/null || true; }
trap 'ask TERM' TERM
trap 'ask INT' INT

export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
export RAY_enable_metrics_collection=0
export DASHBOARD_METRIC_PORT=65536
export AUTOSCALER_METRIC_PORT=65536
mine=.slurm/$SLURM_JOB_ID # all nodes see it, nobody else may read it
(umask 077; mkdir -p "$mine"; od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$mine/token")
export RAY_AUTH_TOKEN_PATH=$PWD/$mine/token
unset RAY_AUTH_TOKEN RAY_ADDRESS

# The run ends itself in time where it knows its end; older SLURMs do not tell.
if [[ -z ${SLURM_JOB_END_TIME:-} ]]; then
    end=$(squeue --noheader --job "$SLURM_JOB_ID" --format %e)
    if end=$(date --date "$end" +%s 2>/dev/null); then export SLURM_JOB_END_TIME=$end; fi
fi

address_of() { # the IPv4 address at which SLURM reaches a node; its own name may mean 127.0.1.1 on the node itself
    local name found
    name=$(scontrol show node "$1" --oneliner | grep -o 'NodeAddr=[^ ]*')
    found=$(getent ahostsv4 "${name#NodeAddr=}" | awk 'NR == 1 { print $1 }')
    if [[ $found == 127.0.1.* ]]; then found=$(hostname -I | cut -d' ' -f1); fi
    echo "$found"
}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(address_of "${nodes[0]}")
echo "rlhf $command on ${#nodes[@]} nodes, ${nodes[*]}; the head is $head; SLURM's end of the job: ${SLURM_JOB_END_TIME:-none}"

scratch=/tmp/rlhf-$SLURM_JOB_ID # Ray's sockets and logs, on every node; a longer path would not do for sockets
# In sessions of their own: what signals this script does not signal them.
setsid launch/head.sh "$head" --temp-dir="$scratch" --block >"$mine/head.log" 2>&1 &
ray=$!
for node in "${nodes[@]:1}"; do
    setsid srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" --cpu-bind=none --mem=0 \
        launch/worker.sh "$head" "$(address_of "$node")" --block >"$mine/$node.log" 2>&1 &
done

code=0
"$bin/python" -m launch.wait_for_nodes "$head:6379" "${#nodes[@]}" &
wait -n "$!" "$ray" || code=3 # a head that ended has failed
if [[ -n $asked ]]; then
    code=75
elif [[ $code -ne 0 ]]; then
    tail -n 20 "$mine"/*.log >&2
else
    "$bin/rlhf" "$command" "$@" placement.ray_address="$head:6379" &
    run=$!
    if [[ -n $asked ]]; then kill -TERM "$run" 2>/dev/null || true; fi # it was asked for a moment ago
    while kill -0 "$run" 2>/dev/null; do wait "$run" || true; done # a signal ends `wait`, but not the run
    wait "$run" || code=$?
    if [[ -n $asked && $code -eq 143 ]]; then code=75; fi # it was asked before it could answer: nothing is lost
fi
rm -f "$mine/token"
kill "$ray" 2>/dev/null || true
timeout 20 srun --overlap --ntasks="${#nodes[@]}" --ntasks-per-node=1 --cpu-bind=none rm -rf "$scratch" || true
echo "rlhf ended with exit code $code"

if [[ $code -eq 75 && $asked != INT ]]; then
    echo "it goes back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60 # SLURM ends this script
fi
exit "$code"
