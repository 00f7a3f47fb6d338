#!/usr/bin/env bash
# Packs the project with all its packages, for machines without a network.   launch/wheelhouse.sh cpu|gpu [FOLDER]
#
# It needs the environment of that kind (`make env`), with the same Python and system as the target machines, because
# DeepSpeed is built here from source. The output is one folder, by default `wheelhouse`. Copy it to the machine, then:
#
#   mkdir rlhf && tar -xzf wheelhouse/rlhf.tar.gz -C rlhf && cd rlhf
#   make env WHEELHOUSE=../wheelhouse
set -euo pipefail

case ${1:-} in cpu | gpu) ;; *) echo "usage: launch/wheelhouse.sh cpu|gpu [FOLDER]" >&2; exit 2 ;; esac
project=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
kind=$1 folder=$(realpath -m "${2:-$project/wheelhouse}")
cd "$project"
bin=${VENV:-.venv}/bin
"$bin/python" -c 'import sys, importlib.util; sys.exit(importlib.util.find_spec("torch") is None)' || {
    printf '%s\n' "launch/wheelhouse.sh: there is no environment to build with" "  fix: make env ENV=$kind" >&2
    exit 2
}
case $kind in
    cpu) torch_index=https://download.pytorch.org/whl/cpu ;;
    gpu) torch_index=https://download.pytorch.org/whl/cu130 ;;
esac
requirements=requirements/$kind.txt
torch=$(grep -E '^torch==' "$requirements")

wheels() { DS_BUILD_OPS=0 "$bin/pip" wheel --no-deps --no-build-isolation --wheel-dir "$folder" "$@"; }

mkdir -p "$folder"
# The configured package sources first: a request to an unreachable index costs half a minute.
wheels "$torch" || wheels --index-url "$torch_index" "$torch"
grep -hE '^[^#]+==' "$requirements" requirements/{build,dev}.txt | grep -v '^torch==' | wheels --requirement /dev/stdin
tar --create --gzip --file "$folder/rlhf.tar.gz" --exclude-vcs \
    --anchored --exclude="./$(realpath --relative-to=. "$folder")" --exclude=./{.venv,.slurm,runs,data,wandb,wheelhouse} \
    --no-anchored --exclude='__pycache__' --exclude='.*_cache' --exclude='*.egg-info' .
(cd "$folder" && sha256sum -- *.whl rlhf.tar.gz >SHA256SUMS)
du --human-readable --summarize "$folder"
