"""One state of a project in memory, for training and export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rlhf.errors import UserError
from rlhf.feedback.records import Item, Purpose, Thumb, Vote
from rlhf.feedback.store import Store
from rlhf.records import RowLocation

_ATTEMPTS = 5  # to read a project between two votes


@dataclass(frozen=True, kw_only=True)
class ProjectSnapshot:
    """One state of a project."""

    path: str
    items: tuple[Item, ...]
    votes: tuple[Vote, ...]
    thumbs: tuple[Thumb, ...]
    digest: str

    @cached_property
    def locations(self) -> Mapping[str, RowLocation]:
        """Item → where it is: the project, and the item's number from 1."""
        return {item.id: RowLocation(self.path, number) for number, item in enumerate(self.items, start=1)}

    @property
    def labels(self) -> list[Item]:
        """The items that become training data."""
        return [item for item in self.items if item.purpose is Purpose.LABEL]


def read_snapshot(path: str | Path) -> ProjectSnapshot:
    """Read a project while raters may work on it.

    Raises:
        UserError: it is no project, or votes arrive so fast that no state could be read.
    """
    with Store.open(Path(path).expanduser()) as store:
        before = store.digest()
        for _ in range(_ATTEMPTS):
            found = (tuple(store.items()), tuple(store.votes()), tuple(store.thumbs()))
            after = store.digest()
            if before == after:
                items, votes, thumbs = found
                return ProjectSnapshot(path=str(path), items=items, votes=votes, thumbs=thumbs, digest=after)
            before = after
    raise UserError(
        f"{path} changes while it is read",
        "votes arrive faster than the project can be read",
        "copy it by `rlhf feedback backup`, and train on the copy",
    )
