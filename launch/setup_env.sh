#!/usr/bin/env bash
# Makes the virtual environment.   setup_env.sh cpu|gpu VENV PYTHON
#
# The stamp says what the environment was made from and is written last. An environment without it, or with another one,
# was interrupted, is out of date or was moved: it is made again. Where it agrees, there is nothing to do.
#
# With WHEELHOUSE=folder, which launch/wheelhouse.sh made on another machine, no network is needed.
set -euo pipefail

die() { printf '%s\n' "$@" >&2; exit 2; }

# PyTorch's own index is for machines whose package sources lack this build of it.
case $1 in
    cpu) torch_index=https://download.pytorch.org/whl/cpu ;;
    gpu) torch_index=https://download.pytorch.org/whl/cu130 ;;
    *) die "There is no environment named '$1'." "  fix: make ENV=cpu or make ENV=gpu" ;;
esac
sources=()
if [[ -n ${WHEELHOUSE:-} ]]; then
    wheelhouse=$(realpath -m "$WHEELHOUSE")
    [[ -f $wheelhouse/SHA256SUMS ]] ||
        die "$wheelhouse is no wheelhouse." "  fix: launch/wheelhouse.sh $1, on a machine with a network"
    sources=(--no-index --find-links "$wheelhouse")
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=$(realpath -m "$2")
python=$(realpath -m "$(command -v "$3" || echo "$3")")  # not a link inside the environment that is about to be removed
requirements=requirements/$1.txt stamp=$venv/made-from log=$venv/setup.log rest=$venv/rest.txt

made_from() { { echo "$venv"; "$python" --version; cat requirements/{build,dev}.txt "$requirements" setup.py "$0"; } | sha256sum; }

pinned() { grep -E "^$1==" "$requirements"; }

# uv installs in seconds what takes pip minutes, but does not read pip's configuration: where uv fails, pip may not.
install() {
    "$venv/bin/uv" pip install --python "$venv/bin/python" --no-deps "${sources[@]}" "$@" ||
        "$venv/bin/pip" install --no-deps "${sources[@]}" "$@"
}

check() (cd "$wheelhouse" && sha256sum --check --quiet SHA256SUMS)

create() { "$python" -m venv "$venv" && "$venv/bin/pip" install --no-deps "${sources[@]}" -r requirements/build.txt; }

# The machine's own sources first: asking an index that cannot be reached costs half a minute.
install_torch() {
    "$venv/bin/pip" install --no-deps --no-compile "${sources[@]}" "$(pinned torch)" ||
        "$venv/bin/pip" install --no-deps --no-compile "${sources[@]}" --index-url "$torch_index" "$(pinned torch)"
}

# DeepSpeed is built from source, and its build imports PyTorch. Its kernels are compiled on first use, where one is used.
install_deepspeed_and_this() { DS_BUILD_OPS=0 install --no-build-isolation "$(pinned deepspeed)" --editable .; }

# Proves the environment, and leaves the bytecode that every later process would otherwise compile again for itself.
# PyTorch first, which both halves need, and then the halves beside each other.
import_the_stack() {
    local half
    import_all torch
    import_all torch._inductor.compile_fx vllm.model_executor.models.llama vllm.v1.engine.llm_engine &
    half=$!
    import_all datasets deepspeed matplotlib.pyplot ray scipy.stats wandb transformers.models.llama.modeling_llama || {
        wait "$half"
        return 1
    }
    wait "$half"
}
import_all() { env -u PYTHONDONTWRITEBYTECODE "$venv/bin/python" -c "$(printf 'import %s\n' "$@")"; }

step() { # step WHAT COMMAND...: its output goes to the log, and the end of it to the screen when it fails
    local what=$1 began=$SECONDS; shift
    echo "  $what ..."
    "$@" >>"$log" 2>&1 || { tail -n 20 "$log" >&2; die "" "$what failed; the whole log is $log"; }
    echo "  $what: done in $((SECONDS - began)) s"
}

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null ||
    die "'$3' is not Python 3.11 or 3.12." "  fix: install Python 3.11, or name it: make PYTHON=/path/to/python3.11"

# One at a time. The lock is on this folder and goes with the last process that holds it, so that nothing left behind by an
# interrupted set-up writes into the next one.
exec 9<.
flock --nonblock 9 || { echo "waiting for another set-up of this folder ..."; flock 9; }
wanted=$(made_from)
[[ -x $venv/bin/rlhf && -f $stamp && $(<"$stamp") == "$wanted" ]] && exit 0
[[ ! -e $venv || -e $venv/pyvenv.cfg || -e $log ]] ||
    die "$venv exists and is no virtual environment." "  fix: move it away, or choose another: make VENV=folder"

echo "Making the $1 environment in $venv (once; one to two minutes)"
rm -rf "$venv"
mkdir -p "$venv"
: >"$log"
grep -hE '^[^#]+==' "$requirements" requirements/dev.txt | grep -vE '^(torch|deepspeed)==' >"$rest"
[[ ${#sources[@]} -eq 0 ]] || step "checking the wheelhouse" check
step "creating it" create
step "installing PyTorch" install_torch & torch=$!
step "installing vLLM, Ray, transformers and the rest, $(wc -l <"$rest") packages" install -r "$rest"
wait "$torch"
step "building DeepSpeed" install_deepspeed_and_this
step "importing everything once" import_the_stack
echo "$wanted" >"$stamp"
