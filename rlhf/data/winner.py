"""Selects ``chosen`` among two answers by the label beside them.

``labels`` interprets a label. A column that may hold labels and that the recipe does not read is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import lru_cache

from rlhf.config.schema import DataConfig
from rlhf.data.columns import paths_of, value_at
from rlhf.data.comparing import are_neutral, comparing_columns, exchanging_columns, read_paths, unread_paths
from rlhf.data.labels import (
    PAIR,
    SIDES,
    Side,
    as_text,
    check_labels,
    meaning_of,
    names_of,
    outcomes_of,
)
from rlhf.data.read import RawRow
from rlhf.errors import UserError
from rlhf.records import BadRow

_WINNER_WORDS = {
    *("label", "labels", "winner", "won", "preference", "preferences", "preferred", "better", "choice", "verdict"),
    *("vote", "votes", "judgement", "judgment", "best", "winning"),
}
"""Words in the name of a column that names the winner of two answers."""
_JUDGE_WORDS = {"annotator", "annotators", "annotation", "annotations", "rater", "raters", "judge"}
"""Words in the name of a column of judgements, unless it holds their ids."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_BINARY = {"1": True, "true": True, "0": False, "false": False, "": False}
_LONGEST_LABEL = 40  # characters; longer text explains a choice


def choose_by_label(raws: Sequence[RawRow | BadRow], config: DataConfig) -> Iterator[RawRow | BadRow]:
    """Rows of two answers with the winner as ``chosen``; ties are quarantined.

    Raises:
        UserError: a column names the winner and the recipe does not say how to read it.
    """
    _check_labels(config)
    if "label" not in config.columns:
        _refuse_unread(raws, config)
        yield from raws
        return
    pairs = [raw for raw in raws if isinstance(raw, RawRow) and _is_pair(raw)]
    _refuse_one_of_several(pairs, config)
    _refuse_exchanged(pairs, config)
    outcomes = _outcomes(pairs, config)
    meaning = {} if outcomes else meaning_of({label for raw in pairs for label in _votes(raw) if label}, config)
    for raw in raws:
        if isinstance(raw, RawRow) and _is_pair(raw):
            yield _true_outcome(raw, outcomes) if outcomes else _by_label(raw, meaning)
        else:
            yield raw


def assumed_winner(raws: Iterable[RawRow | BadRow], config: DataConfig) -> tuple[str, ...]:
    """A remark if the recipe, and no column, says which of two counted answers is better."""
    if "label" in config.columns or not are_neutral(config) or not any(map(_is_pair, raws)):
        return ()
    chosen, rejected = (config.columns[side] for side in PAIR)
    return (f"{chosen} is trained on as better than {rejected} in every row: no column that names the winner is read",)


def _is_pair(raw: RawRow | BadRow) -> bool:
    return isinstance(raw, RawRow) and "chosen" in raw.columns and "rejected" in raw.columns


def _votes(raw: RawRow) -> list[str]:
    label = raw.columns["label"]
    votes = label if isinstance(label, tuple) else (label,)
    if any(isinstance(vote, list | dict) for vote in votes):
        raise UserError(
            f"{raw.source}: the label is {label!r:.60}, not one value",
            "it is not known which entry judges these two answers",
            "name the entry by its path, for example data.columns.label=preference.0",
        )
    return [as_text(vote) for vote in votes]


def _outcomes(pairs: Sequence[RawRow], config: DataConfig) -> Mapping[str, Side]:
    """Label column → its outcome, if each column stands for one and at most one is true in a row."""
    columns = paths_of(config.columns["label"])
    outcomes = _named_outcomes(columns, config)
    if not outcomes or {*_true_in(pairs, columns)} not in ({0, 1}, {1}):
        return {}
    if config.labels:
        raise UserError(
            f"data.labels is given beside {', '.join(columns)}, of which each stands for one outcome",
            fix="data.labels={}: the column that is true names the winner",
        )
    return outcomes


def _named_outcomes(columns: Sequence[str], config: DataConfig) -> Mapping[str, Side]:
    """Column → outcome by the columns' names; empty for columns of several judges, which are votes."""
    are_judges = any({word.lower() for word in _WORD.findall(name)} & _JUDGE_WORDS for name in columns)
    return {} if len(columns) == 1 or are_judges else outcomes_of(columns, names_of(config.columns))


def _true_in(pairs: Sequence[RawRow], columns: Sequence[str]) -> Iterator[int | None]:
    """Number of these columns that are true in each row; None if one is neither true nor false."""
    for raw in pairs:
        values = [_BINARY.get(as_text(value_at(raw.given, column))) for column in columns]
        yield None if None in values else sum(value is True for value in values)


