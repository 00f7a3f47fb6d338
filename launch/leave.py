"""``python -m launch.leave SECONDS``: what a pod does before it ends (Kubernetes' preStop hook).

Ray ends its processes at once when its node ends. So the commands that run in this pod are asked to stop first; if
there are none, and actors of a run are here, those on the head. It returns when they have committed a checkpoint and
ended, or after SECONDS. Every pod of a cluster may do this at the same time: the request may be repeated.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

import psutil

from rlhf.config.stages import DEPENDS_ON
from rlhf.recovery.stop import ASK_AGAIN

MODULES = ("launch.attempt", "launch.job", "launch.cli")
"""Modules that run a command, as ``python -m MODULE ... COMMAND RECIPE``."""
COMMANDS = (*DEPENDS_ON, "pipeline")
"""Commands that commit a checkpoint when they are asked to stop."""
ACTOR = "ray::"
"""Beginning of the title of Ray's processes."""
NO_ACTORS = ("ray::IDLE", "ray::RuntimeEnv", "ray::Dashboard", "ray::JobSupervisor", "ray::SPILL", "ray::RESTORE")
"""The same of processes without an actor of a run."""
HEAD = "node:__internal_head__"
"""Resource that marks Ray's head."""
HANDLED = "SigCgt"
"""Line of ``/proc/PID/status`` with the signals that a process handles, as bits."""


def is_command(words: Sequence[str]) -> bool:
    """Whether a process with this command line runs a command that can be asked to stop."""
    program = " ".join(words[:3])
    is_ours = any(f"-m {module}" in program for module in MODULES) or any(word.endswith("/rlhf") for word in words[:2])
    return is_ours and any(word in COMMANDS for word in words[1:])


def is_actor(title: str) -> bool:
    """Whether a process is an actor of a run, by its title."""
    return title.startswith(ACTOR) and not title.startswith(NO_ACTORS)


def stop_commands(seconds: float) -> int:
    """Ask the commands of this machine to stop, and wait until they have ended; returns how many there were."""
    commands = [process for process in psutil.process_iter() if is_command(_words(process))]
    for process in commands:
        _ask(process.pid)
    psutil.wait_procs(commands, timeout=seconds)
    return len(commands)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has ended
        return []


def _ask(pid: int) -> None:
    """Send the request; SIGTERM to a command that has not begun, and does not handle the other signal yet."""
    with suppress(OSError):
        os.kill(pid, ASK_AGAIN if _handles(pid) else signal.SIGTERM)


def _handles(pid: int) -> bool:
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        rows = dict(line.split(":", 1) for line in file if ":" in line)
    return bool(int(rows[HANDLED], 16) & (1 << (ASK_AGAIN - 1)))


def has_actors(titles: Iterable[str]) -> bool:
    """Whether actors of a run are here, by the titles of all processes."""
    return any(map(is_actor, titles))


def stop_on_head(seconds: float) -> int:
    """Ask the commands on Ray's head to stop, from another node of its cluster; returns how many there were."""
    import ray

    from actors.cluster import join, worker_environment

    join("auto")
    environment = {"env_vars": worker_environment(1, own_ray=False)}
    task = ray.remote(num_cpus=0, max_retries=0, runtime_env=environment, resources={HEAD: 0.001})(stop_commands)
    return int(ray.get(task.remote(seconds), timeout=seconds + 30))


def leave(seconds: float) -> int:
    """Stop what would be lost with this pod; returns the number of commands that were asked to stop."""
    end = time.monotonic() + seconds
    if found := stop_commands(seconds):
        return found
    titles = [" ".join(_words(process)) for process in psutil.process_iter()]
    return stop_on_head(end - time.monotonic()) if has_actors(titles) else 0


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    count = leave(float(arguments[0]))
    print(f"launch.leave: {count} commands were asked to stop", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
