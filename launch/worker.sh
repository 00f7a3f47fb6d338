#!/usr/bin/env bash
# Adds this machine to a Ray cluster.   launch/worker.sh HEAD ADDRESS [options of `ray start`]
#
# HEAD is the head's address; other nodes reach this machine at ADDRESS, with `auto` at its address in the network by which
# it reaches the head. It needs the head's token in ~/.ray/auth_token or in the file of RAY_AUTH_TOKEN_PATH, readable only
# by you. OBJECT_STORE_BYTES is the size of Ray's object store. Given options override those here.
set -euo pipefail

here=$(realpath "$(dirname "${BASH_SOURCE[0]}")")
bin=$(realpath "${VENV:-$here/../.venv}")/bin
export PATH=$bin:$PATH # jobs find `python` by it too
# shellcheck source=launch/ray_node.sh
source "$here/ray_node.sh"
prepare_node "copy the head's, readable by you alone"

if [[ $# -lt 2 || $2 == -* ]]; then echo "usage: launch/worker.sh HEAD ADDRESS [options of \`ray start\`]" >&2; exit 2; fi
head=$1 address=$2
shift 2
if [[ $address == auto ]]; then address=$(cd "$here/.." && "$bin/python" -m launch.own_address "$head"); fi
size_object_store
exec ray start --address="$head:6379" --node-ip-address="$address" "${node_ports[@]}" "${store_options[@]}" "$@"
