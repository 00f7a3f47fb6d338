"""Finds the form of turns that a chat template accepts.

Templates disagree about a turn without content (null or an empty text) and about the arguments of a tool call (an
object or its JSON text). The wrong form fails, or is written in Python syntax: ``None``, ``{'city': 'Bresk'}``. So
turns use null and objects, and the other form only if the template does not accept these.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy

from rlhf.data.template import Turn, Unusable

Write = Callable[[list[Turn]], str]


def form_of(turns: list[Turn], write: Write) -> list[Turn]:
    """The turns in the first form that the template accepts; unchanged if it accepts none, so that its error is raised.

    Args:
        turns: in the default form: null for a turn without content, objects as arguments.
        write: renders turns; raises ``Unusable`` if the template refuses them.
    """
    if not any(_calls_with_objects(turns)) and all(turn["content"] is not None for turn in turns):
        return turns
    spare = None
    for with_arguments in (list, _with_json_arguments):
        form, text = _with_content(with_arguments(turns), write)
        if text is None:
            continue
        if not any(str(call["arguments"]) in text for call in _calls_with_objects(form) if call["arguments"]):
            return form
        spare = spare or form
    return spare or turns


def _with_content(turns: list[Turn], write: Write) -> tuple[list[Turn], str | None]:
    """The turns and their text, with empty texts for null if the template fails on null or writes ``None``."""
    text = _try_render(write, turns)
    if all(turn["content"] is not None for turn in turns):
        return turns, text
    empty = [{**turn, "content": turn["content"] or ""} for turn in turns]
    other = _try_render(write, empty)
    if text is None or (other is not None and text.count("None") > other.count("None")):
        return empty, other
    return turns, text


def _calls_with_objects(turns: Sequence[Turn]) -> Iterator[Turn]:
    """Every tool call of the turns, or its function, whose arguments are an object."""
    for turn in turns:
        calls = turn.get("tool_calls")
        for call in calls if isinstance(calls, list) else []:
            inner = call.get("function", call) if isinstance(call, dict) else None
            if isinstance(inner, dict) and isinstance(inner.get("arguments"), dict):
                yield inner


def _with_json_arguments(turns: Sequence[Turn]) -> list[Turn]:
    copies = deepcopy(list(turns))
    for call in _calls_with_objects(copies):
        call["arguments"] = json.dumps(call["arguments"], ensure_ascii=False)
    return copies


def _try_render(write: Write, form: list[Turn]) -> str | None:
    try:
        return write(form)
    except Unusable:
        return None
