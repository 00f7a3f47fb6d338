"""Reads a file of human feedback in one of the known formats: items, votes, thumbs, and every row that is unusable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf.data.read import read_rows
from rlhf.data.turns import RowError
from rlhf.errors import UserError
from rlhf.feedback.formats import finegrained, label_studio, openai, pandalm, trl
from rlhf.feedback.formats.judged import Judged, Parse, alias, vote_id
from rlhf.feedback.records import Item, Thumb, Vote
from rlhf.records import BadRow, DataFile, Loaded

Read = Callable[[str, str], Loaded[Judged]]
"""Reads a file; the second argument is the alias of votes without a rater."""


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """The content of a feedback file; every row is in ``items``, in ``thumbs`` or in ``bad``."""

    items: tuple[Item, ...] = ()
    """Each once, although several rows may judge it."""
    votes: tuple[Vote, ...] = ()
    thumbs: tuple[Thumb, ...] = ()
    bad: tuple[BadRow, ...] = ()
    """Unusable rows, and unusable votes of rows that are used."""
    files: tuple[DataFile, ...] = ()
    remarks: tuple[str, ...] = ()


def _by_row(parse: Parse) -> Read:
    """A reader of files in which every row is parsed alone."""

    def read(path: str, rater: str) -> Loaded[Judged]:
        files: list[DataFile] = []
        rows: list[Judged] = []
        bad: list[BadRow] = []
        for raw in read_rows(path, files=files):
            if isinstance(raw, BadRow):
                bad.append(raw)
                continue
            try:
                found = parse(raw, rater)
            except RowError as error:
                bad.append(BadRow(raw.source, str(error)))
                continue
            rows += found
            bad += [BadRow(raw.source, reason) for each in found for reason in each.bad_votes]
        return Loaded(tuple(rows), tuple(bad), files=tuple(files))

    return read


FORMATS: Mapping[str, Read] = {
    "trl": lambda path, rater: trl.read_preferences(path, "auto", rater),
    "trl-unpaired": lambda path, rater: trl.read_labelled(path),
    "hh": lambda path, rater: trl.read_preferences(path, "hh", rater),
    "label-studio": _by_row(label_studio.parse),
    "openai": _by_row(openai.parse_comparison),
    "webgpt": _by_row(openai.parse_webgpt),
    "best-of": _by_row(openai.parse_best_of),
    "pandalm": _by_row(pandalm.parse),
    "finegrained": _by_row(finegrained.parse),
}
"""Name of a format → its reader."""


def read_feedback(path: str, format: str) -> Feedback:
    """Read a file of votes or thumbs.

    Args:
        path: JSONL, JSON or Parquet file, packed by gzip or not; what ``data.path`` can be.
        format: a key of ``FORMATS``.

    Raises:
        UserError: the format is unknown, the file cannot be read, or no row of it is usable.
    """
    if format not in FORMATS:
        raise UserError(f"{format!r} is no format of feedback", f"the formats are {', '.join(FORMATS)}", "name one")
    stem = Path(path).name.partition(".")[0]

    def person(number: int) -> str:
        return alias(format, stem if number == 1 else f"{stem}:{number}")

    loaded = FORMATS[format](path, person(1))
    if not loaded.rows:
        first = f"{loaded.bad[0].source}: {loaded.bad[0].reason}" if loaded.bad else "it has no rows"
        raise UserError(
            f"no row of '{path}' is feedback in the format {format}", first, "check --format and docs/feedback.md"
        )
    votes, too_many = number_votes(loaded.rows, person)
    items: dict[str, Item] = {}
    for row in loaded.rows:
        if row.item is not None:
            items.setdefault(row.item.id, row.item)
    return Feedback(
        items=tuple(items.values()),
        votes=tuple(votes),
        thumbs=tuple(row.thumb for row in loaded.rows if row.thumb is not None),
        bad=(*loaded.bad, *too_many),
        files=loaded.files,
        remarks=loaded.remarks,
    )


def number_votes(rows: Iterable[Judged], person: Callable[[int], str]) -> tuple[list[Vote], list[BadRow]]:
    """Votes with their ids, and those that are one too many.

    A second vote of one alias on an item is a repeat if the file named the rater, and a third one is refused. If the
    file named none, the alias stands for all votes of the file, and the second vote is another person's.

    Args:
        person: alias of a file's n-th person without a name, counted from 1.
    """
    seen: Counter[tuple[str, str]] = Counter()
    votes: list[Vote] = []
    bad: list[BadRow] = []
    for row, vote in ((each, vote) for each in rows for vote in each.votes):
        seen[vote.item, vote.rater] += 1
        number = seen[vote.item, vote.rater]
        is_named = vote.rater != person(1)
        if is_named and number > 2:
            bad.append(BadRow(row.source, f"a third vote: {vote.rater} judged the same answers twice before"))
            continue
        rater = vote.rater if is_named else person(number)
        vote = replace(vote, rater=rater, is_repeat=is_named and number > 1)
        votes.append(replace(vote, id=vote_id(vote, number)))
    return votes, bad
