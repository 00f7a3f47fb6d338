"""Label Studio's JSON export of a pairwise comparison: tasks with the annotations of several people.

One task (``<Pairwise name="pw" toName="answer1,answer2"/>``)::

    {"id": 1, "data": {"prompt": ..., "answer1": ..., "answer2": ...},
     "annotations": [{"id": 7, "completed_by": 3 or {"id": 3, "email": ...}, "was_cancelled": false,
                      "lead_time": 12.5, "created_at": "2024-05-01T09:00:00.000000Z",
                      "result": [{"type": "pairwise", "to_name": "answer1,answer2",
                                  "value": {"selected": "left"}}]}]}

``selected`` is ``left`` or ``right``; ``left`` is the first of ``to_name``. A cancelled annotation is a skip. The
export does not hold the labelling page's configuration: where the names in ``to_name`` are no fields of ``data``, the
fields of Label Studio's own templates are looked for. A rater is known by number alone; addresses are not kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from rlhf.data.read import RawRow
from rlhf.data.turns import RowError
from rlhf.feedback.formats.judged import (
    Judged,
    alias,
    imported_item,
    make_vote,
    mapping_at,
    preferred,
    text_at,
    without,
)
from rlhf.feedback.records import Answer, Choice, Item, Vote

PAIRS = (("answer1", "answer2"), ("text1", "text2"), ("response1", "response2"), ("answer_a", "answer_b"))
"""Fields of the two answers in Label Studio's templates and their relatives."""
PROMPTS = ("prompt", "instruction", "question", "query")
"""Fields of the prompt; a task without any has an empty one."""


def parse(raw: RawRow, rater: str) -> list[Judged]:
    """The comparison of a task, with a vote per annotation. Raises ``RowError``."""
    data = mapping_at(raw.columns, "data")
    annotations = raw.columns.get("annotations", raw.columns.get("completions"))  # the name before version 1.0
    if not isinstance(annotations, list):
        raise RowError("columns missing: needs annotations")
    names = _names(annotations, data)
    prompt = next((name for name in PROMPTS if name in data), None)
    answers = tuple(Answer(text=text_at(data, name, is_empty_allowed=True)) for name in names)
    assert len(answers) == 2
    item = imported_item(
        text_at(data, prompt) if prompt else "",
        answers,
        raw.source,
        extra={"task": raw.columns.get("id"), **without(data, *names, prompt or "")},
    )
    votes: list[Vote] = []
    bad: list[str] = []
    for annotation in annotations:
        try:
            vote = _vote(item, annotation, rater)
            votes.append(replace(vote, choice=vote.choice.swapped) if _is_reversed(annotation, names) else vote)
        except RowError as error:
            bad.append(str(error))
    return [Judged(source=raw.source, item=item, votes=tuple(votes), bad_votes=tuple(bad))]


LONGEST = 1e9
"""A longer time for one vote, in seconds, is none."""


def _names(annotations: list[object], data: Mapping[str, object]) -> tuple[str, str]:
    """The fields of ``data`` with the two answers."""
    for result in (each for annotation in annotations for each in _pairwise(annotation)):
        names = [name.strip() for name in str(result.get("to_name", "")).split(",")]
        if len(names) == 2 and all(name in data for name in names):
            return names[0], names[1]
    for pair in PAIRS:
        if all(name in data for name in pair):
            return pair
    raise RowError(f"columns missing: needs two answers in data; has {', '.join(data) or 'none'}")


def _is_reversed(annotation: object, names: tuple[str, str]) -> bool:
    """Whether an annotation names the two answers in the other order."""
    given = [[name.strip() for name in str(each.get("to_name", "")).split(",")] for each in _pairwise(annotation)]
    return [names[1], names[0]] in given


def _pairwise(annotation: object) -> list[Mapping[str, object]]:
    results = annotation.get("result") if isinstance(annotation, Mapping) else None
    found = results if isinstance(results, list) else []
    return [each for each in found if isinstance(each, Mapping) and each.get("type") == "pairwise"]


def _vote(item: Item, annotation: object, rater: str) -> Vote:
    if not isinstance(annotation, Mapping):
        raise RowError(f"not an object: an annotation is {annotation!r:.40}")
    seconds = annotation.get("lead_time")
    return make_vote(
        item,
        _rater(annotation.get("completed_by"), rater),
        _choice(annotation),
        seconds=float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < LONGEST else None,
        time=_time(annotation.get("created_at")),
    )


def _choice(annotation: Mapping[str, object]) -> Choice:
    if annotation.get("was_cancelled"):
        return Choice.SKIP
    results = _pairwise(annotation)
    value = results[0].get("value") if len(results) == 1 else None
    selected = value.get("selected") if isinstance(value, Mapping) else None
    if selected not in ("left", "right"):
        raise RowError(f"not a label: an annotation selects {selected!r:.40}, not left or right")
    return preferred(selected == "left")


def _rater(who: object, rater: str) -> str:
    number = who.get("id") if isinstance(who, Mapping) else who
    return rater if number is None else alias("label-studio", str(number))


def _time(value: object) -> float:
    """Unix time of an ISO date; 0 if there is none."""
    with suppress(ValueError):
        return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else 0.0
    return 0.0
