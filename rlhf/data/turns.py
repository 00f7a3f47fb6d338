"""Parses the messages of a row: keeps every field of every turn, and rejects content that no text model can read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from rlhf.data.shapes import CALLS, SPEAKERS, are_broken_texts, are_broken_turns, texts_in, turns_in
from rlhf.records import Message, Messages

MEDIA = {"image", "images", "video", "videos", "audio", "audios"}
"""Columns with content that a text model cannot read."""
VARIABLES = {"tools", "documents", "chat_template_kwargs"}
"""Columns for the chat template."""
_ANSWERS = ("completion", "chosen", "rejected")
_WEIGHTS = ("weight", "train", "loss")
"""Fields that state whether a turn is trained on: OpenAI's and Mistral's, Axolotl's, and others'."""
_TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of content parts that are text."""
_NOTHING: tuple[object, ...] = (None, "", [], {})


class RowError(ValueError):
    """A row is unusable; the message is the bad row's reason."""


def read_messages(value: object, column: str) -> Messages:
    """The turns in a column: a list of turns, a list of pairs of ``input`` and ``output``, or one turn.

    Raises:
        RowError: the column holds something else, or a turn with images or sound.
    """
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not turns:
        raise RowError(f"not messages: {column} is {value!r:.40}")
    return tuple(_message(turn, column) for each in turns for turn in _turns_of_pair(each))


def _turns_of_pair(turn: object) -> list[object]:
    """Two turns for an object that holds a question and its answer, as in Capybara's conversations."""
    if not isinstance(turn, dict) or turn.keys() != {"input", "output"}:
        return [turn]
    return [{"role": "user", "content": turn["input"]}, {"role": "assistant", "content": turn["output"]}]


def parse_turns(row: Mapping[str, object], columns: Sequence[str]) -> dict[str, object]:
    """Parse the columns that hold messages as JSON text, as table columns do.

    Beside a text prompt, an answer that is one object is the JSON that the model is to write.

    Raises:
        RowError: a column looks like messages and is no JSON, or lists of texts do not form turns.
    """
    parsed = {name: _turns(row[name], name) for name in columns if name in row}
    if isinstance(parsed.get("prompt"), str):
        parsed |= {name: row[name] for name in _ANSWERS if isinstance(parsed.get(name), dict)}
    return parsed | _alternating(parsed)


def _turns(value: object, column: str) -> object:
    if not isinstance(value, str):
        return value
    if are_broken_turns(value):
        raise _not_json(column, "messages")
    turns = turns_in(value)
    return value if turns is None else turns


def _alternating(row: Mapping[str, object]) -> dict[str, object]:
    """Messages if the prompt and every answer are lists of texts, one per turn, as in LMSYS's comparisons."""
    given = {name: row[name] for name in ("prompt", *_ANSWERS) if name in row}
    if len(given) > 1 and all(map(are_broken_texts, given.values())):
        raise _not_json("prompt", "a list of turns")
    texts = {name: turns for name, value in given.items() if (turns := texts_in(value)) is not None}
    if len(texts) < len(given) or not texts.get("prompt"):
        return {}
    asked, *answers = texts.values()
    if any(len(turns) != len(asked) for turns in answers or [[None]]):
        raise RowError(
            f"unequal lists of turns: {', '.join(f'{len(turns)} texts in {name}' for name, turns in texts.items())}; a "
            "prompt's list has one text for each turn of the user, and an answer's one for each reply"
        )
    paired = {name: _in_turn(asked, turns) for name, turns in texts.items() if name != "prompt"}
    return {"prompt": next(iter(paired.values()), _in_turn(asked, asked))[:-1], **paired}


def _in_turn(asked: Sequence[str | None], answered: Sequence[str | None]) -> list[object]:
    pairs = zip(asked, answered, strict=True)
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(("user", "assistant"), pair)]


def _not_json(column: str, what: str) -> RowError:
    return RowError(
        f"not JSON: {column} is text that looks like {what} and does not parse; write them as lists or by json.dumps, "
        "not by str"
    )


