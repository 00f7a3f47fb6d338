"""What a row of a feedback file says, and the helpers that all formats share.

A file seldom says who judged, and never with which keys: its votes get an alias that begins with the format's name, and
an id that is a digest of item, rater and occurrence. So importing a file twice adds nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhf.data.read import RawRow
from rlhf.data.turns import RowError, require_unicode
from rlhf.feedback.items import make_item
from rlhf.feedback.records import Answer, Choice, Item, Thumb, Vote
from rlhf.records import Messages, RowLocation

LONGEST_ALIAS = 40  # characters, as the store allows
_NOT_IN_ALIAS = re.compile(r"[^A-Za-z0-9._:-]+")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What one row says: a comparison with its votes, or a thumb."""

    source: RowLocation
    item: Item | None = None
    votes: tuple[Vote, ...] = ()
    thumb: Thumb | None = None
    bad_votes: tuple[str, ...] = ()
    """Reasons why single votes of the row are unusable; the others are kept."""


Parse = Callable[[RawRow, str], list[Judged]]
"""Parses one row, or raises ``RowError``; the second argument is the alias of votes for which it names no rater."""


def alias(format: str, name: str) -> str:
    """A rater's alias: ``format:name`` with the characters that an alias may have.

    A name with an ``@`` may be a person's address, and is replaced by its digest.
    """
    name = name.strip()
    tidy = _NOT_IN_ALIAS.sub("-", name)
    if "@" in name or not tidy or len(f"{format}:{tidy}") > LONGEST_ALIAS:
        tidy = hashlib.blake2b(name.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()
    return f"{format}:{tidy}"


def imported_item(
    prompt: Messages | str,
    answers: tuple[Answer, Answer],
    source: RowLocation,
    *,
    group: str = "",
    extra: Mapping[str, object] | None = None,
) -> Item:
    """An item to label. Its source is the file's name and the line, without the folder."""
    return make_item(prompt, answers, source=f"{Path(source.file).name}:{source.line}", group=group, extra=extra)


def make_vote(item: Item, rater: str, choice: Choice, **fields: object) -> Vote:
    """An imported vote; ``number_votes`` gives it its final id."""
    return Vote(id="", item=item.id, rater=rater, choice=choice, **fields)  # type: ignore[arg-type]


def vote_id(vote: Vote, occurrence: int) -> str:
    """Id of an imported vote: the rater's vote number ``occurrence`` on the item in one file."""
    return digest(vote.item, vote.rater, str(occurrence))


def digest(*parts: str) -> str:
    """A hexadecimal digest of texts; where one ends and the next begins makes a difference."""
    text = json.dumps(parts).encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def ordered(first: Answer, second: Answer) -> tuple[tuple[Answer, Answer], bool]:
    """Two answers in an order that does not tell which one was preferred, and whether they were exchanged.

    Files of ``chosen`` and ``rejected`` name the better answer first. Kept so, every item's first answer would win, and
    two rows that disagree about the same answers would be two items.
    """
    is_exchanged = digest(first.text, first.policy) > digest(second.text, second.policy)
    return ((second, first) if is_exchanged else (first, second)), is_exchanged


def preferred(first_wins: bool, is_strong: bool = False) -> Choice:
    """The choice of a file that names a winner; without a strength it is ``slightly``, the least that was said."""
    choice = Choice.FIRST_MUCH if is_strong else Choice.FIRST_SLIGHTLY
    return choice if first_wins else choice.swapped


def text_at(row: Mapping[str, object], column: str, is_empty_allowed: bool = False) -> str:
    """The text of a column.

    Raises:
        RowError: there is none.
    """
    if column not in row:
        raise RowError(f"columns missing: needs {column}; has {', '.join(row) or 'none'}")
    return as_text(row[column], column, is_empty_allowed)


def as_text(value: object, column: str, is_empty_allowed: bool = False) -> str:
    """The value if it is text.

    Raises:
        RowError: it is no text, or empty.
    """
    if not isinstance(value, str):
        raise RowError(f"not text: {column} is {value!r:.40}")
    if not value.strip() and not is_empty_allowed:
        raise RowError(f"empty {column}")
    require_unicode(value, column)
    return value


def mapping_at(row: Mapping[str, object], column: str) -> Mapping[str, object]:
    """The object in a column.

    Raises:
        RowError: there is none.
    """
    value = row.get(column)
    if not isinstance(value, Mapping):
        raise RowError(f"not an object: {column} is {value!r:.40}")
    return value


def without(row: Mapping[str, object], *columns: str) -> dict[str, object]:
    """The other columns of a row, which are kept for export."""
    return {name: value for name, value in row.items() if name not in columns}
