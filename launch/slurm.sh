#!/usr/bin/env bash
# Runs a recipe on SLURM, on all nodes of the job. From the project's folder, which all nodes must see:
#
#   sbatch --nodes=2 --gpus-per-node=8 --time=24:00:00 launch/slurm.sh RECIPE [key.path=value ...]
#
# It starts Ray on the job's nodes, with a new token that only you can read, and `rlhf pipeline` on the first node.
# Give another command than `pipeline` before the recipe: `launch/slurm.sh ppo RECIPE`.
#
# When the job is preempted, or near its time limit, the run commits a checkpoint, and the job is requeued and resumes. It is
# requeued too after a failure that may pass: a node, a process or a connection was lost. It is not after an error that would
# come again: a wrong recipe, a violated canary, a NaN; nor after `recovery.requeues` attempts in a row without a further step.
# After a failure, Ray's logs of all nodes are in .slurm/<job>/ray-logs-<restarts>. RLHF_INTERFACE=ib0 chooses the network.
# `scancel --batch --signal=INT JOB` commits a checkpoint without requeueing; a plain `scancel JOB` ends the job at once, and a
# new job resumes from the last checkpoint.
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

repeat=75 # exit code of a run that should be repeated
most_starts=3 # repetitions because Ray did not start on all nodes, in a row, and because it ended the run

# Signals are passed on to the run, at any point of this script. SIGTERM comes from SLURM: the job will be requeued.
asked='' run=''
# shellcheck disable=SC2329
ask() { asked=$1; [[ -z $run ]] || kill -TERM "$run" 2>/dev/null || true; }
trap 'ask TERM' TERM
trap 'ask INT' INT

source launch/ray_node.sh
mine=.slurm/$SLURM_JOB_ID # visible to all nodes, readable only by you
(umask 077; mkdir -p "$mine"; od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$mine/token")
export RAY_AUTH_TOKEN_PATH=$PWD/$mine/token
unset RAY_AUTH_TOKEN RAY_ADDRESS

# With the end time, the run stops by itself in time; older SLURMs do not set it.
if [[ -z ${SLURM_JOB_END_TIME:-} ]]; then
    end=$(squeue --noheader --job "$SLURM_JOB_ID" --format %e)
    if end=$(date --date "$end" +%s 2>/dev/null); then export SLURM_JOB_END_TIME=$end; fi
fi

address_of() { # the IPv4 address at which SLURM reaches a node
    local name
    name=$(scontrol show node "$1" --oneliner | grep -o 'NodeAddr=[^ ]*')
    { getent ahostsv4 "${name#NodeAddr=}" || true; } | awk 'NR == 1 { print $1 }'
}

OBJECT_STORE_BYTES=$("$bin/python" -m launch.node_sizes object-store "$command" "$@" || true)
export OBJECT_STORE_BYTES # of every node, for head.sh and worker.sh

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(address_of "${nodes[0]}")
# On this node itself its name may resolve to 127.0.1.1: then the address in the network of the other nodes.
if [[ -n ${RLHF_INTERFACE:-} || -z $head || $head == 127.* ]]; then
    peer=''
    if [[ ${#nodes[@]} -gt 1 ]]; then peer=$(address_of "${nodes[1]}"); fi
    head=$("$bin/python" -m launch.own_address ${peer:+"$peer"}) ||
        die "The address of ${nodes[0]} is unknown." "  fix: export RLHF_INTERFACE=..., the nodes' interface, before sbatch"
fi
echo "rlhf $command on ${#nodes[@]} nodes, ${nodes[*]}; the head is $head; SLURM's end of the job: ${SLURM_JOB_END_TIME:-none}"
echo "object store of a node: ${OBJECT_STORE_BYTES:-chosen by Ray}"

scratch=/tmp/rlhf-$SLURM_JOB_ID # Ray's sockets and logs on every node; a short path, as sockets require
attempt=${SLURM_RESTART_COUNT:-0}
logs=$mine/ray-logs-$attempt
echo "--- start of attempt $attempt" >>"$mine/head.log"
# In separate sessions, so that signals to this script do not reach them.
setsid launch/head.sh "$head" --temp-dir="$scratch" --block >>"$mine/head.log" 2>&1 &
ray=$!
# A step may only open the GPUs that it asks for, where SLURM confines jobs by control groups.
gpus=()
if [[ ${SLURM_GPUS_ON_NODE:-0} -gt 0 ]]; then gpus=(--gpus-per-node="$SLURM_GPUS_ON_NODE"); fi
for node in "${nodes[@]:1}"; do
    address=auto # by which it reaches the head, or that of RLHF_INTERFACE
    if [[ -z ${RLHF_INTERFACE:-} ]]; then address=$(address_of "$node"); fi
    address=${address:-auto}
    echo "--- start of attempt $attempt" >>"$mine/$node.log"
    setsid srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" --cpu-bind=none --mem=0 "${gpus[@]}" \
        launch/worker.sh "$head" "$address" --block >>"$mine/$node.log" 2>&1 &
done

code=0
"$bin/python" -m launch.wait_for_nodes "$head:6379" "${#nodes[@]}" &
wait -n "$!" "$ray" || code=3 # also if the head ended, which is a failure
if [[ -n $asked ]]; then
    code=$repeat
elif [[ $code -ne 0 ]]; then
    tail -n 20 "$mine"/*.log >&2
    echo "$code" >>"$mine/failed-starts"
    if [[ $(wc -l <"$mine/failed-starts") -le $most_starts ]]; then code=$repeat; fi
else
    rm -f "$mine/failed-starts"
    "$bin/python" -m launch.attempt "$mine/attempts.json" "$command" "$@" placement.ray_address="$head:6379" &
    run=$!
    if [[ -n $asked ]]; then kill -TERM "$run" 2>/dev/null || true; fi # a signal came before the run started
    while kill -0 "$run" 2>/dev/null; do wait "$run" || true; done # signals interrupt `wait`, but not the run
    wait "$run" || code=$?
    # It was killed, by a signal (128 + its number) before its handler or by the kernel: the next attempt counts this one.
    # Or Ray ended it, with exit code 1: a few times that is repeated too.
    if [[ $code -eq 1 ]]; then
        echo "$code" >>"$mine/ended-by-ray"
        if [[ $(wc -l <"$mine/ended-by-ray") -le $most_starts ]]; then code=$repeat; fi
    fi
    case $code in 130) ;; 143) [[ -z $asked ]] || code=$repeat ;; 129 | 13? | 15?) code=$repeat ;; esac
fi
rm -f "$mine/token"
kill "$ray" 2>/dev/null || true
# Messages name Ray's logs in the scratch folder: after a failure they are kept. This node's first: others may be lost.
keep=true
if [[ $code -ne 0 && ! ($code -eq $repeat && -n $asked) ]]; then
    # shellcheck disable=SC2016
    keep='to=$2/$SLURMD_NODENAME; if [[ -d $1 && ! -e $to ]]; then timeout 10 cp -r "$1/session_latest/logs" "$to"; fi'
    (umask 077; mkdir -p "$logs"; bash -c "$keep" - "$scratch" "$logs") || true
fi
timeout 20 srun --overlap --ntasks="${#nodes[@]}" --ntasks-per-node=1 --cpu-bind=none \
    bash -c "$keep; rm -rf \"\$1\"" - "$scratch" "$logs" || true
if [[ $keep != true ]]; then echo "Ray's logs, which were in $scratch, are in $logs"; fi
echo "rlhf ended with exit code $code"

if [[ $code -eq $repeat && $asked != INT ]]; then
    echo "it goes back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60 # until SLURM ends this script
fi
exit "$code"
