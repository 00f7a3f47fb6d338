"""Who won, where a column says so: a label beside two answers decides which of them is ``chosen``.

What a label means is in ``labels``. A column that may hold labels and that the recipe does not read is asked about.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import lru_cache

from rlhf.config.schema import DataConfig
from rlhf.data.columns import is_within, leaves, paths_of, value_at
from rlhf.data.labels import PAIR, SIDES, Names, Side, as_text, check_labels, may_name_one, meaning_of, names_of
from rlhf.data.read import RawRow
from rlhf.errors import UserError
from rlhf.records import BadRow

_SAYS_WHO_WON = {
    *("label", "labels", "winner", "won", "preference", "preferences", "preferred", "better", "choice", "verdict"),
    *("vote", "votes", "judgement", "judgment", "best", "winning"),
}
"""Words in the name of a column that says which of two answers won."""
_WHO_SAID_IT = {"annotator", "annotators", "annotation", "annotations", "rater", "raters", "judge"}
"""The same, but for the column that says who the judge was."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_LONGEST_LABEL = 40  # characters; longer text explains a choice and does not make it


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
    meaning = meaning_of({label for raw in raws if _is_pair(raw) for label in _votes(raw) if label}, config)
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
    return [as_text(vote) for vote in votes]


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


def _refuse_unread(raws: Sequence[RawRow | BadRow], config: DataConfig) -> None:
    pairs = [raw for raw in raws if isinstance(raw, RawRow) and _is_pair(raw)]
    for raw in pairs:
        read = {*_read(raw), *config.ignore}
        _refuse([path for name, value in raw.given.items() for path in _named_for_it(value, name, name, read)], raw)
    if pairs and all(side in config.columns for side in PAIR):
        # where nothing in the names says which answer is better, the values of any column may
        others, names = _unread(pairs[0], config), names_of(config.columns)
        _refuse([path for path in others if _labels_all(path, pairs, names)], pairs[0])


def _unread(raw: RawRow, config: DataConfig) -> list[str]:
    """Paths to the values of a row that are neither read nor ignored."""
    read = [*_read(raw), *config.ignore]
    paths = (path for name, value in raw.given.items() for path, _ in leaves(value, name))
    return [path for path in paths if not is_within(path, read)]


def _read(raw: RawRow) -> list[str]:
    """Columns and paths that are read; here no label is."""
    return [path for ours, theirs in raw.names.items() if ours != "label" for path in paths_of(theirs)]


def _named_for_it(value: object, path: str, name: str, read: Set[str], is_named: bool = False) -> Iterator[str]:
    """Paths to what may be a judgement by the name of a column, or of a value inside of one, that is not read."""
    if path in read:
        return
    is_named = is_named or _is_named_for_it(name)
    if is_named and not any(other.startswith(f"{path}.") for other in read):
        yield from [path] if _is_label(value) else []
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _named_for_it(inner, f"{path}.{key}", str(key), read, is_named)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _named_for_it(inner, f"{path}.{i}", "", read, is_named)


def _labels_all(path: str, pairs: Sequence[RawRow], names: Names) -> bool:
    labels = {as_text(value_at(raw.given, path)) for raw in pairs}
    return len(labels) > 1 and all(may_name_one(label, names) for label in labels)


def _refuse(names: Sequence[str], raw: RawRow) -> None:
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


@lru_cache(maxsize=65536)
def _is_named_for_it(name: str) -> bool:
    words = {word.lower() for word in _WORD.findall(name)}
    return bool(words & _SAYS_WHO_WON) or (bool(words & _WHO_SAID_IT) and "id" not in words)


def _is_label(value: object) -> bool:
    """Whether a value may be a judgement: a number, a word, or several of these; a long text explains one."""
    if isinstance(value, list | tuple | Mapping):
        return any(map(_is_label, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, int | float) or (isinstance(value, str) and 0 < len(value) <= _LONGEST_LABEL)


def _check_labels(config: DataConfig) -> None:
    check_labels(config.labels)
    if config.labels and "label" not in config.columns:
        raise UserError(
            "data.labels is given, and no column to read labels from", fix="data.columns.label=<the column>"
        )
    if any(len(paths_of(config.columns[name])) > 1 for name in config.columns if name != "label"):
        raise UserError(
            "data.columns names several columns for one", fix="only label can be a list: the votes of several"
        )
