"""Imports what actors need once on a node, and forks their processes, which then start without importing.

An actor's imports of PyTorch, DeepSpeed and transformers take some nine seconds of a core, vLLM's ten. Python's
``multiprocessing`` has the same method, "forkserver", for its own processes; this one is for Ray's: the runtime
environment's ``py_executable`` names the client (``fork_client``).

Only a process with one thread may be forked, and none that uses CUDA: the server checks both, and declines otherwise.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import runpy
import shlex
import signal
import socket
import sys
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from types import FrameType

from actors import fork_client
from actors.fork_client import FORKED, LENGTH, RAYLET, of_this_user
from rlhf.garbage import paused_collection

DECLINED = b"D"
READ_SECONDS = 10.0
"""For a client to send its request; others wait meanwhile."""
CUDA_DEVICE = "/dev/nvidia-uvm"
"""Opened by a process once it uses CUDA."""
PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl(2): the signal that this process, and none that it forks, receives when its parent ends."""


def executable(modules: Iterable[str]) -> str:
    """What a runtime environment names as ``py_executable``, for actors that use these modules."""
    words = [sys.executable, "-I", "-S", str(Path(fork_client.__file__).resolve()), ",".join(modules)]
    return shlex.join(words)


@dataclass(frozen=True, kw_only=True)
class ForkRequest:
    """A process to fork: what it runs and where, and the client's connection and standard streams."""

    modules: Sequence[str]
    argv: Sequence[str]
    environment: dict[str, str]
    folder: str
    blocked_signals: Sequence[int]
    connection: socket.socket
    streams: Sequence[int]

    @property
    def missing(self) -> int:
        """Number of modules that are not imported yet."""
        return sum(module not in sys.modules for module in self.modules)

    def close(self) -> None:
        """Close the streams here; the connection stays."""
        for stream in self.streams:
            os.close(stream)


def read_request(connection: socket.socket) -> ForkRequest:
    """The request of a client.

    Raises:
        OSError: the client has gone, or does not send it.
    """
    connection.settimeout(READ_SECONDS)
    header, streams, _, _ = socket.recv_fds(connection, LENGTH.size, 3)
    try:
        with connection.makefile("rb") as stream:
            header += stream.read(LENGTH.size - len(header))
            body = stream.read(LENGTH.unpack(header)[0]) if len(header) == LENGTH.size else b""
        if len(header) < LENGTH.size or len(body) < LENGTH.unpack(header)[0]:
            raise ConnectionError("the client has gone")
    except OSError:
        for descriptor in streams:
            os.close(descriptor)
        raise
    connection.settimeout(None)
    return ForkRequest(**json.loads(body), connection=connection, streams=streams)


