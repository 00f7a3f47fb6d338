#!/bin/sh
# Runs an agent of Ray, and outlives it: see lean_node.py. The agent ends with its parent, which it knows by this variable.
export RAY_RAYLET_PID=$$
"$@"
exec sleep infinity
