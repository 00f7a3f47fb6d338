#!/usr/bin/env bash
# Installs what tests/rlhf/report/test_browser.py needs, from Debian's packages. It takes root, and a network.
#
# CI calls it; the tests themselves install nothing, and are skipped where no Chromium is there.
set -euo pipefail

for program in chromium-headless-shell chromium chromium-browser google-chrome google-chrome-stable; do
    ! command -v "$program" >/dev/null || exit 0
done
if [[ $(id -u) -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "not root, or no apt-get: the browser's tests will be skipped"
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
install() {
    timeout 180 apt-get install -qq --yes --no-install-recommends chromium-headless-shell ||
        timeout 180 apt-get install -qq --yes --no-install-recommends chromium
}
{ install || { timeout 60 apt-get update -qq && install; }; } >/dev/null 2>&1 ||
    echo "no Chromium could be installed: the browser's tests will be skipped"
