#!/usr/bin/env bash
# Starts the head of a Ray cluster on this machine.   launch/head.sh [ADDRESS] [options of `ray start`]
#
# Other nodes reach it at ADDRESS, with `auto` at its address in the network of the default route; without one, or with
# 127.0.0.1, only this machine does. Every connection needs the token in ~/.ray/auth_token or in the file of
# RAY_AUTH_TOKEN_PATH. The dashboard listens on 127.0.0.1 only. OBJECT_STORE_BYTES is the size of Ray's object store. Given
# options override those here. Jobs inherit this environment: export their variables first, for example HF_TOKEN.
set -euo pipefail

here=$(realpath "$(dirname "${BASH_SOURCE[0]}")")
bin=$(realpath "${VENV:-$here/../.venv}")/bin
export PATH=$bin:$PATH # jobs find `python` by it too
# shellcheck source=launch/ray_node.sh
source "$here/ray_node.sh"
prepare_node "umask 077; $bin/ray get-auth-token --generate"

address=127.0.0.1
if [[ $# -gt 0 && $1 != -* ]]; then address=$1; shift; fi
if [[ $address == auto ]]; then address=$(cd "$here/.." && "$bin/python" -m launch.own_address); fi
size_object_store
# Ray resolves 127.0.0.1 to the host's own address, unless clusters are disabled.
if [[ $address == 127.* ]]; then export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0; fi
exec ray start --head --node-ip-address="$address" --port=6379 "${node_ports[@]}" "${store_options[@]}" \
    --dashboard-host=127.0.0.1 --dashboard-port=8265 --ray-client-server-port=6385 "$@"
