"""Removes folders in the background, because a large checkpoint can take a file system minutes to delete."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from rlhf.checkpoints.store import set_aside


@dataclass(frozen=True, kw_only=True)
class RemovalFailure:
    """A folder that could not be removed, and why; what is left of it has the suffix ``.removed``."""

    path: Path
    reason: str


class BackgroundRemoval:
    """Renames folders at once and deletes them in threads. What a killed process leaves has no committed name."""

    def __init__(self) -> None:
        self._threads: dict[Path, Thread] = {}
        """The thread that deletes each folder, by its new path."""
        self._failures: list[RemovalFailure] = []

    def remove(self, path: Path) -> None:
        """Begin to remove a folder; never raises."""
        try:
            going = set_aside(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self._failures.append(RemovalFailure(path=path, reason=str(error)))
            return
        if going not in self._threads or not self._threads[going].is_alive():
            self._threads[going] = Thread(target=self._delete, args=(going,), daemon=True)
            self._threads[going].start()

    def _delete(self, path: Path) -> None:
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            return
        except OSError as error:
            self._failures.append(RemovalFailure(path=path, reason=str(error)))

    def take_failures(self) -> list[RemovalFailure]:
        """The failures since the last call."""
        taken, self._failures = self._failures, []
        return taken

    def wait(self, seconds: float) -> None:
        """Wait until everything is removed, at most this long."""
        end = time.monotonic() + seconds
        for thread in self._threads.values():
            thread.join(max(0.0, end - time.monotonic()))
