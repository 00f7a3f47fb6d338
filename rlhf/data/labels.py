"""Interprets labels beside two answers: the first won, the second won, a named column won, or a tie.

``DataConfig.labels`` defines the meaning of a label. Without it, names are compared: labels and columns may be numbered
(from 0 or from 1), lettered, or called first and second, and a label means the column of the same number. Columns
without a number are the first and the second answer, as the recipe maps them to chosen and rejected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

from rlhf.config.schema import DataConfig
from rlhf.errors import UserError

Side = Literal["chosen", "rejected", "tie"]
SIDES: tuple[Side, ...] = ("chosen", "rejected", "tie")
PAIR: tuple[Side, Side] = ("chosen", "rejected")
Names = tuple[str, str]
"""Names of the two answers' columns, ``chosen``'s first."""

_PART = re.compile(r"\d{1,9}|[^\W\d_]+")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_WORDS = {
    **dict.fromkeys(("a", "first", "left"), "chosen"),
    **dict.fromkeys(("b", "second", "right"), "rejected"),
}
"""Words for the first and the second answer → their side if the recipe maps the first to chosen."""
_ANSWER = re.compile(
    r"(?:(?:model|response|output|answer|assistant|option|completion|candidate|text|system)[\s_-]*)?"
    r"(?:(?P<number>\d{1,9})|(?P<word>a|b|first|second|left|right)|(?P<side>chosen|rejected)"
    r"|(?P<tie>tie.*|both.*|neither.*|none|equal|same|draw))"
)


_OTHER = {"0": "1", "2": "1", "true": "false", "false": "true"}
"""The other label of a likely pair of two."""
_MOST_LISTED = 12  # labels; an error with more of them does not give each an example


def as_text(label: object) -> str:
    """Normalise a label or key of ``data.labels``, so that 1, 1.0, "1" and "1.0" are equal; empty if missing."""
    text = "" if label is None or label != label else str(label).strip().lower()
    if not _NUMBER.fullmatch(text):
        return text
    number = float(text)
    return str(int(number)) if number.is_integer() else str(number)


def may_name_one(text: str, names: Names) -> bool:
    """Whether a value that the recipe does not mention could name the winner of two answers.

    It could if it is the name of an answer's column or, if these names only count the answers, a number, a word for the
    first or the second, or a tie.
    """
    if text in _own_names(names):
        return True
    found = _ANSWER.fullmatch(text) if _are_counted(parts_of(names)) else None
    return found is not None and (found["number"] is None or int(found["number"]) <= 2)


def are_counted(names: Names) -> bool:
    """Whether the names of the answers' columns only count them, so that neither says which answer is better."""
    parts = parts_of(names)
    return _are_counted(parts) or all(len(part) == 1 for part in parts)


def names_of(columns: Mapping[str, str]) -> Names:
    """Names of the answers' columns from ``DataConfig.columns``, in lower case, as labels are compared."""
    return columns.get("chosen", "chosen").lower(), columns.get("rejected", "rejected").lower()


def meaning_of(labels: set[str], config: DataConfig) -> dict[str, Side]:
    """Label → its meaning.

    Raises:
        UserError: the labels are ambiguous, or have no known meaning.
    """
    if config.labels:
        return _given_labels(config.labels)
    names = names_of(config.columns)
    found = {label: side for label in labels if (side := _side_by_name(label, names)) is not None}
    found |= _sides_by_number(labels - found.keys(), names)
    if len(found) < len(labels):
        raise _ambiguous_labels(labels, config)
    return found


def outcomes_of(columns: Sequence[str], names: Names) -> dict[str, Side]:
    """Column → its outcome, if each of several columns stands for one: ``winner_a``, ``winner_tie``.

    Empty if the names mean something else, or do not name both answers.
    """
    shared = os.path.commonprefix([column.lower() for column in columns])
    begin = 1 + max(shared.rfind("_"), shared.rfind("."), shared.rfind("-"))
    ends = {column: column[begin:].lower() for column in columns}
    numbered = _sides_by_number(ends.values(), names)
    sides = {column: _side_by_name(end, names) or numbered.get(end) for column, end in ends.items()}
    found = {column: side for column, side in sides.items() if side is not None}
    is_whole = len(found) == len(columns) and all([*found.values()].count(side) == 1 for side in PAIR)
    return found if is_whole else {}


