#!/usr/bin/env bash
# {{ notice }}
#
# Starts the head of a Ray cluster on this machine.   launch/head.sh [ADDRESS] [options of `ray start`]
#
# Others reach it at ADDRESS; without one, or with 127.0.0.1, nobody can. Nobody without the token gets in:
# ~/.ray/auth_token, or the file that RAY_AUTH_TOKEN_PATH names. The dashboard listens on 127.0.0.1 only. An option that
# is given replaces the one here. Jobs inherit this environment: export what they need, HF_TOKEN for example, before.
{% include "start.jinja" %}
    echo "  fix: umask 077; $bin/ray get-auth-token --generate" >&2
    exit 2
fi

address=127.0.0.1
if [[ $# -gt 0 && $1 != -* ]]; then address=$1; shift; fi
# Ray takes 127.0.0.1 to mean "find this host's own address", unless it believes that it cannot be a cluster here.
if [[ $address == 127.* ]]; then export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0; fi
exec ray start --head --node-ip-address="$address" --port={{ ports.head }} "${ports[@]}" \
    --dashboard-host=127.0.0.1 --dashboard-port={{ ports.dashboard }} --ray-client-server-port={{ ports.client }} "$@"
