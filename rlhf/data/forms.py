"""The forms in which turns may be given to a chat template, and which of them one template takes.

Templates disagree about a turn without content (null, or an empty text) and about the arguments of a tool call (an
object, or its JSON text). Their authors tried one of these; another fails, or is written as Python shows it: ``None``,
``{'city': 'Bresk'}``. So turns have null and objects, and the other form only where the template does not take these.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy

from rlhf.data.template import Turn, Unusable

Write = Callable[[list[Turn]], str]


def form_of(turns: list[Turn], write: Write) -> list[Turn]:
    """The turns in the first form that the template takes; as they are where it takes none, for its error to be raised.

    Args:
        turns: as chat templates take them: null where a turn has no content, and objects as arguments.
        write: the text of turns; raises ``Unusable`` where the template refuses them.
    """
    if not any(_calls(turns)) and all(turn["content"] is not None for turn in turns):
        return turns
    spare = None
    for with_arguments in (list, _with_json_arguments):
        form, text = _with_content(with_arguments(turns), write)
        if text is None:
            continue
        if not any(str(call["arguments"]) in text for call in _calls(form) if call["arguments"]):
            return form
        spare = spare or form
    return spare or turns


def _with_content(turns: list[Turn], write: Write) -> tuple[list[Turn], str | None]:
    """The turns, with an empty text for null where the template fails on null or writes ``None``, and their text."""
    text = _tried(write, turns)
    if all(turn["content"] is not None for turn in turns):
        return turns, text
    empty = [{**turn, "content": turn["content"] or ""} for turn in turns]
    other = _tried(write, empty)
    if text is None or (other is not None and text.count("None") > other.count("None")):
        return empty, other
    return turns, text


def _calls(turns: Sequence[Turn]) -> Iterator[Turn]:
    """Every tool call of the turns, or the function in it, whose arguments are an object."""
    for turn in turns:
        calls = turn.get("tool_calls")
        for call in calls if isinstance(calls, list) else []:
            inner = call.get("function", call) if isinstance(call, dict) else None
            if isinstance(inner, dict) and isinstance(inner.get("arguments"), dict):
                yield inner


def _with_json_arguments(turns: Sequence[Turn]) -> list[Turn]:
    copies = deepcopy(list(turns))
    for call in _calls(copies):
        call["arguments"] = json.dumps(call["arguments"], ensure_ascii=False)
    return copies


def _tried(write: Write, form: list[Turn]) -> str | None:
    try:
        return write(form)
    except Unusable:
        return None