def check_labels(labels: Mapping[str, str]) -> None:
    """Check ``data.labels``.

    Raises:
        UserError: a meaning is unknown, or two keys are the same label with different meanings.
    """
    wrong = [meaning for meaning in labels.values() if meaning not in SIDES]
    if wrong:
        raise UserError(f"data.labels has the meaning '{wrong[0]}'", fix=f"a label means one of {', '.join(SIDES)}")
    given = _given_labels(labels)
    twice = [label for label, meaning in labels.items() if given[as_text(label)] != meaning]
    if twice:
        raise UserError(f"data.labels gives '{as_text(twice[0])}' two meanings", fix="keep one of them")


def _given_labels(labels: Mapping[str, str]) -> dict[str, Side]:
    found = {as_text(label): side for label in labels for side in SIDES if labels[label] == side}
    for one, other in (("true", "1"), ("1", "true"), ("false", "0"), ("0", "false")):
        if one in found and "2" not in found:
            found.setdefault(other, found[one])  # YAML reads both as one key, and tables write either
    return found


@lru_cache
def parts_of(names: Names) -> tuple[str, str]:
    """The differing parts of the two answers' names: 1 and 2 of ``output_1`` and ``output_2``; else the names."""
    chosen, rejected = map(_PART.findall, names)
    longer = max(chosen, rejected, key=len)
    if longer[:-1] in (chosen, rejected) and longer[-1:] and longer[-1].isdecimal():  # answer and answer_2
        number = "0" if longer[-1] == "1" else "1"
        chosen, rejected = ([*each, number] if each != longer else each for each in (chosen, rejected))
    differ = [(one, other) for one, other in zip(chosen, rejected) if one != other]
    if len(chosen) != len(rejected) or len(differ) != 1:
        return names
    glued = [_ANSWER.fullmatch(part) for part in differ[0]]  # modela and modelb
    words = [match["word"] for match in glued if match and match["word"]]
    return (words[0], words[1]) if len(words) == 2 else differ[0]


def _are_counted(parts: tuple[str, str]) -> bool:
    return all(part.isdecimal() for part in parts) or {_WORDS.get(part) for part in parts} == {*PAIR}


@lru_cache
def _own_names(names: Names) -> dict[str, Side]:
    """Names of the two columns: whole, without their path, and the differing part; numbers are excluded."""
    ends = [name.rpartition(".")[2] for name in names]
    found: dict[str, Side] = {}
    for side, part, end, whole in zip(PAIR, parts_of(names), ends, names, strict=True):
        found |= dict.fromkeys((part, end, whole) if ends[0] != ends[1] else (part, whole), side)
    return {name: side for name, side in found.items() if not name.isdecimal()}


def _side_by_name(label: str, names: Names) -> Side | None:
    """The meaning of a label without a number: a column's name, a word, or a tie."""
    if side := _own_names(names).get(label):
        return side
    found = _ANSWER.fullmatch(label)
    if found is None or found["number"]:
        return None
    if found["word"]:
        first, second = _in_order(parts_of(names))
        return first if _WORDS[found["word"]] == "chosen" else second
    return "tie" if found["tie"] else next(side for side in PAIR if found["side"] == side)


def _in_order(parts: tuple[str, str]) -> tuple[Side, Side]:
    """The side of the first answer by the columns' names, and the side of the second."""
    if all(part.isdecimal() for part in parts):
        is_swapped = int(parts[0]) > int(parts[1])
    else:
        is_swapped = _WORDS.get(parts[0]) == "rejected"
    return ("rejected", "chosen") if is_swapped else ("chosen", "rejected")


