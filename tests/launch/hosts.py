"""Several hosts on one machine: each is a set of Linux namespaces, joined by an isolated bridge.

A host has its own network, processes, host name, shared memory, temporary folder, ``/tmp/ray`` and home folder. It
shares the disk with this machine, as hosts of a cluster share storage. It ends, with all its processes, when this
process ends.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
NETWORK = "10.77.0"
TOOLS = ("unshare", "nsenter", "ip", "ss", "hostname", "mount")
OWN = ("--net", "--mount", "--uts", "--ipc", "--pid")
"""Namespaces of a host."""
SETUP = """
set -e
mkdir -p "$FOLDER/tmp/ray" "$FOLDER/home" /tmp/ray
mount --bind "$FOLDER/tmp" /mnt
mount --bind "$FOLDER/tmp/ray" /tmp/ray
mount -t tmpfs tmpfs /dev/shm
mount --bind "$NAMES" /etc/hosts
hostname "$NAME"
ip link set lo up
exec "$PYTHON" -c "$FIRST"
"""
FIRST = """
import os, sys, threading, time
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
print("up", flush=True)
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.1)
"""
"""First process of a host: reaps orphaned processes, and ends the host when its input is closed."""


@dataclass(frozen=True, kw_only=True)
class Listener:
    """A TCP port on which a process of a host listens."""

    address: str
    port: int
    process: str


def why_not() -> str:
    """Reason why hosts cannot be created here; empty if they can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"there is no {', '.join(missing)}"
    test = [
        "unshare",
        *OWN,
        "--fork",
        "--mount-proc",
        "sh",
        "-c",
        "ip link add br0 type bridge && mount -t tmpfs t /mnt",
    ]
    tried = subprocess.run(test, capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"the kernel does not let us make namespaces: {tried.stderr.strip()}"


class Host:
    """One host. ``folder`` holds its own ``home`` and ``tmp``."""

    def __init__(self, name: str, address: str, folder: Path, names: Path) -> None:
        self.name, self.address, self.folder = name, address, folder
        folder.mkdir()
        environment = {"FOLDER": folder, "NAMES": names, "NAME": name, "PYTHON": sys.executable, "FIRST": FIRST}
        self._unshare = subprocess.Popen(
            ["unshare", *OWN, "--fork", "--mount-proc", "--kill-child", "sh", "-c", SETUP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **{key: str(value) for key, value in environment.items()}},
            preexec_fn=_end_with_parent,
        )
        assert self._unshare.stdout is not None
        assert self._unshare.stdout.readline() == b"up\n", f"{name} did not start"
        parent = self._unshare.pid
        self.first = int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])

    @property
    def home(self) -> Path:
        """Home folder of its user."""
        return self.folder / "home"

    def start(
        self, command: Sequence[str], cwd: Path = ROOT, output: IO[str] | None = None, **environment: str
    ) -> subprocess.Popen[str]:
        """Start a command on this host; its output goes to a file, or else to a pipe."""
        return subprocess.Popen(
            ["nsenter", "-t", str(self.first), *OWN, f"--wd={cwd}", *command],
            env=self._environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=output or subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(
        self, command: Sequence[str], cwd: Path = ROOT, seconds: float = 120, **environment: str
    ) -> tuple[int, str]:
        """Run a command on this host; returns its exit code and its output.

        The output goes to a file, because background processes such as those of ``ray start`` would keep a pipe open.
        """
        output = self.folder / f"output-{time.time_ns()}"
        with output.open("w") as file:
            done = subprocess.run(
                ["nsenter", "-t", str(self.first), *OWN, f"--wd={cwd}", *command],
                env=self._environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
        return done.returncode, output.read_text(errors="replace")

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("LANG", "LC_ALL") if name in os.environ}
        return {
            **kept,
            "HOME": str(self.home),
            "TMPDIR": "/mnt",
            "VENV": sys.prefix,
            "PATH": f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "WANDB_MODE": "offline",
            **more,
        }

    def listeners(self) -> set[Listener]:
        """Listeners on this host."""
        _, output = self.run(["ss", "-ltnpH"])
        rows = [line.split() for line in output.splitlines()]
        return {_listener(row[3], row[5] if len(row) > 5 else "") for row in rows}

    def end(self) -> None:
        """Kill every process of the host, as a power failure would."""
        self._unshare.kill()
        self._unshare.wait()


def _listener(place: str, users: str) -> Listener:
    address, _, port = place.rpartition(":")
    found = re.search(r'"([^"]*)"', users)
    return Listener(address=address, port=int(port), process=found.group(1) if found else "")


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL


class Hosts:
    """Hosts that reach each other, and nothing else."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self._addresses = folder, {name: f"{NETWORK}.{i}" for i, name in enumerate(names, start=1)}
        self.names = folder / "names"
        self.names.write_text("127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for n, a in self._addresses.items()))
        self._switch = Host("switch", "", folder / "switch", self.names)
        self._wire("ip", "link", "add", "br0", "type", "bridge")
        self._wire("ip", "link", "set", "br0", "up")
        self._plugged = 0
        self.all = {name: self.add(name) for name in names}

    def __getitem__(self, name: str) -> Host:
        return self.all[name]

    def add(self, name: str) -> Host:
        """Start and connect a host; one that ended may start again, without its former state."""
        self._plugged += 1
        host = Host(name, self._addresses[name], self.folder / f"{name}-{self._plugged}", self.names)
        plug = f"port{self._plugged}"
        self._wire("ip", "link", "add", plug, "type", "veth", "peer", "name", "eth0", "netns", str(host.first))
        self._wire("ip", "link", "set", plug, "master", "br0", "up")
        for words in (f"addr add {host.address}/24 dev eth0", "link set eth0 up"):
            code, output = host.run(["ip", *words.split()])
            assert code == 0, output
        return host

    def _wire(self, *command: str) -> None:
        """Run in the switch's network namespace, with this machine's process ids."""
        subprocess.run(["nsenter", "-t", str(self._switch.first), "--net", *command], check=True)

    def end(self) -> None:
        """End all hosts."""
        for host in (*self.all.values(), self._switch):
            host.end()


@contextmanager
def hosts(folder: Path, names: Sequence[str]) -> Iterator[Hosts]:
    """Run the block with hosts of these names."""
    made = Hosts(folder, names)
    try:
        yield made
    finally:
        made.end()
