"""Who won, where a column says so: a label beside two answers decides which of them is ``chosen``.

A label has the meaning that ``DataConfig.labels`` gives it. Without that, words that name an answer are read (``a``,
``first``, ``response_1``, the column's own name), and the numbers 1 and 2 where both conventions agree on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Literal

from rlhf.config.schema import DataConfig
from rlhf.data.columns import paths_of
from rlhf.data.read import RawRow
from rlhf.data.records import BadRow
from rlhf.errors import UserError

Side = Literal["chosen", "rejected", "tie"]
SIDES: tuple[Side, ...] = ("chosen", "rejected", "tie")

_SAYS_WHO_WON = {
    *("label", "labels", "winner", "won", "preference", "preferences", "preferred", "better", "choice", "verdict"),
    *("vote", "votes", "judgement", "judgment"),
}
"""Words in the name of a column that says which of two answers won."""
_WHO_SAID_IT = {"annotator", "annotators", "annotation", "annotations", "rater", "raters", "judge"}
"""The same, but for the column that says who the judge was."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_LONGEST_LABEL = 40  # characters; longer text explains a choice and does not make it
_ANSWER = re.compile(
    r"(?:(?:model|response|output|answer|assistant|option|completion|candidate|text|system)[\s_-]*)?"
    r"(?:(?P<chosen>1|a|first|left|chosen)|(?P<rejected>2|b|second|right|rejected)|(?P<tie>0|tie.*|both.*|equal|same|draw))"
)


def choose_by_label(raws: Sequence[RawRow | BadRow], config: DataConfig) -> Iterator[RawRow | BadRow]:
    """Rows of two answers with the winner as ``chosen``; ties are set aside.

    Raises:
        UserError: a column says who won and the recipe does not say how it is meant.
    """
    _check_labels(config)
    if "label" not in config.columns:
        _refuse_unread(raws, config)
        yield from raws
        return
    meaning = _meaning({label for raw in raws if _is_pair(raw) for label in _votes(raw) if label}, config)
    for raw in raws:
        yield _decided(raw, meaning) if _is_pair(raw) else raw


def _is_pair(raw: RawRow | BadRow) -> bool:
    return isinstance(raw, RawRow) and "chosen" in raw.columns and "rejected" in raw.columns


def _votes(raw: RawRow | BadRow) -> list[str]:
    assert isinstance(raw, RawRow)
    label = raw.columns["label"]
    votes = label if isinstance(label, tuple) else (label,)
    if any(isinstance(vote, list | dict) for vote in votes):
        raise UserError(
            f"{raw.source}: the label is {label!r:.60}, not one value",
            "which entry judges these two answers is not known",
            "name the entry by its path, for example data.columns.label=preference.0",
        )
    return [_as_text(vote) for vote in votes]