def read_variables(row: Mapping[str, object]) -> dict[str, object]:
    """Variables of a row for the chat template. JSON text is parsed, as ``datasets`` columns hold it.

    Raises:
        RowError: a column does not hold a value for templates.
    """
    found: dict[str, object] = {}
    if VARIABLES.isdisjoint(row):
        return found
    for name in ("tools", "documents"):
        if (value := _parse_json(row.get(name), name)) not in (None, []):
            if not isinstance(value, list):
                raise RowError(f"not {name}: {name} is {value!r:.40}, not a list")
            found[name] = [_parse_json(item, name) for item in value]
    more = _parse_json(row.get("chat_template_kwargs"), "chat_template_kwargs") or {}
    if not isinstance(more, dict):
        raise RowError(f"not a mapping: chat_template_kwargs is {more!r:.40}")
    require_unicode([found, more], "a column for the chat template")
    return {**cast(dict[str, object], without_gaps(more)), **found}  # for some templates null differs from absent


def refuse_media(row: Mapping[str, object]) -> None:
    """Reject a row with images, video or sound: a text model would answer without them.

    Raises:
        RowError: a column holds such content.
    """
    for name in MEDIA & row.keys():
        if row.get(name) not in (None, [], {}, ""):
            raise RowError(f"images, video or audio: the row has {name}, which a text model cannot read")


def without_gaps(value: object) -> object:
    """The value without fields that are None, which tables add for absent struct fields."""
    if isinstance(value, dict):
        return {name: without_gaps(inner) for name, inner in value.items() if inner is not None}
    return [without_gaps(item) for item in value] if isinstance(value, list) else value


def require_unicode(value: object, column: str) -> None:
    """Reject text that UTF-8 cannot encode, at any depth.

    Raises:
        RowError: the value contains such text.
    """
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise RowError(f"not Unicode: {column} holds half of a surrogate pair, which tokenizers reject") from None
    elif isinstance(value, Mapping):
        require_unicode([*value, *value.values()], column)
    elif isinstance(value, list | tuple):
        for item in value:
            require_unicode(item, column)


def join_turns(prompt: Messages, reply: Messages, column: str) -> Messages:
    """Join a prompt and its reply into one conversation. A reply that repeats the prompt repeats it once.

    Raises:
        RowError: the reply begins with another prompt.
    """
    for before in (prompt, _without_system(prompt)):
        if _begins(reply, before):
            return prompt + reply[len(before) :]
    if _begins(_without_system(reply), prompt):
        return reply
    if (continued := _continue_turn(prompt, reply)) is not None:
        return continued
    again = reply[0].role == "system" or _same(reply[0], prompt[0]) or reply[0].role == prompt[-1].role == "user"
    if again:
        raise RowError(f"prompts differ: {column} is a conversation that does not begin with the prompt")
    return prompt + reply


def _continue_turn(prompt: Messages, reply: Messages) -> Messages | None:
    """The conversation if the prompt ends within an assistant turn that the reply contains whole."""
    *before, begun = prompt
    if begun.role != "assistant" or len(reply) < len(prompt) or not _begins(reply, before):
        return None
    whole = reply[len(before)]
    if whole.role != "assistant" or not whole.content.startswith(begun.content):
        return None
    return (*prompt, replace(whole, content=whole.content.removeprefix(begun.content)), *reply[len(prompt) :])


def _begins(turns: Sequence[Message], beginning: Sequence[Message]) -> bool:
    return len(turns) > len(beginning) and all(map(_same, turns, beginning))


def _same(one: Message, other: Message) -> bool:
    return one.role == other.role and one.content.strip() == other.content.strip() and one.fields == other.fields


def _without_system(turns: Messages) -> Messages:
    return turns[1:] if turns[0].role == "system" else turns


