"""Parsed rows of a data file: demonstrations, preferences, prompts, and rows that cannot be used."""

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
    """Empty if the turn has none, such as a turn that is only a tool call."""
    fields: Mapping[str, object] = field(default_factory=dict, hash=False)
    """All other fields of the turn, by name: ``tool_calls``, ``reasoning_content``, ``name``, ..."""
    has_content: bool = field(default=True, compare=False)
    """Whether the row has a content for the turn; some chat templates distinguish null from empty text."""
    trained: bool = field(default=True, compare=False)
    """Whether the model is trained on this turn; false for turns that are only context."""

    def as_dict(self) -> dict[str, object]:
        """The turn as a dictionary for chat templates."""
        return {"role": self.role, "content": self.content if self.has_content else None, **self.fields}


Messages = tuple[Message, ...]


def text_of(turn: Message | str) -> str:
    """The text of an answer that is given as a message or as text."""
    return turn if isinstance(turn, str) else turn.content


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the desired answer.

    The answer is an assistant message if the row has messages, else text. If the prompt's last turn is the assistant's,
    the answer continues that turn. ``variables`` are those that the row passes to the chat template beside its
    messages: ``tools``, ``documents``, and entries of ``chat_template_kwargs``.
    """

    prompt: Messages | str
    completion: Message | str
    source: RowLocation
    variables: Mapping[str, object] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, of which ``chosen`` is preferred, by ``margin`` if the data gives one.

    Prompt, answers and ``variables`` are as in a ``Demonstration``.
    """

    prompt: Messages | str
    chosen: Message | str
    rejected: Message | str
    margin: float
    source: RowLocation
    variables: Mapping[str, object] = field(default_factory=dict, hash=False)
    is_tie: bool = False
    """One of two rows that state a tie, one in each order: for training, not for evaluation."""


@dataclass(frozen=True)
class LabelledAnswer:
    """A prompt and one answer that a person found good or bad: an unpaired label.

    Prompt, answer and ``variables`` are as in a ``Demonstration``.
    """

    prompt: Messages | str
    completion: Message | str
    is_good: bool
    source: RowLocation
    variables: Mapping[str, object] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class PromptRow:
    """A prompt without an answer; ``columns`` are the other columns of its row, by name.

    Prompt and ``variables`` are as in a ``Demonstration``.
    """

    prompt: Messages | str
    source: RowLocation
    columns: Mapping[str, object] = field(default_factory=dict, hash=False)
    variables: Mapping[str, object] = field(default_factory=dict, hash=False)
    prompt_column: str = field(default="prompt", compare=False)
    """Name of the prompt's column in the file."""


@dataclass(frozen=True)
class BadRow:
    """A row that is not used. ``reason`` is a category, or ``category: detail``; rows are counted by category."""

    source: RowLocation
    reason: str
    is_fault: bool = True
    """Whether the row is malformed; false for a tie."""

    @property
    def category(self) -> str:
        """The reason without its detail."""
        return self.reason.partition(":")[0]


@dataclass(frozen=True)
class DataFile:
    """A file that was read: its number of rows, bad ones included, and a hexadecimal digest of its content."""

    file: str
    rows: int
    digest: str


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """All rows of a file, in order; each is either in ``rows`` or in ``bad``."""

    rows: tuple[T, ...]
    bad: tuple[BadRow, ...]
    unused: tuple[str, ...] = ()
    """Columns that are present but not read."""
    files: tuple[DataFile, ...] = ()
    """Files that the rows were read from."""
    repeated: int = 0
    """Number of rows whose answers began with the prompt, which was removed from them."""
    remarks: tuple[str, ...] = ()
    """Further remarks for the user on the rows that are used."""
