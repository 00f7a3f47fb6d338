"""Removes text prompts that are repeated at the beginning of their answers, so that the model sees them once.

An answer may begin with its prompt's words by chance ("Hi", "Hi there"). So the majority of a file decides: most of its
rows repeat their prompts, or few do. Two answers that both begin with a long prompt always repeat it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rlhf.data.read import RawRow
from rlhf.records import BadRow

LONG = 40  # characters of a prompt with which two answers do not begin by chance

Columns = Mapping[str, object]


def without_prompts(raws: Sequence[RawRow | BadRow]) -> tuple[list[RawRow | BadRow], int]:
    """Remove repeated prompts from answers; returns all rows, and the number of changed rows."""
    rows = [raw for raw in raws if isinstance(raw, RawRow) and _answers(raw.columns)]
    shortened = {id(raw): rest for raw in rows if (rest := _text_after_prompts(raw.columns))}
    of_file = Counter(raw.source.file for raw in rows)
    repeating = Counter(raw.source.file for raw in rows if id(raw) in shortened)
    found: list[RawRow | BadRow] = []
    repeated = 0
    for raw in raws:
        if id(raw) not in shortened or not isinstance(raw, RawRow):
            found.append(raw)
            continue
        rest = shortened[id(raw)]
        is_usual = 2 * repeating[raw.source.file] > of_file[raw.source.file]
        is_certain = len(rest) == 2 and len(str(raw.columns["prompt"]).strip()) >= LONG
        is_repeated = is_usual or is_certain
        repeated += is_repeated
        found.append(replace(raw, columns={**raw.columns, **rest}) if is_repeated else raw)
    return found, repeated


def prompt_text(prompt: str, system: str | None, more: str | None) -> str:
    """A prompt as one text: ``system`` before it, and ``input`` after it."""
    return "\n\n".join(part for part in (system, prompt, more) if part)


def _answers(row: Columns) -> dict[str, str]:
    """The text answers of a row with a text prompt."""
    names = ("completion",) if "completion" in row else ("chosen", "rejected")
    answers = {name: text for name in names if isinstance(text := row.get(name), str)}
    prompt = row.get("prompt")
    is_text = isinstance(prompt, str) and prompt.strip() and "messages" not in row
    return answers if is_text and len(answers) == len(names) else {}


def _text_after_prompts(row: Columns) -> dict[str, str]:
    """The text after the prompt in every answer of a row; empty if an answer does not begin with it."""
    system, more = (value if isinstance(value := row.get(name), str) else None for name in ("system", "input"))
    prompt = str(row["prompt"])
    for text in (prompt_text(prompt, system, more), prompt_text(prompt, None, more), prompt):
        rests = {name: _text_after(answer, text) for name, answer in _answers(row).items()}
        if all(rest.strip() for rest in rests.values()):
            return rests
    return {}


def _text_after(answer: str, prompt: str) -> str:
    """The text after the prompt, ignoring white space around the prompt; empty if the answer does not begin with it."""
    if answer.startswith(prompt):
        return answer.removeprefix(prompt)
    begun, asked = answer.lstrip(), prompt.strip()
    return begun.removeprefix(asked) if begun.startswith(asked) else ""
