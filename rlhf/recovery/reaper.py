"""Ends what a command's Ray leaves behind, once the command has ended: on request, by an error, or killed.

    python -I -S rlhf/recovery/reaper.py PIDFD PIPE FOLDER,...

A process of its own, because nothing in a killed process can clean up. Ray's processes have sessions of their own
(``actors/cluster.py``), which their descendants share, also orphans and those that are stopped. Only the standard
library is imported: it starts within 20 ms, and takes 10 MB. It is there before the first process of Ray, and learns of
each through a pipe: a command that is killed while Ray starts leaves nothing either.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from glob import glob
from pathlib import Path

END_SECONDS = 10.0
"""How long killed processes may take to end: one that waits for a disk ends later."""
POLL_SECONDS = 0.02
PIPE_BYTES = 2**16
"""All that a pipe holds: a line for each process of Ray."""
IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
"""Signals that may be sent to all processes of a job: the reaper ends after the command."""
OWN_FILE = re.compile(r"rlhf-[a-z]+-(?P<namespace>\d+)-(?P<process>\d+)-.+", re.DOTALL)
"""Names of the temporary files of this project's processes."""


def pid_namespace() -> int:
    """Id of this process's PID namespace, in which its pid is unique; containers may share their folders."""
    return os.stat("/proc/self/ns/pid").st_ino


def members(sessions: Collection[int]) -> Iterator[int]:
    """Processes of these sessions that have not ended."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and session_of(int(entry.name)) in sessions:
            yield int(entry.name)


def session_of(process: int) -> int | None:
    """Session of a process; None if it has ended, whether or not its parent has reaped it."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    state, _, _, session = stat.rpartition(")")[2].split()[:4]  # its name may contain anything
    return None if state in "ZX" else int(session)


def end_sessions(sessions: Collection[int], seconds: float = END_SECONDS) -> bool:
    """Kill all processes of these sessions, and wait for their end; returns whether all have ended."""
    until = time.monotonic() + seconds
    while found := list(members(sessions)):
        for process in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        if time.monotonic() >= until:
            return False
        time.sleep(POLL_SECONDS)
    return True


def remove_orphans(folders: Collection[str | Path]) -> None:
    """Remove this user's files in ``folders`` whose process, of this PID namespace, has ended."""
    namespace = pid_namespace()
    for folder in folders:
        with suppress(OSError):  # the folder is gone
            for entry in list(os.scandir(folder)):
                name = OWN_FILE.fullmatch(entry.name)
                if name is None or int(name["namespace"]) != namespace:
                    continue
                with suppress(OSError):  # its process has removed it
                    is_own = entry.stat(follow_symlinks=False).st_uid == os.getuid()
                    if is_own and session_of(int(name["process"])) is None:
                        remove(Path(entry.path))


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class Reaper:
    """A process that cleans up after this one has ended, unless ``dismiss`` was called."""

    def __init__(self, folders: Collection[Path]) -> None:
        """Start it.

        Args:
            folders: folders with temporary files.
        """
        self.sessions = list[int]()
        """Sessions whose processes are to end."""
        this = os.pidfd_open(os.getpid())
        told, self._tell = os.pipe()
        arguments = [str(this), str(told), ",".join(map(str, folders))]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, *arguments],
            pass_fds=[this, told],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        os.close(this)
        os.close(told)

    def add_session(self, session: int) -> None:
        """The processes of this session are to end."""
        self.sessions.append(session)
        os.write(self._tell, f"{session}\n".encode())

    def add_spilled(self, pattern: str) -> None:
        """Folders of this pattern, with objects that Ray has spilled, are to be removed."""
        os.write(self._tell, os.fsencode(f"{pattern}\n"))

    def dismiss(self) -> None:
        """End it: this process has cleaned up."""
        self._process.kill()
        self._process.wait()
        os.close(self._tell)


def main(command: int, told: int, folders: Collection[str]) -> None:
    """Wait for the end of the process of this descriptor, and clean up what it has told through a pipe."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    select.select([command], [], [])
    os.set_blocking(told, False)  # a process that the command has forked may hold the other end
    lines = list[bytes]()
    with suppress(BlockingIOError):
        lines += os.read(told, PIPE_BYTES).splitlines()
    end_sessions({int(line) for line in lines if line.isdigit()})
    remove_orphans(folders)
    for folder in (folder for line in lines if not line.isdigit() for folder in glob(os.fsdecode(line))):
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(","))
