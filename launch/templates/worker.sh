#!/usr/bin/env bash
# {{ notice }}
#
# Adds this machine to a Ray cluster.   launch/worker.sh HEAD ADDRESS [options of `ray start`]
#
# HEAD is the head's address; other nodes reach this machine at ADDRESS. It needs the head's token in ~/.ray/auth_token or
# in the file of RAY_AUTH_TOKEN_PATH, readable only by you. Given options override those here.
{% include "start.jinja" %}
    echo "  fix: copy the head's, readable by you alone" >&2
    exit 2
fi

if [[ $# -lt 2 || $2 == -* ]]; then echo "usage: launch/worker.sh HEAD ADDRESS [options of \`ray start\`]" >&2; exit 2; fi
head=$1 address=$2
shift 2
exec ray start --address="$head:{{ ports.head }}" --node-ip-address="$address" "${ports[@]}" "$@"
