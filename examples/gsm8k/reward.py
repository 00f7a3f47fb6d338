"""Verifiable rewards for GSM8K (Cobbe et al. 2021): is the number that the response ends in the right one?

A solution ends in a line ``#### 18``. Numbers are compared as numbers: ``$1,000.00`` is ``1000``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal

MARK = "####"
NUMBER = re.compile(r"(?P<minus>(?<![\w)])-)?\$?(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?!\d)")
"""A number as people write it; a minus after a digit or a bracket is a subtraction."""


def exact_answer(prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Mapping[str, object]]) -> list[float]:
    """1 where a response's answer is that of its row's ``answer``, 0 elsewhere.

    Raises:
        KeyError: a row has no column ``answer``.
        ValueError: a row's answer holds no number.
    """
    return [
        float(final_number(response) == _right_answer(str(row["answer"])))
        for response, row in zip(responses, rows, strict=True)
    ]


def has_answer_line(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """1 where a response has a number after ``####``, right or wrong: the format without the answer."""
    return [float(_marked(response) is not None) for response in responses]


def final_number(text: str) -> Decimal | None:
    """The number after the last ``####``; without one, the last number; None where there is no number.

    Only the last mark counts, so that writing many answers does not pay.
    """
    if (marked := _marked(text)) is not None:
        return marked
    numbers = [_value(match) for match in NUMBER.finditer(text)]
    return numbers[-1] if numbers else None


def _marked(text: str) -> Decimal | None:
    before, mark, after = text.rpartition(MARK)
    match = NUMBER.search(after.partition("\n")[0]) if mark else None
    return _value(match) if match else None


def _right_answer(solution: str) -> Decimal:
    number = final_number(solution)
    if number is None:
        raise ValueError(f"the row's answer holds no number: {solution!r:.60}")
    return number


def _value(match: re.Match[str]) -> Decimal:
    number = Decimal(match["digits"].replace(",", ""))
    return -number if match["minus"] else number
