#!/bin/sh
# Runs an agent of Ray, and outlives it, but not the raylet: see lean_node.py. The agent ends with its parent, which it
# knows by this variable.
export RAY_RAYLET_PID=$$
"$@" &
tail --pid="$PPID" -f /dev/null
kill "$!"