def _sides_by_number(labels: Iterable[str], names: Names) -> dict[str, Side]:
    """The meaning of labels with a number; empty if they are ambiguous.

    1 alone may be the first answer of 1 and 2 or the second of 0 and 1, so numbers are read only if the other labels
    exclude one of these. 0 is a tie only if the columns are counted from 1: beside other names, 0, 1 and 2 may also
    be the first answer, the second and a tie.
    """
    found = {label: match for label in labels if (match := _ANSWER.fullmatch(label)) and match["number"]}
    numbers = {label: int(match["number"]) for label, match in found.items()}
    seen, parts = set(numbers.values()), parts_of(names)
    is_numbered = all(part.isdecimal() for part in parts)
    low, high = sorted(map(int, parts)) if is_numbered else (1, 2)
    if (low, high) == (0, 1) and _are_items(names) and 0 not in seen and 2 in seen:
        low, high = 1, 2  # list items have no names, and these labels count them from 1
    if high not in seen or (low == 0 and 0 not in seen):
        return {}
    sides: dict[int, Side] = dict(zip((low, high), _in_order(parts), strict=True))
    is_tie = {label: is_numbered and low > 0 and label == "0" for label in numbers}
    return {label: sides.get(number, "tie") for label, number in numbers.items() if number in sides or is_tie[label]}


def _are_items(names: Names) -> bool:
    """Whether both answers are list items, by their paths."""
    return all(any(part.isdecimal() for part in name.split(".")) for name in names)


def _ambiguous_labels(labels: set[str], config: DataConfig) -> UserError:
    ordered = _in_numeric_order(labels)
    shown = ", ".join(ordered[:6]) + (", ..." if len(labels) > 6 else "")
    return UserError(
        f"the labels of data.columns.label={config.columns['label']} are {shown}: their meaning is ambiguous",
        f"{_why_ambiguous(labels)}, and training on swapped pairs teaches the opposite",
        _way_to_state(ordered),
    )


def _way_to_state(labels: Sequence[str]) -> str:
    """Advice on how to give the labels a meaning."""
    if len(labels) > _MOST_LISTED:
        return (
            "write a column of the winner to the file, for example 1 or 2, or 0 for a tie, and map it by "
            "data.columns.label"
        )
    example = "{" + ", ".join(f'"{label:.20}": {side}' for label, side in _example(labels)) + "}"
    more = f" (each of the {len(labels)} labels needs a meaning)" if len(labels) > len(_example(labels)) else ""
    return (
        f"state it, for example data.labels='{example}' or the other way round{more}; chosen and rejected are the "
        "answers in these columns of data.columns"
    )


def _example(labels: Sequence[str]) -> list[tuple[str, Side]]:
    """A likely meaning of labels in numeric order: by their sign, by the two halves of a scale, or one by one."""
    numbers = _numbers(labels)
    if numbers and min(numbers) < 0:
        middle, given = 0.0, labels if len(labels) > 1 else _in_numeric_order({*labels, labels[0].removeprefix("-")})
    elif numbers and len(labels) > len(SIDES):
        middle, given = (min(numbers) + max(numbers)) / 2, labels
    else:
        return list(zip([*labels, *(_OTHER.get(label, "2") for label in labels if len(labels) == 1)], SIDES))
    sides: list[Side] = [
        "tie" if number == middle else "chosen" if number < middle else "rejected" for number in _numbers(given)
    ]
    return list(zip(given, sides, strict=True))


def _why_ambiguous(labels: Iterable[str]) -> str:
    numbers = _numbers(labels)
    if numbers and (min(numbers) < 0 or len(numbers) > len(SIDES)):
        return "a low number may stand for the first answer or for the second"
    return "1 may be the first answer (of 1 and 2) or the second (of 0 and 1)"


def _numbers(labels: Iterable[str]) -> list[float]:
    """The labels as numbers; empty if one is no number."""
    labels = list(labels)
    return [float(label) for label in labels] if all(map(_NUMBER.fullmatch, labels)) else []


def _in_numeric_order(labels: Iterable[str]) -> list[str]:
    """The labels in the order of their numbers, or of their letters if one is no number."""
    labels = sorted(labels)
    return sorted(labels, key=float) if _numbers(labels) else labels
