#!/usr/bin/env bash
# Installs what tests/launch/test_slurm.py needs, from Debian's or Ubuntu's packages. It takes root, and a network.
#
# CI calls it; the tests themselves install nothing, and are skipped where these programs are not there.
set -euo pipefail

missing=()
for program in slurmctld:slurmctld slurmd:slurmd munged:munge sbatch:slurm-client ip:iproute2; do
    PATH=$PATH:/usr/sbin command -v "${program%:*}" >/dev/null || missing+=("${program#*:}")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0
if [[ $(id -u) -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "not root, or no apt-get: SLURM's tests will be skipped"
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
install() { timeout 120 apt-get install -qq --yes --no-install-recommends "${missing[@]}"; }
{ install || { timeout 60 apt-get update -qq && install; }; } >/dev/null 2>&1 ||
    echo "${missing[*]} could not be installed: SLURM's tests will be skipped"
