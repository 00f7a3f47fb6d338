"""What Ray starts instead of Python for an actor: asks this node's fork server for the process, and lives as long.

    python -I -S actors/fork_client.py MODULES default_worker.py ARGUMENT ...

``MODULES``, separated by commas, are what the process shall have imported. Nothing but the standard library is imported
here, which takes 20 ms. Where the server cannot help, this process becomes the actor's, which imports for itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress

FORKED = b"F"
"""The server's answer; after any other follows the reason why it cannot fork."""
LENGTH = struct.Struct("!I")
"""Length of a request in bytes."""
PEER = struct.Struct("3i")
"""Process, user and group at the other end of a connection: ``struct ucred`` of unix(7)."""
RAYLET = "RAY_RAYLET_PID"
"""Ray's variable with the pid of the node's raylet; the server ends with it.

If the connection to the raylet breaks and that process is gone, Ray ends the process that has the variable, with exit
code 1; without it, if the process's parent is gone, as after the end of a terminal. A command therefore sets it to its
own pid: it lives on and can say what happened. The raylet sets it for its own children.
"""
SERVER = "RLHF_FORK_SERVER"
"""Variable with the name of a server that the command of the run has started: see ``actors.preload``."""
ANSWER_SECONDS = 120.0
"""In which the server answers, which may have to import first; it may be stopped, and then this process imports."""
WAITING = 1024
"""Connections that the listening socket keeps while the server imports."""


def address_of(environment: Mapping[str, str]) -> str:
    """Address of the server for processes with this environment, in the abstract namespace: no file remains.

    Libraries read the environment when they are imported, so processes with another one need another server. Ray's
    own variables are read later, by each process.
    """
    shells = ("_", "SHLVL", "PWD", "OLDPWD")
    kept = {
        name: value
        for name, value in environment.items()
        if name not in shells and (name == RAYLET or not name.startswith("RAY_"))
    }
    named = json.dumps([sys.executable, os.getuid(), kept], sort_keys=True)
    return f"\0rlhf-fork-{hashlib.sha256(named.encode()).hexdigest()[:32]}"


def connect(environment: Mapping[str, str]) -> socket.socket:
    """A connection to the command's server, or to the node's, which is started if there is none.

    Of clients that come at once, one starts it.

    Raises:
        OSError: no server can be started, or it is another user's.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if SERVER in environment:
        with suppress(ConnectionRefusedError):  # it has ended, with an earlier raylet for example
            connection.connect(f"\0{environment[SERVER]}")
            return of_this_user(connection)
    address = address_of(environment)
    with open(os.path.join(tempfile.gettempdir(), f"rlhf-fork-{os.getuid()}.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            connection.connect(address)
        except ConnectionRefusedError:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                listener.bind(address)
                listener.listen(WAITING)
                connection.connect(address)
                start_server(listener, environment)
    return of_this_user(connection)


def of_this_user(connection: socket.socket) -> socket.socket:
    """The connection, whose other end is a process of this user: names in the abstract namespace are open to all.

    Raises:
        PermissionError: it is another user's.
    """
    owner = PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))[1]
    if owner != os.getuid():
        raise PermissionError(f"user {owner} is at the other end")
    return connection


def start_server(
    listener: socket.socket, environment: Mapping[str, str], modules: Iterable[str] = (), has_session: bool = False
) -> subprocess.Popen[bytes]:
    """Start a server that answers on ``listener``, and imports ``modules`` while it has nothing else to do.

    BLAS may start no threads there: a fork would not have them. With ``has_session`` it and its processes have a
    session of their own; a worker's server stays in that of the raylet, with which both are ended.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "actors.fork_server", str(listener.fileno()), *modules],
        env={**environment, "OPENBLAS_NUM_THREADS": "1"},
        pass_fds=[listener.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # this process's streams would stay open as long as the server
        stderr=subprocess.DEVNULL,
        start_new_session=has_session,
        process_group=None if has_session else 0,  # at the end of a worker, Ray kills its process group
    )


def ask(connection: socket.socket, modules: list[str], argv: list[str], environment: Mapping[str, str]) -> None:
    """Ask for a process that runs ``argv`` in this one's place.

    Raises:
        OSError: there is none; the message has the server's reason.
    """
    request = {
        "modules": modules,
        "argv": argv,
        "environment": dict(environment),
        "folder": os.getcwd(),
        "blocked_signals": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    }
    body = json.dumps(request).encode()
    socket.send_fds(connection, [LENGTH.pack(len(body))], [0, 1, 2])
    connection.sendall(body)
    connection.settimeout(ANSWER_SECONDS)
    if connection.recv(1) != FORKED:
        with connection.makefile() as rest:
            raise OSError(rest.read() or "it has ended")
    connection.settimeout(None)


def main() -> None:
    """End with the exit code of the forked process; the server ends that process if this one is killed."""
    modules, argv, environment = sys.argv[1].split(","), sys.argv[2:], dict(os.environ)
    try:
        connection = connect(environment)
        ask(connection, modules, argv, environment)
    except OSError as error:
        print(f"not forked, imports for itself: {error}", file=sys.stderr, flush=True)
        os.execv(sys.executable, [sys.executable, *argv])
    code = connection.recv(1)
    os._exit(code[0] if code else 1)


if __name__ == "__main__":
    main()
