"""Watches Ray's own processes, the raylet of the controller's node and the GCS: without them no actor can be reached.

Ray would end the controller with exit code 1 and without a record, after up to a minute, or let it wait.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from rlhf.errors import ClusterError
from rlhf.recovery.diagnosis import Cause, diagnose
from rlhf.recovery.facts import STOPPED, Facts, oom_kills, oom_kills_since, process_state, shared_memory
from rlhf.recovery.last_resort import LastResort

END_SECONDS = 15.0
"""How long the main thread may take to end the command after Ray has failed."""
POLL_SECONDS = 2.0
"""Interval at which a GCS of another host is greeted, and how long its reaction may take."""
AGAIN_SECONDS = 0.5
"""After which a missing file of Ray's session is looked for again."""
STOPPED_SECONDS = 30.0
"""After which a process that is stopped, by a signal or a debugger, counts as lost: Ray waits for it for ever."""
GCS_FRACTION = 0.75
"""Part of the time after which Ray itself ends a process whose GCS does not answer."""
GCS_SECONDS = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Ray's variable for that time, 60 s by default. A GCS with external storage may be restarted within it."""
FAILED_AGENT = re.compile(r"because one Ray agent failed, agent_name = (\w+)")
"""In the raylet's log: it ends when one of its agents does."""
LOG_BYTES = 2**16
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a gRPC connection begins, with empty settings; the server sends its own (RFC 9113, section 3.4)."""
AGENTS: Mapping[str, re.Pattern[str]] = {
    "dashboard agent": re.compile(r"(ray::)?DashboardAgent|\S*python\S* .*dashboard/agent\.py"),
    "runtime env agent": re.compile(r"(ray::)?RuntimeEnvAgent|\S*python\S* .*runtime_env/agent/main\.py"),
}
"""Agents of a raylet, and how their command lines begin, before and after they change them."""

Address = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class RayProcess:
    """A process of Ray itself on this node. ``code`` returns its exit code, where this process has started it."""

    name: str
    process: int
    code: Callable[[], int | None] = lambda: None


def agents_of(raylet: int) -> list[RayProcess]:
    """The agents of a raylet, without which it ends itself, except in a ``LeanNode``."""
    found = list[RayProcess]()
    with suppress(psutil.Error):  # it has ended, which the watch tells
        for process in psutil.Process(raylet).children(recursive=True):
            with suppress(psutil.Error):  # a worker that has just ended
                line = " ".join(process.cmdline())
                found += [
                    RayProcess(name=name, process=process.pid) for name, start in AGENTS.items() if start.match(line)
                ]
    return found


class RayWatch:
    """Notices the end of Ray's own processes; ``check`` raises then, in every wait of the main thread.

    Args:
        last_resort: ends the process where the main thread does not come to a check.
    """

    def __init__(self, last_resort: LastResort | None = None) -> None:
        self.failure: ClusterError | None = None
        """Why Ray cannot be used any more; None while it can."""
        self._last_resort = last_resort or LastResort()

    def check(self) -> None:
        """Raise if Ray itself has failed.

        Raises:
            ClusterError: a process of Ray has ended, or the GCS does not answer.
        """
        if self.failure is not None:
            raise self.failure

    @contextmanager
    def watching(
        self, processes: Sequence[RayProcess], logs: Path, gcs: Address | None = None, paths: Sequence[Path] = ()
    ) -> Iterator[None]:
        """Context in which these processes are watched.

        Args:
            logs: folder of Ray's logs on this node.
            gcs: address of the GCS, if it is not among the processes.
            paths: files and folders of Ray's session, which a program that cleans the temporary folder may remove.
        """
        handles = dict[int, RayProcess]()
        for each in processes:
            with suppress(ProcessLookupError):  # it has ended, which its log tells: Ray's calls fail
                handles[os.pidfd_open(each.process)] = each
        reader, writer = os.pipe()
        there = [path for path in paths if path.exists()]
        arguments = (handles, reader, logs, gcs, there, oom_kills())
        thread = threading.Thread(target=self._watch, args=arguments, name="ray watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            os.close(writer)
            thread.join()
            for handle in (*handles, reader):
                os.close(handle)

    def _watch(
        self,
        handles: Mapping[int, RayProcess],
        reader: int,
        logs: Path,
        gcs: Address | None,
        paths: Sequence[Path],
        kills: int | None,
    ) -> None:
        poller, silent_since, stopped_since = select.poll(), time.monotonic(), dict[int, float]()
        missed: Path | None = None
        for handle in (*handles, reader):
            poller.register(handle, select.POLLIN | select.POLLHUP)
        while True:
            wait = POLL_SECONDS if missed is None else AGAIN_SECONDS
            ready = [handle for handle, _ in poller.poll(wait * 1000)]
            if reader in ready:
                return
            if ended := [handles[handle] for handle in ready]:
                return self._fail(describe_end(ended, logs, kills))
            for each in handles.values():
                if process_state(each.process) not in STOPPED:
                    stopped_since.pop(each.process, None)
                elif time.monotonic() - stopped_since.setdefault(each.process, time.monotonic()) > STOPPED_SECONDS:
                    return self._fail(describe_stop(each))
            missing = next((path for path in paths if not path.exists()), None)
            if missing is not None and missing == missed:  # a raylet that ends removes its socket just before
                return self._fail(describe_removal(missing))
            missed = missing
            if gcs is None:
                continue
            if answers(gcs):
                silent_since = time.monotonic()
            elif (silent := time.monotonic() - silent_since) > GCS_FRACTION * float(os.environ.get(GCS_SECONDS, 60)):
                address = f"{gcs[0]}:{gcs[1]}"
                return self._fail(
                    f"Ray's GCS at {address} has not answered for {silent:.0f} s; likely cause: the head of the "
                    f"cluster is gone, or stopped; what to do: see `ray status --address {address}`, and start the "
                    "cluster again"
                )

    def _fail(self, what: str) -> None:
        self.failure = failure = ClusterError(f"{what}. Without it no actor can be reached.")
        self._last_resort.end_within(END_SECONDS, lambda: failure)


def answers(gcs: Address) -> bool:
    """Whether a server at this address reacts to a greeting: for a stopped one the kernel still accepts connections.

    One that expects TLS closes the connection; without TLS, a tunnel does that whose other end is gone.
    """
    closes = os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true")
    try:
        with socket.create_connection(gcs, timeout=POLL_SECONDS) as connection:
            connection.sendall(HTTP2_GREETING)
            return bool(connection.recv(1)) or closes
    except ConnectionResetError:
        return closes
    except OSError:
        return False


def describe_stop(stopped: RayProcess) -> str:
    """Names a process that does nothing, and what to do about it."""
    return (
        f"Ray's {stopped.name} (process {stopped.process}) has been stopped for {STOPPED_SECONDS:.0f} s; likely cause: "
        f"SIGSTOP, or a debugger; what to do: find out who stopped it; `kill -CONT {stopped.process}` continues it"
    )


def describe_removal(path: Path) -> str:
    """Names a removed file or folder of Ray's session, and what to do about it."""
    return (
        f"{path} of Ray's session was removed, which every new process of Ray needs; likely cause: somebody, or a "
        "program that cleans temporary folders (tmpreaper, systemd-tmpfiles); what to do: have it leave Ray's folder "
        "alone, by default /tmp/ray, or set RAY_TMPDIR to a folder that nobody cleans"
    )


