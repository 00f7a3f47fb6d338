#!/bin/sh
# Runs an agent of Ray, and outlives it, but not the raylet: see lean_node.py. The agent ends when its standard input does,
# a pipe of the raylet, or its parent, which it knows by this variable.
export RAY_RAYLET_PID=$$
exec 3<&0 # a command in the background has another standard input
"$@" <&3 3<&- &
tail --pid="$PPID" -f /dev/null
kill "$!"