def _true_outcome(raw: RawRow, outcomes: Mapping[str, Side]) -> RawRow | BadRow:
    for column, side in outcomes.items():
        if _BINARY.get(as_text(value_at(raw.given, column))):
            return _with_winner(raw, side)
    return BadRow(raw.source, "no label") if "tie" in outcomes.values() else _with_winner(raw, "tie")


def _refuse_one_of_several(pairs: Sequence[RawRow], config: DataConfig) -> None:
    """Refuse a single column of several that stand for one outcome each: if it is false, the others decide.

    Of two columns one is enough, if exactly one of them is true in every row.
    """
    [label, *more] = paths_of(config.columns["label"])
    if more or not pairs:
        return
    for begun in re.finditer(r"[_.-]", label):
        alike = [
            path for path in unread_paths(pairs[0], config) if path.startswith(label[: begun.end()]) and path != label
        ]
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
                "if they mean something else",
            )


def _by_label(raw: RawRow, meaning: Mapping[str, Side]) -> RawRow | BadRow:
    votes = _votes(raw)
    unknown = [vote for vote in votes if vote not in meaning]
    if unknown:
        what = f"not a label: {unknown[0]!r:.40} is none of data.labels" if unknown[0] else "no label"
        return BadRow(raw.source, what)
    sides = [meaning[vote] for vote in votes]
    return _with_winner(raw, next((side for side in SIDES if 2 * sides.count(side) > len(sides)), "tie"))


def _with_winner(raw: RawRow, winner: Side) -> RawRow | BadRow:
    if winner == "tie":
        return BadRow(raw.source, "tie", is_fault=False)
    columns = {name: value for name, value in raw.columns.items() if name != "label"}
    if winner == "rejected":
        names = {**raw.names, "chosen": _name(raw, "rejected"), "rejected": _name(raw, "chosen")}
        columns |= {"chosen": raw.columns["rejected"], "rejected": raw.columns["chosen"]}
        return replace(raw, columns=columns, names=names)
    return replace(raw, columns=columns)


def _name(raw: RawRow, side: Side) -> str:
    """Name of an answer's column in the file."""
    return raw.names.get(side, side)


def _refuse_unread(raws: Sequence[RawRow | BadRow], config: DataConfig) -> None:
    pairs = [raw for raw in raws if isinstance(raw, RawRow) and _is_pair(raw)]
    for raw in pairs:
        read = {*read_paths(raw), *config.ignore}
        _refuse_columns(
            [path for name, value in raw.given.items() for path in _judgement_paths(value, name, name, read)],
            raw,
            config,
        )
    if pairs and all(side in config.columns for side in PAIR):
        # if no column name suggests which answer is better, examine the names and values of all columns
        _refuse_columns(comparing_columns(pairs, config), pairs[0], config)


def _refuse_exchanged(pairs: Sequence[RawRow], config: DataConfig) -> None:
    """Refuse a column by which a label may refer to the answers in the other order."""
    if not (columns := exchanging_columns(pairs, config)):
        return
    label, listed = config.columns["label"], ", ".join(columns)
    raise UserError(
        f"{pairs[0].source}: the column '{columns[0]}' may say that the two answers were exchanged when they were "
        "judged, and the recipe does not read it",
        f"in such rows {label} would name the other answer, and training on swapped pairs teaches the opposite",
        f"data.ignore=[{listed}] if {label} always refers to the columns of data.columns; otherwise correct {label} in "
        "the file, in the rows that were exchanged",
    )


def _judgement_paths(value: object, path: str, name: str, read: Set[str], is_named: bool = False) -> Iterator[str]:
    """Paths to unread values that may be judgements by the name of their column or of a value inside it."""
    if path in read:
        return
    is_named = is_named or _names_judgement(name)
    if is_named and not any(other.startswith(f"{path}.") for other in read):
        yield from [path] if _is_label(value) else []
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _judgement_paths(inner, f"{path}.{key}", str(key), read, is_named)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _judgement_paths(inner, f"{path}.{i}", "", read, is_named)


def _refuse_columns(names: Sequence[str], raw: RawRow, config: DataConfig) -> None:
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
        f"data.ignore=[{', '.join(names)}] if chosen is the better one in every row",
    )


@lru_cache(maxsize=65536)
def _names_judgement(name: str) -> bool:
    words = {word.lower() for word in _WORD.findall(name)}
    return bool(words & _WINNER_WORDS) or (bool(words & _JUDGE_WORDS) and "id" not in words)


def _is_label(value: object) -> bool:
    """Whether a value may be a judgement: a number, a word, or several of these; long text is an explanation."""
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