def describe_end(ended: Sequence[RayProcess], logs: Path, kills: int | None) -> str:
    """Names processes that have ended, with the likely cause and what to do about it.

    Args:
        kills: ``oom_kills()`` when they ran.
    """
    agent = next((each.name for each in ended if each.name in AGENTS), None) or _logged_agent(logs)
    names = " and ".join(f"{each.name} (process {each.process})" for each in ended)
    how = "; ".join(filter(None, (_how(each.code()) for each in ended)))
    kills_since = oom_kills_since(kills)
    found = diagnose(
        Facts(alive=False, oom_kills_since_start=kills_since, shared_memory=shared_memory(), exit_text=how)
    )
    is_known = found.cause not in (Cause.UNKNOWN, Cause.SILENT)
    if agent is not None:
        cause = f"; likely cause: {found.cause}" if is_known else ""
        advice = found.advice if is_known else f"see the {agent}'s log in {logs}"
        return f"Ray's {agent} ended, which the raylet needs{cause}; what to do: {advice}"
    advice = found.advice if is_known else f"see the logs of Ray in {logs}"
    return f"Ray's {names} ended{f', {how}' if how else ''}; likely cause: {found.cause}; what to do: {advice}"


def _logged_agent(logs: Path) -> str | None:
    """The agent because of which a raylet ended, according to its log."""
    found = next((found[1] for found in map(FAILED_AGENT.search, _ends_of_logs(logs)) if found), None)
    return None if found is None else found.replace("_", " ")


def _how(code: int | None) -> str:
    """How a process ended, by its exit code."""
    if code is None:
        return ""
    if code >= 0:
        return f"exit code {code}"
    known = -code in [*signal.Signals]  # a real-time signal has no name
    return f"killed by {signal.Signals(-code).name if known else f'signal {-code}'}"


def _ends_of_logs(logs: Path) -> Iterator[str]:
    """The last part of the raylet's logs."""
    for name in ("raylet.out", "raylet.err"):
        with suppress(OSError), (logs / name).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_BYTES))
            yield log.read().decode(errors="replace")
