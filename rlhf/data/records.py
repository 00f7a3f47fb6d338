"""What a data file holds once its rows are understood: demonstrations, preferences, prompts, and rows that are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """Where a row came from. ``line`` counts from 1; for Parquet files and ``datasets`` it is the row's number."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; ``role`` is usually system, user or assistant."""

    role: str
    content: str


Messages = tuple[Message, ...]


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the answer that a person would like to see."""

    prompt: Messages | str
    completion: str
    source: Source


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, of which a person prefers ``chosen``, by ``margin`` where the data says how much."""

    prompt: Messages | str
    chosen: str
    rejected: str
    margin: float
    source: Source


@dataclass(frozen=True)
class PromptRow:
    """A prompt to be answered; ``columns`` are the others of its row, under their names in the file."""

    prompt: Messages | str
    source: Source
    columns: Mapping[str, object] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used. ``reason`` is a category, or ``category: detail``; rows are counted by category."""

    source: Source
    reason: str

    @property
    def category(self) -> str:
        """The reason without its detail."""
        return self.reason.partition(":")[0]


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """Every row of a file, in the file's order: it is either in ``rows`` or in ``bad``."""

    rows: tuple[T, ...]
    bad: tuple[BadRow, ...]