def _message(turn: object, column: str) -> Message:
    if not isinstance(turn, dict):
        raise _not_a_turn(turn, column)
    if "role" not in turn and "from" in turn and "value" in turn:
        names = {"from": "role", "value": "content"}
        turn = {names.get(name, name): value for name, value in turn.items()}
    if isinstance(turn.get("role"), str):
        role = turn["role"].strip().lower()
        turn = _turn_of_call(turn) if role in CALLS else {**turn, "role": SPEAKERS.get(role, turn["role"])}
    fields = {str(name): value for name, value in turn.items() if name not in ("role", "content", *_WEIGHTS)}
    if "tool_calls" in fields:
        fields["tool_calls"] = _tool_calls(fields["tool_calls"])
    fields = {name: value for name, value in fields.items() if value not in _NOTHING}
    role, content = turn.get("role"), _content(turn.get("content"), bool(fields), column)
    if not isinstance(role, str) or content is None:
        raise _not_a_turn(turn, column)
    require_unicode([role, content, fields], column)
    trained = False not in [_is_trained(turn, name) for name in _WEIGHTS]
    return Message(role, content, fields, has_content=turn.get("content") is not None, trained=trained)


def _is_trained(turn: Mapping[Any, Any], name: str) -> bool:
    value = turn.get(name)
    if value is None:
        return True
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise RowError(f"not a weight: a turn's {name} is {value!r:.40}, not 0 or 1")
    return bool(value)


def _turn_of_call(turn: Mapping[Any, Any]) -> dict[Any, Any]:
    """Convert a turn whose text is a call, or a list of calls, to an assistant turn.

    Raises:
        RowError: the text is no call.
    """
    text = turn.get("content")
    try:
        given = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        given = None
    calls = given if isinstance(given, list) else [given]
    if not calls or not all(isinstance(call, dict) and {"name", "arguments"} <= call.keys() for call in calls):
        raise RowError(f"not a call: a turn of role {turn['role']} is {text!r:.60}, not {{name, arguments}} as JSON")
    made = [{"type": "function", "function": call} for call in calls]
    return {**turn, "role": "assistant", "content": None, "tool_calls": made}


def _content(value: object, has_more: bool, column: str) -> str | None:
    """The text of a turn; None if a turn without text is allowed."""
    if value is None and has_more:
        return ""
    if isinstance(value, list):
        return "".join(_part(part, column) for part in value)
    return value if isinstance(value, str) else None


def _part(part: object, column: str) -> str:
    """The text of one content part, as in OpenAI's messages."""
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, dict) else None
    kind = part.get("type", "text") if isinstance(part, dict) else "text"
    if any(media in str(kind) for media in MEDIA):
        raise RowError(f"images, video or audio: {column} has a part of type {kind!r:.40}")
    if kind not in _TEXT_PARTS:
        raise RowError(
            f"not text: {column} has a part of type {kind!r:.40}; other data belongs beside content, in fields such as "
            "reasoning_content or tool_calls"
        )
    if not isinstance(text, str):
        raise RowError(f"not messages: {column} has a part that is not {{type: text, text: ...}}: {part!r:.60}")
    return text


def _tool_calls(calls: object) -> object:
    """The calls with arguments as mappings, which templates accept; OpenAI's API returns them as JSON text."""
    calls = _parse_json(calls, "tool_calls") if isinstance(calls, str) else calls
    return [_tool_call(call) for call in calls] if isinstance(calls, list) else calls


def _tool_call(call: object) -> object:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _tool_call(call["function"])}
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):  # the model learns the call as it was made, valid or not
            return call
        return {**call, "arguments": parsed} if isinstance(parsed, dict) else call
    return call


def _parse_json(value: object, column: str) -> object:
    """A value that may be given as JSON text; blank text is None."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(f"not JSON: {column} is text that does not parse ({error!s:.80})") from None


def _not_a_turn(turn: object, column: str) -> RowError:
    return RowError(f"not messages: {column} has a turn that is not {{role: text, content: text}}: {turn!r:.60}")
