"""Reads committed checkpoints; every file is verified against the manifest before it is used."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.checkpoints.files import fault_of
from rlhf.checkpoints.folders import committed
from rlhf.checkpoints.manifest import CONFIG, MANIFEST, STATE, Manifest, decode, json_mapping
from rlhf.errors import UserError

READERS = 4
"""Number of files that are hashed in parallel."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder that was complete when it was committed. Its files are ``path / entry.name``."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """Number of completed steps."""
        return self.manifest.step

    @property
    def score(self) -> float | None:
        """Score of the policy, higher is better; None if unknown."""
        return self.manifest.score

    def verify(self) -> None:
        """Read every file and compare it with the manifest. Files that the manifest does not name are ignored.

        Raises:
            UserError: a file is missing or differs.
        """
        files = self.manifest.files
        with ThreadPoolExecutor(READERS) as pool:
            faults = list(pool.map(lambda entry: fault_of(entry, self.path), files))
        wrong = [f"{entry.name} {fault}" for entry, fault in zip(files, faults) if fault is not None]
        if wrong:
            more = f"; {len(wrong) - 1} more of its {len(files)} files are damaged" if len(wrong) > 1 else ""
            raise damaged(self.path, f"{self.path}/{wrong[0]}{more}")

    def state(self) -> dict[str, Any]:
        """Read the controller's state.

        Raises:
            UserError: its file is damaged.
        """
        text = self._text(STATE)
        try:
            return json_mapping(text)
        except ValueError as error:
            raise damaged(self.path, f"{self.path / STATE} {error}") from error

    def config(self) -> str:
        """Read the resolved recipe of the checkpoint's run, as YAML.

        Raises:
            UserError: its file is damaged.
        """
        return self._text(CONFIG)

    def _text(self, name: str) -> str:
        entry = next(entry for entry in self.manifest.files if entry.name == name)
        if (fault := fault_of(entry, self.path)) is not None:
            raise damaged(self.path, f"{self.path / name} {fault}")
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except ValueError as error:
            raise damaged(self.path, f"{self.path / name} is not text: {error}") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in the folder ``step_<N>``; reads only the manifest.

    Raises:
        UserError: the manifest is missing, damaged, or of another step.
    """
    try:
        manifest = decode((path / MANIFEST).read_text(encoding="utf-8"))
    except OSError as error:
        raise damaged(path, f"{path / MANIFEST} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise damaged(path, f"{path / MANIFEST} {error}") from error
    if path.name != f"step_{manifest.step}":
        raise damaged(path, f"{path / MANIFEST} is the manifest of step_{manifest.step}")
    return Checkpoint(path=path, manifest=manifest)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest committed checkpoint in ``checkpoints/``; None without one.

    Raises:
        UserError: its manifest is damaged; an older checkpoint is not used silently.
    """
    found = committed(folder)
    return read_checkpoint(found[max(found)]) if found else None


def damaged(path: Path, what: str) -> UserError:
    """Error for a damaged checkpoint, which names the next older one to resume from."""
    others = [step for step, other in committed(path.parent).items() if other != path]
    otherwise = f"resume from step_{max(others)}" if others else "start again"
    return UserError(what, "a run cannot resume from a damaged checkpoint", f"delete {path} to {otherwise}")
