"""What a data file holds once its rows are understood: demonstrations, preferences, prompts, and rows that are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class RowLocation:
    """Where a row came from. ``line`` counts from 1; for Parquet files and ``datasets`` it is the row's number."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; ``role`` is usually system, user, assistant or tool."""

    role: str
    content: str
    """Empty where the turn has none, as a turn that is only a tool call."""
    fields: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Every other field of the turn under its own name: ``tool_calls``, ``reasoning_content``, ``name``, ..."""
    has_content: bool = field(default=True, compare=False)
    """Whether the row gives the turn a content: null is not the empty text to every chat template."""
    trained: bool = field(default=True, compare=False)
    """Whether a turn of the assistant is one to learn from, not context alone."""

    def as_dict(self) -> dict[str, object]:
        """The turn as chat templates take it."""
        return {"role": self.role, "content": self.content if self.has_content else None, **self.fields}


Messages = tuple[Message, ...]


def text_of(turn: Message | str) -> str:
    """The text of an answer, whichever way its row gives it."""
    return turn if isinstance(turn, str) else turn.content


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the answer that a person would like to see.

    The answer is a message of the assistant where the row gives messages, and text where it gives text. A prompt whose
    last turn is the assistant's is one to continue: the answer is the rest of that turn. ``variables`` are what the row
    gives the chat template beside its messages: ``tools``, ``documents``, and entries of ``chat_template_kwargs``.
    """

    prompt: Messages | str
    completion: Message | str
    source: RowLocation
    variables: Mapping[str, object] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, of which a person prefers ``chosen``, by ``margin`` where the data says how much.

    Prompt, answers and ``variables`` are as in a ``Demonstration``.
    """

    prompt: Messages | str
    chosen: Message | str
    rejected: Message | str
    margin: float
    source: RowLocation
    variables: Mapping[str, object] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class PromptRow:
    """A prompt to be answered; ``columns`` are the others of its row, under their names in the file.

    Prompt and ``variables`` are as in a ``Demonstration``.
    """

    prompt: Messages | str
    source: RowLocation
    columns: Mapping[str, object] = field(default_factory=dict, hash=False)
    variables: Mapping[str, object] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class BadRow:
    """A row that is set aside. ``reason`` is a category, or ``category: detail``; rows are counted by category."""

    source: RowLocation
    reason: str
    is_fault: bool = True
    """Whether the row is malformed; a tie is not."""

    @property
    def category(self) -> str:
        """The reason without its detail."""
        return self.reason.partition(":")[0]


@dataclass(frozen=True)
class DataFile:
    """What was read of one file: its rows, bad ones included, and a digest of its content (hexadecimal)."""

    file: str
    rows: int
    digest: str


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """Every row of a file, in the file's order: it is either in ``rows`` or in ``bad``."""

    rows: tuple[T, ...]
    bad: tuple[BadRow, ...]
    unused: tuple[str, ...] = ()
    """Columns that some row has and that nothing reads."""
    files: tuple[DataFile, ...] = ()
    """What the rows were read from."""
    repeated: int = 0
    """Rows whose answers began with the prompt, which was left out of them."""
    remarks: tuple[str, ...] = ()
    """What else a person should know of the rows that are used."""
