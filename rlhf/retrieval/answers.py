"""The form of answers: verbatim quotes of a passage, then the final answer, between the tags of RAFT (section 3)."""

from __future__ import annotations

import re
from collections.abc import Sequence

BEGIN_QUOTE, END_QUOTE, ANSWER = "##begin_quote##", "##end_quote##", "<ANSWER>:"
TAGS = (BEGIN_QUOTE, END_QUOTE, ANSWER)
_QUOTE = re.compile(f"{re.escape(BEGIN_QUOTE)}(.*?){re.escape(END_QUOTE)}", re.DOTALL)


def compose(quotes: Sequence[str], answer: str) -> str:
    """The completion of a training row; it begins with the space that separates it from the prompt."""
    parts = [*(f"{BEGIN_QUOTE}{quote}{END_QUOTE}" for quote in quotes), f"{ANSWER} {answer}"]
    return "".join(f" {part}" for part in parts)


def extract_answer(response: str) -> str:
    """The final answer: the text after the last answer tag, without white space around it.

    A response without the tag is returned as it is, every character of it.
    """
    _, tag, answer = response.rpartition(ANSWER)
    return answer.strip() if tag else response


def extract_quotes(response: str) -> tuple[str, ...]:
    """The texts between quote tags, in order; a quote that is not closed is none."""
    return tuple(_QUOTE.findall(response))


def has_tag(text: str) -> bool:
    """Whether a text contains a tag, so that an answer with it would be read wrongly."""
    return any(tag in text for tag in TAGS)
