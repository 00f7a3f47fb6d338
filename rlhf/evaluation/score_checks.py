"""Checks of what a scorer returned: one finite number for each response, whatever their types do when asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from numbers import Real
from typing import Any

import numpy as np

from rlhf.errors import UserError
from rlhf.evaluation.user_code import UserCodeFault, message_of, own_faults
from rlhf.unicode import encodable

Row = Mapping[str, object]
LARGEST = float(np.finfo(np.float32).max)
"""Scores are stored in float32; larger ones would be infinite."""
PLAIN_NUMBERS = frozenset({float, int, np.float32, np.float64})
"""Types of numbers without users' code."""


def check_scores(
    result: Any,
    prompts: Sequence[str],
    rows: Sequence[Row] | None,
    contract: str,
    error: Callable[[str, str], UserError],
    first: int = 0,
) -> np.ndarray:
    """Check that a scorer returned n finite numbers for n responses, and return them, (n,) float64.

    Args:
        contract: description of what the scorer must return.
        error: builds the error from what is wrong ("returned ...") and why.
        first: index of the first response, for messages.
    """
    values = _as_list(result, len(prompts), contract, error)
    if len(values) != len(prompts):
        raise error(f"returned {len(values)} scores for {len(prompts)} responses", contract)
    scores = np.empty(len(values), dtype=np.float64)
    for i, value in enumerate(values):
        where = f"for {name_sample(i, prompts, rows, first)}"
        try:
            number = _as_float(value)
        except UserCodeFault as fault:
            what = f"returned {_shown(value)} ({type(value).__name__}) {where}, which is no number"
            raise error(what, f"{type(fault.error).__name__} in its conversion to a float") from fault.error
        if number is None:
            raise error(f"returned {_shown(value)} ({type(value).__name__}) {where}", contract)
        if not abs(number) <= LARGEST:  # also true for NaN
            raise error(f"returned {_shown(value)} {where}", "training cannot use a score that is not finite")
        scores[i] = number
    return scores


def _as_list(result: Any, count: int, contract: str, error: Callable[[str, str], UserError]) -> Sequence[Any]:
    """The values of a list, a tuple, or what converts itself to one, such as NumPy arrays and tensors.

    Of a subclass, which may iterate as it likes, at most ``count`` + 1 values are read.
    """
    kind, reading = type(result).__name__, "tolist()"
    if type(result) in (list, tuple):
        return result
    try:
        with own_faults():
            values = result.tolist() if hasattr(result, "tolist") else result
            reading = "iteration"
            if isinstance(values, (list, tuple)):
                return values if type(values) in (list, tuple) else list(islice(values, count + 1))
    except UserCodeFault as fault:
        what = f"returned {kind}, whose {reading} failed"
        raise error(what, f"{type(fault.error).__name__}: {message_of(fault.error):.200}") from fault.error
    raise error(f"returned {kind}, not a list", contract)


def _as_float(value: Any) -> float | None:
    """A score as a float, infinite if it is too large for one; None if it is no number.

    Raises:
        UserCodeFault: its own conversion failed.
    """
    if type(value) in PLAIN_NUMBERS and abs(value) <= LARGEST:  # the usual case; others may have methods of their own
        return float(value)
    number: float | None = None
    try:
        with own_faults():
            if not isinstance(value, Real) and getattr(value, "ndim", None) == 0:  # a tensor or array of one number
                value = value.item()
            if isinstance(value, Real) and not isinstance(value, bool):
                number = float(value)
    except UserCodeFault as fault:
        if not isinstance(fault.error, OverflowError):
            raise
        number = float("inf")  # a whole number of hundreds of digits
    return number


def _shown(value: object) -> str:
    """The beginning of a returned value's text; some values have none, such as integers of too many digits."""
    text = "a value that cannot be shown"
    with suppress(UserCodeFault), own_faults():
        text = encodable(f"{value!r:.40}")
    return text


def name_sample(i: int, prompts: Sequence[str], rows: Sequence[Row] | None, first: int = 0) -> str:
    """Name of sample i in messages; ``first`` is the index of the list's first sample."""
    row = f", row {_excerpt(dict(rows[i]))}" if rows is not None else ""
    return f"sample {first + i}, prompt {_excerpt(prompts[i])}{row}"


def _excerpt(value: object, width: int = 60) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= width else value[:width] + "…")
    text = repr(value)
    return text if len(text) <= width else text[:width] + "…"
