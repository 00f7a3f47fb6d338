"""TRL's preference and unpaired rows, and Anthropic's HH transcripts, read as training reads them.

A preference row is one vote: ``chosen`` is better than ``rejected``, by an unknown degree. A file names no rater, so
all of its votes get one alias; equal rows are votes of different people (in HH they are repetitions, and quarantined).
Its other columns, ``margin`` among them, are kept in ``extra``.

An unpaired row (``prompt``, ``completion``, ``label``) is a thumb.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeVar

from rlhf.config.schema import DataConfig
from rlhf.data.columns import COLUMNS, STANDARD
from rlhf.data.formats import load_labelled, load_preferences
from rlhf.data.labels import PAIR
from rlhf.data.read import RawRow, read_rows
from rlhf.data.split import canonical_prompt
from rlhf.data.turns import RowError
from rlhf.feedback.formats.judged import Judged, digest, imported_item, make_vote, ordered, preferred, without
from rlhf.feedback.records import Answer, Thumb
from rlhf.records import BadRow, LabelledAnswer, Loaded, Message, Preference, RowLocation

T = TypeVar("T", Preference, LabelledAnswer)
_READ = {"prompt", "completion", "chosen", "rejected", "messages", "label", "system", "input"}
"""Columns that an item holds itself; ``tools`` and other variables of chat templates stay in ``extra``."""
_READ_UNDER_ANY_NAME = _READ | {name for names in STANDARD.values() for name in names}


def read_preferences(path: str, format: Literal["auto", "hh"], rater: str) -> Loaded[Judged]:
    """Comparisons of a preference file, or with ``hh`` of a file of transcripts.

    Raises:
        UserError: the file cannot be read, or almost all of its rows are bad.
    """
    raws = _raws(path)
    loaded = load_preferences(DataConfig(preferences=path, format=format, ignore=_others(raws.values())))
    return _judged(loaded, lambda pair: _comparison(pair, rater, raws[pair.source]))


def read_labelled(path: str) -> Loaded[Judged]:
    """Thumbs of an unpaired file. Raises as ``read_preferences``."""
    loaded = load_labelled(DataConfig(preferences=path, ignore=_others(_raws(path).values())))
    seen: Counter[str] = Counter()
    return _judged(loaded, lambda row: _thumb(row, seen))


def _raws(path: str) -> Mapping[RowLocation, RawRow]:
    return {raw.source: raw for raw in read_rows(path) if isinstance(raw, RawRow)}


def _others(raws: Iterable[RawRow]) -> tuple[str, ...]:
    """Columns that the formats give no meaning; they are kept, so there is nothing to report."""
    known = {*COLUMNS, *_READ_UNDER_ANY_NAME}
    return tuple(dict.fromkeys(name for raw in raws for name in raw.columns if name not in known))


def _judged(loaded: Loaded[T], convert: Callable[[T], Judged]) -> Loaded[Judged]:
    """Convert every row; those that an item cannot hold become bad rows."""
    rows: list[Judged] = []
    bad = list(loaded.bad)
    for row in loaded.rows:
        try:
            rows.append(convert(row))
        except RowError as error:
            bad.append(BadRow(row.source, str(error)))
    return Loaded(tuple(rows), tuple(bad), files=loaded.files, repeated=loaded.repeated, remarks=loaded.remarks)


def _comparison(pair: Preference, rater: str, raw: RawRow) -> Judged:
    chosen, rejected = (
        Answer(text=_text(side, name)) for side, name in zip((pair.chosen, pair.rejected), PAIR, strict=True)
    )
    answers, is_exchanged = ordered(chosen, rejected)
    extra = without(raw.columns, *_READ_UNDER_ANY_NAME)
    item = imported_item(pair.prompt, answers, pair.source, extra=extra)
    return Judged(source=raw.source, item=item, votes=(make_vote(item, rater, preferred(not is_exchanged)),))


def _thumb(row: LabelledAnswer, seen: Counter[str]) -> Judged:
    """The thumb of a row; the n-th equal row of a file is the n-th person's."""
    answer = Answer(text=_text(row.completion, "completion"))
    content = digest(canonical_prompt(row.prompt), answer.text, str(row.is_good))
    seen[content] += 1
    id = digest(content, str(seen[content]))
    return Judged(source=row.source, thumb=Thumb(id=id, prompt=row.prompt, answer=answer, is_good=row.is_good))


def _text(answer: Message | str, column: str) -> str:
    """The text of an answer; tool calls and other fields cannot be shown to raters."""
    if isinstance(answer, str):
        return answer
    if answer.fields:
        raise RowError(f"more than text: {column} has {', '.join(answer.fields)}")
    return answer.content