def _as_text(label: object) -> str:
    """A label as the recipe can name it; empty for one that is missing."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)  # a table with a gap holds its numbers as floats
    return "" if label is None else str(label).strip().lower()


def _decided(raw: RawRow | BadRow, meaning: Mapping[str, Side]) -> RawRow | BadRow:
    assert isinstance(raw, RawRow)
    votes = _votes(raw)
    unknown = [vote for vote in votes if vote not in meaning]
    if unknown:
        what = f"not a label: {unknown[0]!r:.40} is none of data.labels" if unknown[0] else "no label"
        return BadRow(raw.source, what)
    sides = [meaning[vote] for vote in votes]
    winner = next((side for side in SIDES if 2 * sides.count(side) > len(sides)), "tie")
    if winner == "tie":
        return BadRow(raw.source, "tie", is_fault=False)
    columns = {name: value for name, value in raw.columns.items() if name != "label"}
    if winner == "rejected":
        columns |= {"chosen": raw.columns["rejected"], "rejected": raw.columns["chosen"]}
    return replace(raw, columns=columns)


def _meaning(labels: set[str], config: DataConfig) -> dict[str, Side]:
    """Label → what it says.

    Raises:
        UserError: the labels can be read in more than one way, or in none.
    """
    if config.labels:
        return {
            label.strip().lower(): side for label in config.labels for side in SIDES if config.labels[label] == side
        }
    own = {config.columns.get(side, side).lower(): side for side in SIDES[:2]}
    meaning = {label: side for label in labels if (side := own.get(label) or _named(label)) is not None}
    numbers = {label for label in labels if label in ("0", "1", "2")} - own.keys()
    if len(meaning) < len(labels) or (numbers and "2" not in numbers):
        shown = ", ".join(sorted(labels)[:6]) + (", ..." if len(labels) > 6 else "")
        pair = zip([*sorted(labels), "1", "2"], SIDES[:2])
        example = "{" + ", ".join(f'"{label:.20}": {side}' for label, side in pair) + "}"
        raise UserError(
            f"the labels of data.columns.label={config.columns['label']} are {shown}: what they say is not certain",
            "1 may be the first answer (of 1 and 2) or the second (of 0 and 1), and training on swapped pairs teaches "
            "the opposite",
            f"say it, for example data.labels='{example}' or the other way round; chosen and rejected are the answers "
            "in these columns of data.columns",
        )
    return meaning


def _named(label: str) -> Side | None:
    found = _ANSWER.fullmatch(label)
    return next((side for side in SIDES if found and found[side]), None)


def _refuse_unread(raws: Sequence[RawRow | BadRow], config: DataConfig) -> None:
    pairs = [raw for raw in raws if isinstance(raw, RawRow) and _is_pair(raw)]
    for raw in pairs:
        names = [name for name, value in raw.columns.items() if _is_named_for_it(name) and _is_label(value)]
        _refuse(names, raw, config)
    if pairs and all(_named(config.columns.get(side, side).lower()) and side in config.columns for side in SIDES[:2]):
        # output_1 and output_2: nothing in the names says which is better, so the values of any column may
        _refuse([name for name in pairs[0].columns if _labels_all(name, pairs)], pairs[0], config)


def _labels_all(name: str, pairs: Sequence[RawRow]) -> bool:
    labels = {_as_text(raw.columns.get(name)) for raw in pairs}
    return len(labels) > 1 and all(map(_named, labels))


def _refuse(names: Sequence[str], raw: RawRow, config: DataConfig) -> None:
    names = [name for name in names if name not in config.ignore]
    if not names:
        return
    others = f" (so may {', '.join(names[1:])})" if names[1:] else ""
    raise UserError(
        f"{raw.source}: the column '{names[0]}' may say which of the two answers won{others}, and the recipe does not "
        "read it",
        "pairs in which the other one won would teach the opposite",
        f"data.columns.label={names[0]} to read it (several columns, 'a, b, c', are votes), or "
        f"data.ignore=[{', '.join(names)}] where chosen is the better one in every row",
    )


@cache
def _is_named_for_it(name: str) -> bool:
    words = {word.lower() for word in _WORD.findall(name)}
    return bool(words & _SAYS_WHO_WON) or (bool(words & _WHO_SAID_IT) and "id" not in words)


def _is_label(value: object) -> bool:
    """Whether a value may be a judgement: a number, a word, or several of these; a long text explains one."""
    if isinstance(value, list | tuple | Mapping):
        return any(map(_is_label, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, int | float) or (isinstance(value, str) and 0 < len(value) <= _LONGEST_LABEL)


def _check_labels(config: DataConfig) -> None:
    wrong = [meaning for meaning in config.labels.values() if meaning not in SIDES]
    if wrong:
        raise UserError(f"data.labels says '{wrong[0]}'", fix=f"a label means one of {', '.join(SIDES)}")
    if config.labels and "label" not in config.columns:
        raise UserError(
            "data.labels is given, and no column to read labels from", fix="data.columns.label=<the column>"
        )
    if any(len(paths_of(config.columns[name])) > 1 for name in config.columns if name != "label"):
        raise UserError(
            "data.columns names several columns for one", fix="only label can be a list: the votes of several"
        )