class ForkServer:
    """Answers requests until its owner ends, which is the node's raylet or the run's command, or a client's raylet.

    Args:
        modules: are imported one after another, between requests whose own modules are there.
    """

    def __init__(self, listener: socket.socket, owner: int, modules: Iterable[str] = ()) -> None:
        self._listener, self._modules = listener, deque(modules)
        self._owners: dict[int, int] = {}
        """Descriptors of the processes with which the server ends, by pid."""
        self._selector = DefaultSelector()
        self._selector.register(listener, EVENT_READ)
        self._end_with(owner)
        self._ended, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        """Pipe that is readable after a child ended."""
        self._selector.register(self._ended, EVENT_READ)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._end_at_once)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._children: dict[int, socket.socket] = {}
        """Connections of clients, by the pid of their process."""
        self._requests: list[ForkRequest] = []

    def serve(self) -> ForkRequest | None:
        """Fork what clients ask for. Returns in a forked process with its request, and in the server with None."""
        while True:
            is_busy = bool(self._requests or self._modules)
            ready = {key.fileobj for key, _ in self._selector.select(0.0 if is_busy else None)}
            if not ready.isdisjoint(self._owners.values()):
                self._end_children()
                return None
            if self._ended in ready:
                self._reap()
            if self._listener in ready:
                self._accept()
                continue  # all that ask are known before one of them may have to wait for imports
            self._end_abandoned(ready)
            request = min(self._requests, key=lambda waiting: waiting.missing, default=None)
            if self._modules and (request is None or request.missing):
                import_quietly(self._modules.popleft())
            elif request is not None:
                self._requests.remove(request)
                if self._fork(request):
                    return request

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        try:
            request = read_request(of_this_user(connection))
        except OSError:
            connection.close()
            return
        self._requests.append(request)
        with suppress(KeyError, ProcessLookupError):  # started by hand, or it ends, and its workers with it
            self._end_with(int(request.environment[RAYLET]))

    def _end_with(self, process: int) -> None:
        """Have the server end when this process does."""
        if process not in self._owners:
            self._owners[process] = os.pidfd_open(process)
            self._selector.register(self._owners[process], EVENT_READ)

    def _fork(self, request: ForkRequest) -> bool:
        """Fork a process, if this one may; returns True in the new process."""
        for module in request.modules:
            import_quietly(module)
        reason = obstacle()
        if reason is not None:
            self._answer(request, DECLINED + reason.encode())
            request.connection.close()
            return False
        gc.freeze()  # a collection in the child would write to, and so copy, every page with an object
        process = os.fork()
        if process == 0:
            self._leave()
            return True
        self._children[process] = request.connection
        self._selector.register(request.connection, EVENT_READ)
        self._answer(request, FORKED)
        return False

    def _answer(self, request: ForkRequest, answer: bytes) -> None:
        request.close()
        with suppress(OSError):  # the client has gone: seen as its connection's end
            request.connection.sendall(answer)

    def _reap(self) -> None:
        """Tell the clients of processes that ended; a dead process that nobody awaits would look alive."""
        with suppress(BlockingIOError):
            os.read(self._ended, 4096)
        with suppress(ChildProcessError):  # there is none
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                connection = self._forget(found[0])
                if connection is not None:
                    with suppress(OSError):
                        connection.sendall(bytes([abs(os.waitstatus_to_exitcode(found[1])) & 0xFF]))
                    connection.close()

    def _end_abandoned(self, ready: Collection[object]) -> None:
        """Kill the processes whose clients were killed: after its request a client says nothing else."""
        for process in [each for each, connection in self._children.items() if connection in ready]:
            connection = self._forget(process)
            assert connection is not None
            connection.close()
            os.kill(process, signal.SIGKILL)

    def _end_children(self) -> None:
        """Kill all processes: one that is stopped, or stuck, would not notice that its raylet has ended."""
        for process in self._children:
            os.kill(process, signal.SIGKILL)

    def _end_at_once(self, number: int, frame: FrameType | None) -> None:
        """On SIGTERM: end in the middle of an import too."""
        self._end_children()
        os._exit(0)

    def _forget(self, process: int) -> socket.socket | None:
        """Remove a process; returns its client's connection, or None if the client has gone."""
        connection = self._children.pop(process, None)
        if connection is not None:
            self._selector.unregister(connection)
        return connection

    def _leave(self) -> None:
        """In a forked process: close what is the server's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._selector.close()
        self._listener.close()
        for connection in self._children.values():
            connection.close()
        for descriptor in (*self._owners.values(), self._ended, self._wake):
            os.close(descriptor)


def import_quietly(module: str) -> None:
    """Import a module; a process that needs it fails at the same import, and says so where it is reported."""
    with paused_collection(), suppress(Exception):
        import_module(module)


def obstacle() -> str | None:
    """Why this process may not be forked; None if it may."""
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return f"the fork server has {threads} threads"
    with suppress(OSError):
        for descriptor in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/self/fd/{descriptor}") == CUDA_DEVICE:
                    return "the fork server uses CUDA"
    return None


def become(request: ForkRequest) -> None:
    """In a forked process: take the client's streams, environment and folder, and run its program."""
    import numpy as np  # has been imported by the server

    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
    request.close()
    request.connection.close()
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    os.setpgid(0, 0)  # as Ray's own workers: at a worker's end, Ray kills what is left of its process group
    signal.pthread_sigmask(signal.SIG_SETMASK, request.blocked_signals)
    np.random.seed()  # Python's own generator seeds itself after a fork; this one would be the same in all processes
    sys.argv[:] = request.argv
    sys.path[0] = str(Path(request.argv[0]).parent)
    runpy.run_path(request.argv[0], run_name="__main__")


def main() -> None:
    """Serve on the socket whose descriptor is the first argument, and import the modules that the others name."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    owner = int(os.environ.get(RAYLET) or os.getppid())
    server = ForkServer(listener, owner, sys.argv[2:])
    if owner == os.getppid():  # the command, whose end is thus noticed in the middle of an import too
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    request = server.serve()
    if request is not None:
        become(request)


if __name__ == "__main__":
    main()
