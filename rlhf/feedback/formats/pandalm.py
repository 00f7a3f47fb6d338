"""PandaLM's test set (Wang et al. 2023): instruction, input, two responses and three annotators' labels.

A label is 0 for a tie, 1 or 2 for the better response. ``cmp_key`` names the two models, joined by ``_``, in the order
of the responses. A few responses are JSON booleans or numbers, which the file's authors made of texts such as ``True``;
they become text again. A response may be empty: a model that says nothing was judged too.
"""

from __future__ import annotations

from rlhf.data.read import RawRow
from rlhf.data.repeated import prompt_text
from rlhf.data.turns import RowError
from rlhf.feedback.formats.judged import Judged, alias, imported_item, make_vote, text_at, without
from rlhf.feedback.records import Answer, Choice

CHOICES = {0: Choice.TIE, 1: Choice.FIRST_SLIGHTLY, 2: Choice.SECOND_SLIGHTLY}
"""Label → choice."""
_READ = ("instruction", "input", "response1", "response2", "cmp_key")


def parse(raw: RawRow, rater: str) -> list[Judged]:
    """The comparison of a row with one vote per annotator. Raises ``RowError``."""
    row = raw.columns
    given = str(row.get("input") or "")
    prompt = prompt_text(text_at(row, "instruction", is_empty_allowed=bool(given)), None, given or None)
    names = str(row.get("cmp_key", "")).split("_")
    policies = names if len(names) == 2 else ["", ""]
    first, second = (
        Answer(text=_response(row, f"response{i}"), policy=policy) for i, policy in enumerate(policies, start=1)
    )
    annotators = sorted(name for name in row if name.startswith("annotator"))
    if not annotators:
        raise RowError("columns missing: needs annotator1, annotator2, ...")
    item = imported_item(prompt, (first, second), raw.source, extra=without(row, *_READ, *annotators))
    labels = {name: row[name] for name in annotators}
    votes = [make_vote(item, alias("pandalm", name), CHOICES[label]) for name, label in labels.items() if _is(label)]  # type: ignore[index]
    bad = [f"not a label: {name} is {label!r:.40}, not 0, 1 or 2" for name, label in labels.items() if not _is(label)]
    return [Judged(source=raw.source, item=item, votes=tuple(votes), bad_votes=tuple(bad))]


def _is(label: object) -> bool:
    return type(label) is int and label in CHOICES


def _response(row: dict[str, object], column: str) -> str:
    value = row.get(column)
    return str(value) if isinstance(value, bool | int | float) else text_at(row, column, is_empty_allowed=True)
