"""Rows in TRL's dataset formats to records.

A row says by its columns what it is; strings and lists of messages are both understood:

============================  ==========================================================
columns                       meaning
============================  ==========================================================
prompt                        a prompt
prompt, completion            a demonstration
prompt, completion, label     the same where ``label`` is true; a bad row where it is false
[prompt,] chosen, rejected    a preference; without a prompt, what both begin with is the prompt
messages                      a conversation; its last assistant turn is the completion
text                          a demonstration without a prompt
============================  ==========================================================

A row with several of these is read as the richest one that the stage needs. Each row ends up as a record or a
``BadRow``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from rlhf.config.schema import DataConfig
from rlhf.data.hh import looks_like_hh, rows_from_transcripts
from rlhf.data.read import RawRow, read_rows
from rlhf.data.records import BadRow, Demonstration, Loaded, Message, Messages, Preference, PromptRow, Source
from rlhf.data.report import describe_bad
from rlhf.errors import UserError

COLUMNS = ("prompt", "completion", "chosen", "rejected", "messages", "text", "label", "margin")
"""Column names that have a meaning here; ``DataConfig.columns`` renames to these."""

LARGEST_MARGIN = 3.4e38  # it is held in single precision; beyond this it would be infinite
_ROWS_TO_TELL = 10  # one malformed row at the top does not hide that a file holds transcripts
_LAST_WORD = re.compile(r"\S+\Z")

T = TypeVar("T")
Columns = dict[str, object]
Parse = Callable[[Columns, Source], T]


class _RowError(ValueError):
    """A row is not usable; the message is the bad row's reason."""


def load_demonstrations(config: DataConfig) -> Loaded[Demonstration]:
    """Demonstrations of ``config.demonstrations`` or ``config.path``; of preferences, the chosen answers.

    Raises:
        UserError: no path, nothing readable or usable there, or a bad row while ``config.bad_rows`` is ``error``.
    """
    return _load(config.demonstrations or config.path, config, _demonstration)


def load_preferences(config: DataConfig) -> Loaded[Preference]:
    """Preferences of ``config.preferences`` or ``config.path``. Raises as ``load_demonstrations``."""
    return _load(config.preferences or config.path, config, _preference)


def load_prompts(config: DataConfig) -> Loaded[PromptRow]:
    """Prompts of ``config.prompts`` or ``config.path``, repeated ones included. Raises as ``load_demonstrations``."""

    def parse(row: Columns, source: Source) -> PromptRow:
        return replace(_prompt_row(row, source), columns=_beside_the_prompt(row, config.columns))

    return _load(config.prompts or config.path, config, parse)


def _load(path: str | None, config: DataConfig, parse: Parse[T]) -> Loaded[T]:
    if path is None:
        raise UserError(
            "the recipe names no data",
            fix="set data.path, or the stage's own data.demonstrations, .preferences or .prompts",
        )
    rows: list[T] = []
    bad: list[BadRow] = []
    for outcome in _parse_all(_raw_rows(path, config), parse):
        if not isinstance(outcome, BadRow):
            rows.append(outcome)
        elif config.bad_rows == "error":
            raise UserError(
                f"{outcome.source}: {outcome.reason}",
                fix="mend the row, or set data.bad_rows=skip to count such rows and go on",
            )
        else:
            bad.append(outcome)
    if not rows:
        raise _nothing_usable(path, bad)
    return Loaded(tuple(rows), tuple(bad))


def _raw_rows(path: str, config: DataConfig) -> Iterable[RawRow | BadRow]:
    """Rows with their columns renamed and HH transcripts turned into messages."""
    unknown = set(config.columns) - set(COLUMNS)
    if unknown:
        raise UserError(
            f"data.columns renames '{min(unknown)}', which has no meaning here",
            fix=f"the names are {', '.join(COLUMNS)}",
        )
    raws = [_renamed(raw, config.columns) for raw in read_rows(path, config.format, config.split, config.max_rows)]
    first_rows = islice((raw.columns for raw in raws if isinstance(raw, RawRow)), _ROWS_TO_TELL)
    is_hh = config.format == "hh" or (config.format == "auto" and any(map(looks_like_hh, first_rows)))
    return rows_from_transcripts(raws) if is_hh else raws


