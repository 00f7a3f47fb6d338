"""A lock of a folder on storage that several nodes share: one process of all nodes holds it.

The kernel's lock (``flock``) ends with its process, but only this machine can rely on it: a file server may keep the
lock of a node that crashed, and some mounts do not pass it on to the server at all. The holder therefore renews the
time of a second file, its heartbeat, every ``BEAT_SECONDS``, and removes it when it releases the lock. A process on
another machine takes the lock over only after ``STALE_SECONDS`` without a heartbeat, by the file server's clock, and
says so. A holder that was only suspended notices that, and ends: two processes never write to one folder for longer
than a beat.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rlhf.storage.lock_record import LockRecord, parse_record
from rlhf.storage.locking import try_lock
from rlhf.unicode import encodable

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
"""Twelve beats: a file server may be away, and this process paused, for most of a minute."""
POLL_SECONDS = 0.5

Notice = Callable[[str], object]


class LockedError(Exception):
    """Another process holds the lock.

    Args:
        holder: its name, as ``process 4711 on head``.
    """

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Periods of a lock, and a clock; tests shorten them."""

    beat: float = BEAT_SECONDS
    stale: float = STALE_SECONDS
    poll: float = POLL_SECONDS
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep


def machine_id() -> str:
    """Identifier of this machine since it booted: a name alone may belong to several containers or boots."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        boot = "unknown"
    return f"{socket.gethostname()}/{boot}"


def end_process(message: str) -> None:
    """End this process at once, without another write to the folder."""
    with suppress(OSError):
        os.write(sys.stderr.fileno(), encodable(f"{message}\n").encode())
    os._exit(3)


class FolderLock:
    """A lock that this process holds, until ``release`` or the end of the last reference; ``take`` takes one."""

    def __init__(self, path: Path, record: LockRecord, file: TextIO) -> None:
        """Args: file is locked, and holds the record."""
        self.path, self.record, self._file = path, record, file
        self.ended = threading.Event()
        """Set when the heartbeat has to end."""
        self._finish = weakref.finalize(self, _end_heartbeat, self.ended, heartbeat_of(path, record))

    @classmethod
    def take(
        cls,
        path: Path,
        notice: Notice = lambda text: None,
        *,
        machine: str | None = None,
        on_loss: Notice = end_process,
        timing: Timing | None = None,
    ) -> FolderLock:
        """Take the lock at ``path``, a file.

        Args:
            notice: shows a line to the user while a holder on another machine is observed, and when its lock is taken
                over.
            machine: identifier of this machine; replaced in tests.
            on_loss: called in another thread, with a message, if another process has taken the lock over.

        Raises:
            LockedError: another process holds it, or may hold it.
            OSError: the file cannot be written.
        """
        timing, machine = timing or Timing(), machine or machine_id()
        record = LockRecord(
            process=os.getpid(),
            host=machine.partition("/")[0],
            machine=machine,
            since=time.time(),
            key=uuid.uuid4().hex,
        )
        beat = heartbeat_of(path, record)
        beat.touch(0o600)
        try:
            while (file := _try_taking(path, record, notice, timing)) is None:
                continue  # another process replaced the file meanwhile
            os.utime(beat)  # the wait for another machine's heartbeat may have been long
        except BaseException:
            beat.unlink(missing_ok=True)
            raise
        lock = cls(path, record, file)
        arguments = (path, record, lock.ended, on_loss, timing)  # not the lock, which ends with its last reference
        threading.Thread(target=_renew, args=arguments, name="folder lock", daemon=True).start()
        return lock

    def release(self) -> None:
        """Release the lock; the kernel and, after a while, other machines do the same when this process ends."""
        self._finish()
        self._file.close()


def _end_heartbeat(ended: threading.Event, beat: Path) -> None:
    ended.set()
    with suppress(OSError):
        beat.unlink(missing_ok=True)


def _renew(path: Path, record: LockRecord, ended: threading.Event, on_loss: Notice, timing: Timing) -> None:
    """Renew the heartbeat until the lock is released or lost."""
    while not ended.wait(timing.beat):
        now = None
        with suppress(OSError):  # the server is away
            now = parse_record(path.read_text(encoding="utf-8", errors="replace"))
        if now is not None and now.key != record.key:
            if not ended.is_set():
                on_loss(
                    f"{path.parent}: {now.name} has taken this folder over, because this process had no heartbeat for "
                    f"{timing.stale:.0f} s. It ends and writes nothing more."
                )
            return
        with suppress(OSError):
            os.utime(heartbeat_of(path, record))


def _try_taking(path: Path, record: LockRecord, notice: Notice, timing: Timing) -> TextIO | None:
    """The locked file with ``record`` in it; None to try again."""
    file = path.open("a+", encoding="utf-8", errors="replace")
    try:
        is_locked = try_lock(file)  # None: the file system has no locks, and the heartbeat decides
        if not _is_at(file, path):
            file.close()
            return None
        file.seek(0)
        text = file.read()
        holder = parse_record(text)
        if holder is None or not heartbeat_of(path, holder).exists():
            is_free, is_elsewhere = is_locked is not False, False  # it was released, or is being taken
        else:
            is_elsewhere = is_locked is None or holder.machine != record.machine
            is_free = bool(is_locked) and not is_elsewhere
        if is_free:
            if holder is not None:
                heartbeat_of(path, holder).unlink(missing_ok=True)
            return _written(file, record)
        if holder is None or not is_elsewhere:
            raise LockedError((text.splitlines() or ["another process"])[0])
        with _claim(path, holder, timing):
            silent = _seconds_silent(path, holder, notice, timing)
            if not _is_at(file, path):
                file.close()
                return None
            heartbeat_of(path, holder).unlink(missing_ok=True)
            notice(
                f"{path.parent}: taken over from {holder.name}, which took it at {holder.time}: no heartbeat for "
                f"{silent:.0f} s"
            )
            return _written(_replaced(path, file) if is_locked is False else file, record)
    except BaseException:
        file.close()
        raise


def heartbeat_of(path: Path, record: LockRecord) -> Path:
    """The heartbeat's file of a holder: no later one touches it."""
    return path.with_name(f"{path.name}.{record.key}")


