"""How a service of this project listens, and stops on a signal."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rlhf.errors import UserError

if TYPE_CHECKING:
    import uvicorn


@contextmanager
def bound(host: str, port: int, backlog: int, settings: str) -> Iterator[socket.socket]:
    """A socket that listens at the address, before anything is announced.

    Args:
        backlog: connections that wait to be accepted.
        settings: names of the settings of host and port, for the message.

    Raises:
        UserError: nothing can listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=backlog)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot serve at {host}:{port}", why, f"choose another {settings}") from error
    with listener:
        yield listener


@contextmanager
def signals_stop(server: uvicorn.Server) -> Iterator[None]:
    """Context in which SIGINT and SIGTERM stop the server, also before it handles them itself. It raises them again
    after its end, which would kill the process without this."""

    def stop(*_: object) -> None:
        server.should_exit = True

    names = (signal.SIGINT, signal.SIGTERM)
    before = {name: signal.signal(name, stop) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def warn_of_exposure(host: str, what: str, page: str) -> None:
    """Warn if other machines can reach a service without an encrypting proxy.

    Args:
        what: what travels unencrypted then, for the message.
        page: page of the documentation about the service.
    """
    if not host.startswith("127.") and host not in ("localhost", "::1"):
        print(
            f"warning: {host} can be reached from other machines, and {what} travel unencrypted; "
            f"serve at 127.0.0.1 behind a proxy with TLS instead, see {page}",
            file=sys.stderr,
        )