def _renamed(raw: RawRow | BadRow, names: dict[str, str]) -> RawRow | BadRow:
    if isinstance(raw, BadRow):
        return raw
    missing = [theirs for theirs in names.values() if theirs not in raw.columns]
    if missing:
        has = ", ".join(raw.columns)
        return BadRow(raw.source, f"no column '{missing[0]}': data.columns names it, the row has {has}")
    others = {name: value for name, value in raw.columns.items() if name not in names.values()}
    return RawRow(raw.source, {**others, **{ours: raw.columns[theirs] for ours, theirs in names.items()}})


def _parse_all(raws: Iterable[RawRow | BadRow], parse: Parse[T]) -> Iterator[T | BadRow]:
    for raw in raws:
        if isinstance(raw, BadRow):
            yield raw
            continue
        try:
            yield parse(raw.columns, raw.source)
        except _RowError as error:
            yield BadRow(raw.source, str(error))


def _nothing_usable(path: str, bad: list[BadRow]) -> UserError:
    if not bad:
        return UserError(f"no rows in '{path}'", fix="check data.path, data.split and data.max_rows")
    why = f"all {len(bad):,} rows are bad:\n{describe_bad(bad)}"
    return UserError(
        f"no usable row in '{path}'", why, "rename columns with data.columns, set data.format, or mend the rows"
    )


def _demonstration(row: Columns, source: Source) -> Demonstration:
    if "completion" in row:
        _check_label(row)
        return Demonstration(*_answered(row, "completion"), source)
    if "chosen" in row:
        pair = _preference(row, source)
        return Demonstration(pair.prompt, pair.chosen, source)
    if "messages" in row:
        return Demonstration(*_split_last_reply(_messages(row["messages"], "messages"), "messages"), source)
    if "text" in row:
        return Demonstration("", _text(row["text"], "text"), source)
    raise _no_column(row, "prompt and completion, chosen and rejected, messages, or text")


def _preference(row: Columns, source: Source) -> Preference:
    if "chosen" not in row or "rejected" not in row:
        raise _no_column(row, "chosen and rejected")
    if "prompt" not in row and isinstance(row["chosen"], str):
        prompt, chosen, rejected = _shared_beginning(row)
    else:
        prompt, chosen = _answered(row, "chosen")
        other, rejected = _answered(row, "rejected")
        if prompt != other:
            raise _RowError("prompts differ: chosen and rejected do not answer the same prompt")
    if chosen == rejected:
        raise _RowError("chosen equals rejected")
    return Preference(prompt, chosen, rejected, _margin(row), source)


def _prompt_row(row: Columns, source: Source) -> PromptRow:
    explicit = "prompt" in row and (isinstance(row["prompt"], list) or not isinstance(row.get("chosen"), list))
    if "chosen" in row and not explicit:
        return PromptRow(_preference(row, source).prompt, source)
    if "messages" in row:
        turns = _messages(row["messages"], "messages")
        return PromptRow(_prompt(turns if turns[-1].role != "assistant" else turns[:-1]), source)
    if "prompt" in row:
        return PromptRow(_prompt(_text_or_messages(row["prompt"], "prompt")), source)
    raise _no_column(row, "prompt, messages, or chosen and rejected")


def _beside_the_prompt(row: Columns, names: dict[str, str]) -> Columns:
    """The columns that are not the prompt, with the names that the file has for them."""
    return {names.get(name, name): value for name, value in row.items() if name != "prompt"}