def _is_at(file: TextIO, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    own = os.fstat(file.fileno())
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)


def _written(file: TextIO, record: LockRecord) -> TextIO:
    file.seek(0)
    file.truncate(0)
    file.write(record.to_text())
    file.flush()
    os.fsync(file.fileno())
    return file


def _replaced(path: Path, old: TextIO) -> TextIO:
    """A new locked file at ``path``: the server keeps the old one's lock for a machine that is gone."""
    new = path.with_name(f"{path.name}.new-{os.getpid()}").open("w+", encoding="utf-8")
    try_lock(new)
    os.replace(new.name, path)
    old.close()
    return new


@contextmanager
def _claim(path: Path, holder: LockRecord, timing: Timing) -> Iterator[None]:
    """Context in which no other process takes over the lock of the same holder: a file that is created once."""
    claim = path.with_name(f"{path.name}.claim-{holder.key}")
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        if _age(claim) < 3 * timing.stale:
            raise LockedError("another process, which is taking it over") from None
        os.utime(claim)  # that process died meanwhile
    try:
        yield
    finally:
        claim.unlink(missing_ok=True)


def _seconds_silent(path: Path, holder: LockRecord, notice: Notice, timing: Timing) -> float:
    """Observe the holder on another machine until its silence proves its end; returns the seconds of silence.

    Raises:
        LockedError: its heartbeat goes on, or it has just released the lock to another process.
    """
    beat = heartbeat_of(path, holder)
    try:
        renewed, age = beat.stat().st_mtime_ns, _age(beat)
        if age < timing.stale:
            left = timing.stale - age
            notice(
                f"{path.parent}: {holder.name} held it {age:.0f} s ago; waiting up to {left:.0f} s for its heartbeat"
            )
        end = timing.clock() + timing.stale - min(age, timing.stale)
        while timing.clock() < end:
            timing.sleep(timing.poll)
            if beat.stat().st_mtime_ns != renewed:
                raise LockedError(f"{holder.name}, which is alive: its heartbeat goes on")
        return _age(beat)
    except FileNotFoundError:
        raise LockedError(f"{holder.name}, which is ending") from None


def _age(path: Path) -> float:
    """Seconds since a file's time, on the clock that gives files their times: the server's."""
    probe = path.with_name(f"{path.name}.clock-{os.getpid()}-{threading.get_ident()}")
    probe.touch()
    try:
        return max(0.0, probe.stat().st_mtime - path.stat().st_mtime)
    finally:
        probe.unlink(missing_ok=True)
