"""Compares scores or ranks beside two answers with the stated winner; scores are not trained on.

Two columns are the scores of the two answers if their names differ like the names of the answers' columns
(``score_chosen`` and ``score_rejected``; ``rating_1`` and ``rating_2`` beside ``output_1`` and ``output_2``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlhf.config.schema import DataConfig
from rlhf.data.columns import is_within, leaves, paths_of, value_at
from rlhf.data.labels import Names, are_counted, names_of, parts_of
from rlhf.data.read import RawRow
from rlhf.errors import UserError
from rlhf.records import BadRow

_HIGHER_IS_BETTER = {"score", "scores", "rating", "ratings", "reward", "rewards", "overall"}
_LOWER_IS_BETTER = {"rank", "ranks", "ranking"}
"""Words in column names; 1 is the best rank."""
_UNCLEAR = {"score", "scores", "rating", "ratings"}
"""Words that make the direction of a rank ambiguous."""
_WORD = re.compile(r"\d+|[A-Z]?[a-z]+|[A-Z]+")
_ROWS_TO_TELL = 10  # rows whose nested columns are searched for scores
_MOST_AGAINST = 0.45
"""Share of rows whose scores contradict the winner, from which they are refused: half is no agreement at all."""
_MOST_AGAINST_ASSUMED = 0.1
"""The same if only the recipe says that one of two counted answers is better: the scores may be the judgement."""


def contradictions(raws: Sequence[RawRow | BadRow], config: DataConfig) -> tuple[str, ...]:
    """Remarks on scores that contradict the winner in some rows.

    Args:
        raws: rows after ``choose_by_label``, so that ``chosen`` is the winner.

    Raises:
        UserError: the scores of many rows say that the rejected answer is better.
    """
    pairs = [raw for raw in raws if isinstance(raw, RawRow) and {"chosen", "rejected"} <= raw.columns.keys()]
    is_assumed = "label" not in config.columns and are_counted(names_of(config.columns))
    remarks = []
    for scores in paired_scores(pairs, config):
        compared = [difference for raw in pairs if (difference := _difference(raw, scores, config))]
        against = sum(difference < 0 for difference in compared)
        if against and against >= (_MOST_AGAINST_ASSUMED if is_assumed else _MOST_AGAINST) * len(compared):
            raise _contradiction_error(scores, against, len(compared), pairs[0], config)
        if against:
            remarks.append(_remark(scores, against, config))
    return tuple(remarks)


def _remark(scores: Names, against: int, config: DataConfig) -> str:
    if "label" in config.columns:
        return f"{against:,} × {scores[0]} and {scores[1]} contradict the label: trained on as the label says"
    return f"{against:,} × {scores[0]} is worse than {scores[1]}: trained on as chosen and rejected say"


def paired_scores(pairs: Sequence[RawRow], config: DataConfig) -> list[Names]:
    """Paths to the scores of the answers that the recipe maps to chosen and rejected, for every kind of score."""
    kinds = [*pairs[:_ROWS_TO_TELL], *{tuple(raw.given): raw for raw in pairs}.values()]
    paths = {path: None for raw in kinds for path in _unread_paths(raw, config) if _direction(path)}
    words = {tuple(split_words(path)): path for path in paths}
    chosen, rejected = parts_of(names_of(config.columns))
    found = []
    for theirs, path in words.items():
        other = words.get(tuple(rejected if word == chosen else word for word in theirs))
        if other is not None and other != path:
            found.append((path, other))
    return found


def _unread_paths(raw: RawRow, config: DataConfig) -> list[str]:
    read = [*(path for theirs in raw.names.values() for path in paths_of(theirs)), *config.ignore]
    paths = (path for name, value in raw.given.items() if name not in read for path, _ in leaves(value, name))
    return [path for path in paths if not is_within(path, read)]


def split_words(path: str) -> list[str]:
    """The words and numbers in a column's name or path, in lower case."""
    return [word.lower() for word in _WORD.findall(path)]


def _direction(path: str) -> int:
    """1 if higher values are better, -1 if lower values are, 0 if the column's name does not say."""
    words = {*split_words(path)}
    if words & _LOWER_IS_BETTER:
        return 0 if words & _UNCLEAR else -1
    return 1 if words & _HIGHER_IS_BETTER else 0


def _difference(raw: RawRow, scores: Names, config: DataConfig) -> float:
    """Advantage of the row's chosen answer; 0 if the scores are equal or one is missing."""
    chosen, rejected = (_number(value_at(raw.given, path)) for path in scores)
    if chosen is None or rejected is None:
        return 0.0
    is_exchanged = raw.names.get("chosen", "chosen") != config.columns.get("chosen", "chosen")
    return (-1 if is_exchanged else 1) * _direction(scores[0]) * (chosen - rejected)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < float("inf") else None


def _contradiction_error(scores: Names, against: int, compared: int, raw: RawRow, config: DataConfig) -> UserError:
    better = "a lower rank" if _direction(scores[0]) < 0 else "a higher score"
    rows = f"{against:,} of the {compared:,} rows in which they differ"
    ignore = f"data.ignore=[{', '.join(scores)}] if these columns mean something else"
    if "label" in config.columns:
        return UserError(
            f"{raw.source.file}: {scores[0]} and {scores[1]} contradict "
            f"data.columns.label={config.columns['label']} in {rows}",
            f"{better} is taken for better, so the label does not name the better answer, or has the opposite meaning",
            f"data.labels the other way round, data.columns.label=<another column that names the winner>, or {ignore}",
        )
    return UserError(
        f"{raw.source.file}: {scores[0]} is worse than {scores[1]} in {rows}",
        *_reason_and_fix(better, 2 * against > compared, ignore, config),
    )


def _reason_and_fix(better: str, is_most: bool, ignore: str, config: DataConfig) -> tuple[str, str]:
    chosen, rejected = (config.columns.get(side, side) for side in ("chosen", "rejected"))
    winner = f"write a column of the winner ({chosen} or {rejected}) to the file and map it by data.columns.label"
    if not is_most:
        return (
            f"{better} is taken for better, and these rows say that the rejected answer is better: neither answer may "
            "be the better one in every row",
            f"{winner}, or {ignore}",
        )
    return (
        f"{better} is taken for better, so most rows say that the rejected answer is better, and training on swapped "
        "pairs teaches the opposite",
        f"data.columns={{chosen: {rejected}, rejected: {chosen}}} where the answers are swapped, {winner} where they "
        f"are in some rows, or {ignore}",
    )