def _answered(row: Columns, column: str) -> tuple[Messages | str, Message | str]:
    """Prompt and reply of a row whose reply is in ``column``.

    A list of messages may begin with the prompt; a ``prompt`` column of plain text beside it is then the same prompt
    said again, as several public preference sets have it, and the conversation wins.
    """
    reply = _text_or_messages(row[column], column)
    before = row.get("prompt")
    if isinstance(reply, tuple):
        return _split_last_reply((_messages(before, "prompt") if isinstance(before, list) else ()) + reply, column)
    if "prompt" not in row:
        raise _no_column(row, f"prompt beside {column}")
    return _prompt(_text_or_messages(before, "prompt")), reply


def _split_last_reply(turns: Messages, column: str) -> tuple[Messages | str, Message]:
    """The last assistant turn and what stands before it; turns after it have no answer and are left out."""
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None:
        raise _RowError(f"no assistant turn: {column} holds no answer")
    reply = turns[last]
    if not reply.content.strip() and not reply.fields:
        raise _RowError(f"empty {column}")
    return _prompt(turns[:last]), reply


def _shared_beginning(row: Columns) -> tuple[Messages | str, str, str]:
    """Split two texts where they part, moved back to the beginning of that word with the space before it."""
    chosen, rejected = _text(row["chosen"], "chosen"), _text(row["rejected"], "rejected")
    common = os.path.commonprefix([chosen, rejected])
    whole_words = _LAST_WORD.sub("", common)
    cut = len(whole_words.rstrip())
    prompt = _prompt(common[:cut])
    return prompt, _text(chosen[cut:], "chosen"), _text(rejected[cut:], "rejected")


def _prompt(prompt: Messages | str) -> Messages | str:
    if not (prompt.strip() if isinstance(prompt, str) else any(turn.content.strip() for turn in prompt)):
        raise _RowError("empty prompt")
    return prompt


def _text_or_messages(value: object, column: str) -> Messages | str:
    return _messages(value, column) if isinstance(value, list) else _text(value, column)


def _messages(value: object, column: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise _RowError(f"not messages: {column} is {value!r:.40}")
    return tuple(_message(turn, column) for turn in value)


def _message(turn: object, column: str) -> Message:
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        raise _not_a_turn(turn, column)
    fields = {name: value for name, value in turn.items() if name not in ("role", "content") and value is not None}
    content = turn.get("content")
    if content is None and fields:
        content = ""
    if not isinstance(content, str):
        raise _not_a_turn(turn, column)
    return Message(_encodable(turn["role"], column), _encodable(content, column), fields)


def _not_a_turn(turn: object, column: str) -> _RowError:
    return _RowError(f"not messages: {column} has a turn that is not {{role: text, content: text}}: {turn!r:.60}")


def _text(value: object, column: str) -> str:
    """The value if it is text with something in it; no boolean or number becomes text behind the user's back."""
    if not isinstance(value, str):
        raise _RowError(f"not text: {column} is {value!r:.40}")
    if not value.strip():
        raise _RowError(f"empty {column}")
    return _encodable(value, column)


def _encodable(text: str, column: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _RowError(f"not Unicode: {column} holds half of a surrogate pair, which no tokenizer takes") from None
    return text


def _check_label(row: Columns) -> None:
    label = row.get("label", True)
    if label is False:
        raise _RowError("label is false: the completion is no demonstration")
    if label is not True:
        raise _RowError(f"not a label: label is {label!r:.40}, not true or false")


def _margin(row: Columns) -> float:
    margin = row.get("margin")
    if margin is None:  # the column is optional, and tables fill its gaps with null
        return 0.0
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not abs(margin) <= LARGEST_MARGIN:
        raise _RowError(f"not a number: margin is {margin!r:.40}")
    return float(margin)


def _no_column(row: Columns, needed: str) -> _RowError:
    return _RowError(f"columns missing: needs {needed}; has {', '.join(row) or 'none'}")
