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
from rlhf.data.labels import (
    PAIR,
    SIDES,
    Names,
    Side,
    as_text,
    check_labels,
    may_name_one,
    meaning_of,
    names_of,
    outcomes_of,
)
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
_BINARY = {"1": True, "true": True, "0": False, "false": False, "": False}
_NOTHING = {"", "null", "nan", "n/a"}
"""Values, as ``as_text`` writes them, by which a row says that it has none."""
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
    pairs = [raw for raw in raws if isinstance(raw, RawRow) and _is_pair(raw)]
    _refuse_one_of_several(pairs, config)
    outcomes = _outcomes(pairs, config)
    meaning = {} if outcomes else meaning_of({label for raw in pairs for label in _votes(raw) if label}, config)
    for raw in raws:
        if isinstance(raw, RawRow) and _is_pair(raw):
            yield _true_outcome(raw, outcomes) if outcomes else _decided(raw, meaning)
        else:
            yield raw


def _is_pair(raw: RawRow | BadRow) -> bool:
    return isinstance(raw, RawRow) and "chosen" in raw.columns and "rejected" in raw.columns


def _votes(raw: RawRow) -> list[str]:
    label = raw.columns["label"]
    votes = label if isinstance(label, tuple) else (label,)
    if any(isinstance(vote, list | dict) for vote in votes):
        raise UserError(
            f"{raw.source}: the label is {label!r:.60}, not one value",
            "which entry judges these two answers is not known",
            "name the entry by its path, for example data.columns.label=preference.0",
        )
    return [as_text(vote) for vote in votes]


def _outcomes(pairs: Sequence[RawRow], config: DataConfig) -> Mapping[str, Side]:
    """Column of labels → the outcome that it stands for, where each stands for one and no two are true in a row."""
    columns = paths_of(config.columns["label"])
    outcomes = _named_outcomes(columns, config)
    if not outcomes or {*_true_in(pairs, columns)} not in ({0, 1}, {1}):
        return {}
    if config.labels:
        raise UserError(
            f"data.labels is given beside {', '.join(columns)}, of which each stands for one outcome",
            fix="leave data.labels out: the column that is true says who won",
        )
    return outcomes


def _named_outcomes(columns: Sequence[str], config: DataConfig) -> Mapping[str, Side]:
    """Column → outcome by their names; nothing for those of several judges, which are votes."""
    are_judges = any({word.lower() for word in _WORD.findall(name)} & _WHO_SAID_IT for name in columns)
    return {} if len(columns) == 1 or are_judges else outcomes_of(columns, names_of(config.columns))


def _true_in(pairs: Sequence[RawRow], columns: Sequence[str]) -> Iterator[int | None]:
    """How many of these columns are true in each row; None where one is neither true nor false."""
    for raw in pairs:
        values = [_BINARY.get(as_text(value_at(raw.given, column))) for column in columns]
        yield None if None in values else sum(value is True for value in values)


def _true_outcome(raw: RawRow, outcomes: Mapping[str, Side]) -> RawRow | BadRow:
    for column, side in outcomes.items():
        if _BINARY.get(as_text(value_at(raw.given, column))):
            return _won(raw, side)
    return BadRow(raw.source, "no label") if "tie" in outcomes.values() else _won(raw, "tie")


def _refuse_one_of_several(pairs: Sequence[RawRow], config: DataConfig) -> None:
    """Refuse one column of several that stand for one outcome each: where it is false, others say what is true.

    Of two columns one says all, where one of them is true in every row.
    """
    [label, *more] = paths_of(config.columns["label"])
    if more or not pairs:
        return
    for begun in re.finditer(r"[_.-]", label):
        alike = [path for path in _unread(pairs[0], config) if path.startswith(label[: begun.end()]) and path != label]
        columns = [label, *alike]
        if not _named_outcomes(columns, config):
            continue
        true = {*_true_in(pairs, columns)}
        if true == {0, 1} or (true == {1} and len(columns) > 2):
            raise UserError(
                f"{pairs[0].source}: data.columns.label={label} is one of {', '.join(columns)}, of which each stands "
                "for one outcome",
                f"where {label} is false, the other answer may have won, or neither",
                f"data.columns.label='{', '.join(columns)}' to read all of them, or data.ignore=[{', '.join(alike)}] "
                "where they say something else",
            )


def _decided(raw: RawRow, meaning: Mapping[str, Side]) -> RawRow | BadRow:
    votes = _votes(raw)
    unknown = [vote for vote in votes if vote not in meaning]
    if unknown:
        what = f"not a label: {unknown[0]!r:.40} is none of data.labels" if unknown[0] else "no label"
        return BadRow(raw.source, what)
    sides = [meaning[vote] for vote in votes]
    return _won(raw, next((side for side in SIDES if 2 * sides.count(side) > len(sides)), "tie"))


def _won(raw: RawRow, winner: Side) -> RawRow | BadRow:
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
        _refuse(
            [path for name, value in raw.given.items() for path in _named_for_it(value, name, name, read)], raw, config
        )
    if pairs and all(side in config.columns for side in PAIR):
        # where nothing in the names says which answer is better, the values of any column may
        others, names = _unread(pairs[0], config), names_of(config.columns)
        _refuse([path for path in others if _labels_all(path, pairs, names)], pairs[0], config)


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
    labels = {as_text(value_at(raw.given, path)) for raw in pairs} - _NOTHING
    return len(labels) > 1 and all(may_name_one(label, names) for label in labels)


def _refuse(names: Sequence[str], raw: RawRow, config: DataConfig) -> None:
    if not names:
        return
    others = f" (so may {', '.join(names[1:])})" if names[1:] else ""
    are_outcomes = bool(_named_outcomes(names, config)) and {*_true_in([raw], names)} <= {0, 1}
    reading = f"'{', '.join(names)}'" if are_outcomes else names[0]
    raise UserError(
        f"{raw.source}: the column '{names[0]}' may say which of the two answers won{others}, and the recipe does not "
        "read it",
        "pairs in which the other one won would teach the opposite",
        f"data.columns.label={reading} to read it (several columns, 'a, b, c', are votes, or one for each outcome), or "
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
