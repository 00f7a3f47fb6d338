"""Several mistakes of the user as one error, so that a recipe is mended in one go."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.errors import UserError

MOST_SHOWN = 12
"""Problems printed in full: more than these would not fit on one screen."""


def raise_all(problems: Sequence[UserError], heading: str) -> None:
    """Raise what was found as one ``UserError``; return when nothing was found.

    Args:
        problems: the mistakes, in the order in which the user should read them.
        heading: what they were found in; it opens the message when there is more than one.
    """
    if not problems:
        return
    if len(problems) == 1:
        raise problems[0]
    lines = [f"{heading}: {len(problems)} problems"]
    lines += [f"{number}. {problem}" for number, problem in enumerate(problems[:MOST_SHOWN], start=1)]
    if len(problems) > MOST_SHOWN:
        lines.append(f"... and {len(problems) - MOST_SHOWN} more")
    raise UserError("\n".join(lines))
