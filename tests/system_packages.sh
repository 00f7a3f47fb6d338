#!/usr/bin/env bash
# Installs what tests/launch/test_slurm.py and tests/launch/**/test_*browser*.py need, from Debian's or Ubuntu's packages.
#
# `make test` calls it in a container; the tests themselves install nothing. It takes root and a network: where they are
# missing it says which tests will be skipped, and ends well.
set -euo pipefail
PATH=$PATH:/usr/sbin

slurm=() browser=(chromium-headless-shell chromium) # of the browsers one: the first that there is
for program in slurmctld:slurmctld slurmd:slurmd munged:munge sbatch:slurm-client ip:iproute2; do
    command -v "${program%:*}" >/dev/null || slurm+=("${program#*:}")
done
for program in chromium-headless-shell chromium chromium-browser google-chrome google-chrome-stable; do
    ! command -v "$program" >/dev/null || browser=()
done
[[ ${#slurm[@]} -gt 0 || ${#browser[@]} -gt 0 ]] || exit 0

if [[ $(id -u) -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "not root, or no apt-get: without ${slurm[*]} ${browser[0]:-} some tests will be skipped"
    exit 0
fi
echo "installing ${slurm[*]} ${browser[0]:-}, which some tests drive ..."
export DEBIAN_FRONTEND=noninteractive
install() { timeout 180 apt-get install -qq --yes --no-install-recommends "$@" >/dev/null 2>&1; }
timeout 60 apt-get update -qq >/dev/null 2>&1 || true # the lists that are there may do
if [[ ${#slurm[@]} -gt 0 ]]; then
    install "${slurm[@]}" || echo "${slurm[*]} could not be installed: SLURM's tests will be skipped"
fi
if [[ ${#browser[@]} -gt 0 ]]; then
    install "${browser[0]}" || install "${browser[1]}" ||
        echo "no Chromium could be installed: the browser's tests will be skipped"
fi
