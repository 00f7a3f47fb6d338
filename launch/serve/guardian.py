"""Runs a server in this process group, and ends the whole group when the gateway's end of the pipe closes.

``python -m launch.serve.guardian COMMAND ...`` with a pipe as standard input. The pipe closes whenever the gateway
ends, also if it was killed, so that no server outlives it. Only the standard library is imported: it starts at once.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1


def main(command: list[str], stop_seconds: float) -> None:
    """Run the command until it ends or standard input closes; then kill the process group, this process included."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the group gets them too; this process is the last to end
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_prepare)
    while server.poll() is None and not _is_closed():
        pass
    if server.poll() is None:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(stop_seconds)
    print(f"the server ended with code {server.poll()}", flush=True)
    os.killpg(0, signal.SIGKILL)


def _is_closed() -> bool:
    """Whether the pipe is closed, after a short wait."""
    readable, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
    if not readable:
        return False
    is_closed = not os.read(sys.stdin.fileno(), 1)
    if not is_closed:
        time.sleep(POLL_SECONDS)
    return is_closed


def _prepare() -> None:
    """In the server's process: default signals, and its end when this process ends."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[2:], float(sys.argv[1]))
