"""Warns if scores or ranks beside two answers say that the rejected answer is better; scores are not trained on.

Two columns are the scores of the two answers if their names differ like the names of the answers' columns
(``score_chosen`` and ``score_rejected``; ``rating_1`` and ``rating_2`` beside ``output_1`` and ``output_2``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rlhf.config.schema import DataConfig
from rlhf.data.columns import is_within, leaves, paths_of, value_at
from rlhf.data.labels import Names, names_of, parts_of
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


def contradictions(raws: Sequence[RawRow | BadRow], config: DataConfig) -> tuple[str, ...]:
    """Remarks on scores that contradict ``chosen`` and ``rejected`` in some rows; empty if a label decides.

    Raises:
        UserError: the scores of most rows say that the rejected answer is better.
    """
    if "label" in config.columns:
        return ()
    pairs = [raw for raw in raws if isinstance(raw, RawRow) and {"chosen", "rejected"} <= raw.columns.keys()]
    remarks = []
    for scores in _paired_scores(pairs, config):
        compared = [difference for raw in pairs if (difference := _difference(raw.given, scores))]
        against = sum(difference < 0 for difference in compared)
        if 2 * against > len(compared):
            raise _contradiction_error(scores, against, len(compared), pairs[0], config)
        if against:
            remarks.append(
                f"{against:,} × {scores[0]} is worse than {scores[1]}: trained on as chosen and rejected say"
            )
    return tuple(remarks)


def _paired_scores(pairs: Sequence[RawRow], config: DataConfig) -> list[Names]:
    """Paths to the two answers' scores, for every kind of score."""
    kinds = [*pairs[:_ROWS_TO_TELL], *{tuple(raw.given): raw for raw in pairs}.values()]
    paths = {path: None for raw in kinds for path in _unread_paths(raw, config) if _direction(path)}
    words = {tuple(_split_words(path)): path for path in paths}
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


def _split_words(path: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(path)]


def _direction(path: str) -> int:
    """1 if higher values are better, -1 if lower values are, 0 if the column's name does not say."""
    words = {*_split_words(path)}
    if words & _LOWER_IS_BETTER:
        return 0 if words & _UNCLEAR else -1
    return 1 if words & _HIGHER_IS_BETTER else 0


def _difference(row: Mapping[str, object], scores: Names) -> float:
    """Advantage of the chosen answer; 0 if the scores are equal or one is missing."""
    chosen, rejected = (_number(value_at(row, path)) for path in scores)
    return 0.0 if chosen is None or rejected is None else _direction(scores[0]) * (chosen - rejected)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < float("inf") else None


def _contradiction_error(scores: Names, against: int, compared: int, raw: RawRow, config: DataConfig) -> UserError:
    chosen, rejected = (config.columns.get(side, side) for side in ("chosen", "rejected"))
    better = "a lower rank" if _direction(scores[0]) < 0 else "a higher score"
    return UserError(
        f"{raw.source.file}: {scores[0]} is worse than {scores[1]} in {against:,} of the {compared:,} rows in which "
        "they differ",
        f"{better} is taken for better, so most rows say that the rejected answer is better, and training on "
        "swapped pairs teaches the opposite",
        f"data.columns={{chosen: {rejected}, rejected: {chosen}}} where the answers are swapped, or "
        f"data.ignore=[{', '.join(scores)}] if these columns mean something else",
    )
