"""Checks of ports: those of a Ray head, one for a rendezvous of ranks, and whether nodes reach each other.

A test socket answers with a random word, which distinguishes it from other programs.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from launch.doctor.findings import Finding, described, failed, not_applicable, ok, warning

RAY_PORTS = {6379: "the head's control store", 8265: "the dashboard and job submission", 10001: "Ray's client server"}
"""Default ports of ``ray start --head``."""
LEAST_RANGE = 4000
"""Minimum of ephemeral ports: Ray, torch.distributed and NCCL take several for each process and peer."""
CONNECT_SECONDS = 3.0
LOCAL = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Ports of a node."""

    taken: tuple[int, ...]
    """Ports of ``RAY_PORTS`` on which a program listens."""
    problem: str
    """Reason why no free port was found; empty otherwise."""
    first: int
    last: int
    """Range of the kernel's ephemeral ports."""


def gather(address: str = LOCAL, file: Path = Path("/proc/sys/net/ipv4/ip_local_port_range")) -> Ports:
    """Gather the ports of this machine, at the address by which others reach it."""
    first, last = (int(word) for word in file.read_text(encoding="utf-8").split())
    problem = ""
    try:
        _connect_to_own(address)
    except OSError as error:
        problem = described(error)
    return Ports(taken=tuple(port for port in RAY_PORTS if _is_taken(port)), problem=problem, first=first, last=last)


def _connect_to_own(address: str) -> None:
    with Listener(address) as listener:
        reach(listener.target)


def _is_taken(port: int) -> bool:
    with socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind(("", port))
        except OSError:
            return True
    return False


@dataclass(frozen=True, kw_only=True)
class Target:
    """A test socket: its address, and its answer."""

    address: str
    port: int
    word: str


class Listener:
    """A test socket that answers every connection until it is closed."""

    def __init__(self, address: str) -> None:
        """Open the socket on a free port, and answer in a thread.

        Raises:
            OSError: no port is free, or the address is not this machine's.
        """
        self._socket = socket.create_server((address, 0))
        port: int = self._socket.getsockname()[1]
        self.target = Target(address=address, port=port, word=secrets.token_hex(8))
        threading.Thread(target=self._serve, name="doctor: test socket", daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                other, _ = self._socket.accept()
                with other:
                    other.sendall(self.target.word.encode())
            except OSError:
                if self._socket.fileno() < 0:
                    return

    def close(self) -> None:
        """Stop listening."""
        with suppress(OSError):  # some kernels report that the socket is not connected
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def reach(target: Target, seconds: float = CONNECT_SECONDS) -> None:
    """Connect to a test socket and receive its word.

    Raises:
        OSError: it could not be reached in time, or another program answered.
    """
    with socket.create_connection((target.address, target.port), timeout=seconds) as own:
        heard = b""
        while len(heard) < len(target.word) and (part := own.recv(64)):
            heard += part
    if heard.decode(errors="replace") != target.word:
        raise ConnectionError(f"another program answered at {target.address}:{target.port}")


def unreached(targets: Sequence[Target], seconds: float = CONNECT_SECONDS) -> dict[str, str]:
    """Addresses of test sockets that cannot be reached from here → reason."""
    problems: dict[str, str] = {}

    def attempt(target: Target) -> None:
        try:
            reach(target, seconds)
        except OSError as error:
            problems[f"{target.address}:{target.port}"] = described(error)

    threads = [threading.Thread(target=attempt, args=(target,), daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * seconds + 1)
    return dict(sorted(problems.items()))


def check_ports(facts: Ports, in_cluster: bool) -> Finding:
    """Check that enough ports are free, and a new head's own ports if no Ray runs yet."""
    count = facts.last - facts.first + 1
    found = f"a free one can be had; {count} to choose from ({facts.first} to {facts.last})"
    if facts.problem:
        return failed(f"no free port: {facts.problem}", "end what holds them; check this host's own name and firewall")
    if count < LEAST_RANGE:
        return warning(found, 'sysctl -w net.ipv4.ip_local_port_range="32768 60999"')
    taken = [f"{port} ({RAY_PORTS[port]})" for port in facts.taken]
    if taken and not in_cluster:
        return warning(f"{found}; in use: {', '.join(taken)}", "for a new head: end that Ray, or give it other ports")
    return ok(found)


def check_reach(problems: Mapping[str, str], nodes: int) -> Finding:
    """Check that the node reaches a test socket on each other node.

    Args:
        problems: address → reason; nodes: number of other nodes.
    """
    if not nodes:
        return not_applicable("there is no other node")
    if problems:
        address, reason = next(iter(problems.items()))
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        fix = "open all TCP ports between the nodes in firewall and security groups: Ray, gloo and NCCL choose any"
        return failed(f"does not reach {address}: {reason}{more}", fix)
    return ok(f"reaches {nodes} other node{'s' if nodes > 1 else ''} at a free port")
