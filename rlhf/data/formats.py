"""Converts rows in TRL's dataset formats to records.

The columns determine the meaning of a row; strings and lists of messages are both supported:

============================  ==========================================================
columns                       meaning
============================  ==========================================================
prompt                        a prompt
prompt, completion            a demonstration
prompt, completion, label     the same where ``label`` is true; a bad row where it is false. For ``load_labelled``, a
                              good or a bad answer
[prompt,] chosen, rejected    a preference; without a prompt, the common beginning is the prompt
messages                      a conversation; its last assistant turn is the completion
text                          a demonstration without a prompt
============================  ==========================================================

A row with several of these is read as the richest one that the stage needs; answers beside ``messages`` continue that
conversation, in every stage. In addition, ``system`` is a turn before the prompt, ``input`` a text after it, and
``tools``, ``documents`` and ``chat_template_kwargs`` are passed to the chat template. Each row becomes a record or a
``BadRow``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import TypeVar

import regex

from rlhf.config.schema import DataConfig
from rlhf.data.columns import COLUMNS, Missing, paths_of, rename, unused, value_at
from rlhf.data.hh import looks_like_hh, rows_from_transcripts
from rlhf.data.marks import without_marked
from rlhf.data.read import RawRow, read_rows
from rlhf.data.repeated import prompt_text, without_prompts
from rlhf.data.report import describe_bad, listed
from rlhf.data.scores import contradictions
from rlhf.data.shapes import are_turns
from rlhf.data.turns import (
    RowError,
    join_turns,
    parse_turns,
    read_messages,
    read_variables,
    refuse_media,
    require_unicode,
    without_gaps,
)
from rlhf.data.winner import assumed_winner, choose_by_label
from rlhf.errors import UserError
from rlhf.records import (
    BadRow,
    DataFile,
    Demonstration,
    LabelledAnswer,
    Loaded,
    Message,
    Messages,
    Preference,
    PromptRow,
)

LARGEST_MARGIN = 3.4e38  # margins are single precision; beyond this they would be infinite
_MOST_BAD = 0.9
"""Share of bad rows above which a file is refused: the few others are hardly the data that is meant."""
_FEWEST_TO_JUDGE = 20  # rows; of fewer, each bad one may be a mistake of its own
_ROWS_TO_TELL = 10  # several, so that one malformed first row does not hide transcripts
_UNKNOWN = "no column"
_CONVERSATIONS = ("prompt", "completion", "chosen", "rejected", "messages", "tools", "documents")
# A run of characters, up to the end, of a script that puts spaces between words.
_UNFINISHED_WORD = regex.compile(
    r"[^\s\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}ー\u3000-\u303f\uff00-\uffef]+\Z"
)
_ADVICE = {
    "not JSON": "write one JSON object per line, or a JSON list of objects in a file that ends in .json (data.format)",
    "not UTF-8": "save the file as UTF-8, for example with `iconv -f LATIN1 -t UTF-8 rows.jsonl > new.jsonl`",
    "not an object": "write every row as an object, {column: value}",
    "ambiguous": "write every key of an object once",
    "marked as bad": "give demonstrations of good answers, or data.ignore=[<the column>] if it means something else",
    "label is false": "give demonstrations of good answers, or data.ignore=[label] if it means something else",
    "columns missing": "rename columns with data.columns, for example "
    "'data.columns={chosen: better, rejected: worse}', or set data.format",
    "not a number": "correct the margins, or data.ignore=[margin] to train without them",
}
"""Category of bad rows → how to correct them."""

T = TypeVar("T")
Columns = Mapping[str, object]
Parse = Callable[[RawRow], T]


def load_demonstrations(config: DataConfig) -> Loaded[Demonstration]:
    """Load the demonstrations of ``config.demonstrations`` or ``config.path``; of preferences, the chosen answers.

    Raises:
        UserError: there is no path or no usable row, a column that may name the winner is not read, or a row is bad
            and ``config.bad_rows`` is ``error``.
    """
    return _load(config.demonstrations or config.path, config, _demonstration)


def load_preferences(config: DataConfig) -> Loaded[Preference]:
    """Load the preferences of ``config.preferences`` or ``config.path``. Raises as ``load_demonstrations``."""
    return _load(config.preferences or config.path, config, _preference)


def load_labelled(config: DataConfig) -> Loaded[LabelledAnswer]:
    """Load the unpaired labels of ``config.preferences`` or ``config.path``. Raises as ``load_demonstrations``."""
    return _load(config.preferences or config.path, config, _labelled)


def load_prompts(config: DataConfig) -> Loaded[PromptRow]:
    """Load the prompts of ``config.prompts`` or ``config.path``, with duplicates. Raises as ``load_demonstrations``."""
    return _load(config.prompts or config.path, config, _prompt_row, needs_answers=False)


def _load(path: str | None, config: DataConfig, parse: Parse[T], needs_answers: bool = True) -> Loaded[T]:
    if path is None:
        raise UserError(
            "the recipe names no data",
            fix="set data.path, or the stage's own data.demonstrations, .preferences or .prompts",
        )
    read = _read(path, config)
    raws, repeated, remarks = _prepare(read.rows, config, parse) if needs_answers else (read.rows, 0, ())
    rows: list[T] = []
    bad: list[BadRow] = []
    for outcome in _parse_all(raws, parse):
        if not isinstance(outcome, BadRow):
            rows.append(outcome)
        elif config.bad_rows == "error" and outcome.is_fault:
            raise UserError(
                f"{outcome.source}: {outcome.reason}",
                fix="correct the row, or set data.bad_rows=skip to count bad rows and continue",
            )
        else:
            bad.append(outcome)
    if not rows:
        raise _no_usable_rows(path, bad)
    _require_enough(path, len(rows), bad)
    return Loaded(tuple(rows), tuple(bad), tuple(read.unused), tuple(read.files), repeated, (*read.remarks, *remarks))


def _prepare(
    given: Sequence[RawRow | BadRow], config: DataConfig, parse: Parse[T]
) -> tuple[Sequence[RawRow | BadRow], int, tuple[str, ...]]:
    """Rows with the better answer as ``chosen`` and each prompt once; the number of repeated prompts; and remarks."""
    judged = list(choose_by_label(given, config))
    remarks = (*assumed_winner(judged, config), *contradictions(judged, config))
    raws, repeated = without_prompts(judged)
    return (list(without_marked(raws, config)) if parse is _demonstration else raws), repeated, remarks


@dataclass(frozen=True)
class _Read:
    """Rows under the known column names, and what was noted while reading."""

    rows: list[RawRow | BadRow]
    files: list[DataFile]
    unused: list[str]
    remarks: list[str]


def _read(path: str, config: DataConfig) -> _Read:
    """Read rows, rename their columns, and convert HH transcripts to messages."""
    if unknown := set(config.columns) - set(COLUMNS):
        raise UserError(
            f"data.columns renames '{min(unknown)}', which has no meaning here",
            fix=f"the names are {', '.join(COLUMNS)}",
        )
    files: list[DataFile] = []
    remarks: list[str] = []
    given = list(read_rows(path, config.format, config.split, config.max_rows, files, remarks))
    read = _Read([_rename_columns(raw, config) for raw in given], files, _unused(given, config), remarks)
    first_rows = islice((raw.columns for raw in read.rows if isinstance(raw, RawRow)), _ROWS_TO_TELL)
    is_hh = config.format == "hh" or (config.format == "auto" and any(map(looks_like_hh, first_rows)))
    return replace(read, rows=list(rows_from_transcripts(read.rows))) if is_hh else read


def _rename_columns(raw: RawRow | BadRow, config: DataConfig) -> RawRow | BadRow:
    if isinstance(raw, BadRow):
        return raw
    names = rename(raw.columns, config.columns, config.ignore)
    if "text" in raw.columns and {"role", "parent_id"} <= raw.columns.keys() - {*config.ignore}:
        return BadRow(
            raw.source, "one turn of a tree: text has a role and a parent; write its conversations as messages"
        )
    if _has_history(raw.columns, names, config):
        return BadRow(
            raw.source,
            "turns before the prompt: the row has a history; write it as messages, or data.ignore=[history] to train "
            "without it",
        )
    if isinstance(names, Missing):
        has = listed([*raw.columns])
        return BadRow(raw.source, f"{_UNKNOWN} '{names.column}': data.columns names it, the row has {has}")
    row, meant = raw.columns, {*names.values(), *COLUMNS}
    others = {name: value for name, value in row.items() if name not in meant}
    ours = {name: row[theirs] if theirs in row else _value(row, theirs) for name, theirs in names.items()}
    try:
        ours |= parse_turns(ours, _CONVERSATIONS)
    except RowError as error:
        return BadRow(raw.source, str(error))
    return RawRow(raw.source, {**others, **ours}, raw.filled, given=row, names=names)


def _has_history(row: Columns, names: Mapping[str, str] | Missing, config: DataConfig) -> bool:
    """Whether turns that are not read precede the prompt, as [asked, answered] in some Alpaca files."""
    history = row.get("history")
    if isinstance(names, Missing) or "prompt" not in names or not isinstance(history, list):
        return False
    if any(path.partition(".")[0] == "history" for path in (*names.values(), *config.ignore)):
        return False
    return any(isinstance(turn, list) and len(turn) == 2 and isinstance(turn[0], str) for turn in history)


def _value(row: Columns, theirs: str) -> object:
    paths = paths_of(theirs)
    return value_at(row, theirs) if len(paths) == 1 else tuple(value_at(row, path) for path in paths)


def _unused(given: Iterable[RawRow | BadRow], config: DataConfig) -> list[str]:
    """Columns that are not read, in order of appearance; rows with the same columns are inspected once."""
    kinds = {tuple(raw.columns): raw.columns for raw in given if isinstance(raw, RawRow)}
    found: dict[str, None] = {}
    for row in kinds.values():
        names = rename(row, config.columns, config.ignore)
        found |= dict.fromkeys([] if isinstance(names, Missing) else unused(row, names, config.ignore))
    return list(found)


def _parse_all(raws: Iterable[RawRow | BadRow], parse: Parse[T]) -> Iterator[T | BadRow]:
    for raw in raws:
        if isinstance(raw, BadRow):
            yield raw
            continue
        try:
            refuse_media(raw.columns)
            yield parse(_without_gaps(raw) if raw.filled else raw)
        except _NoColumn as error:
            yield BadRow(raw.source, f"{error}; has {listed([*(raw.given or raw.columns)])}")
        except RowError as error:
            yield BadRow(raw.source, str(error))


def _without_gaps(raw: RawRow) -> RawRow:
    tidy = {name: without_gaps(raw.columns[name]) for name in _CONVERSATIONS if name in raw.columns}
    return replace(raw, columns={**raw.columns, **tidy})


def _no_usable_rows(path: str, bad: list[BadRow]) -> UserError:
    if bad and not any(row.is_fault for row in bad):
        why = f"{len(bad):,} comparisons are ties, and there are no others"
        return UserError(
            f"no usable row in '{path}'", why, "check data.columns.label and data.labels, or give more data"
        )
    if not bad:
        return UserError(f"no rows in '{path}'", fix="check the file, data.split and data.max_rows")
    return UserError(f"no usable row in '{path}'", f"all {len(bad):,} rows are bad:\n{describe_bad(bad)}", _advice(bad))


def _require_enough(path: str, used: int, bad: list[BadRow]) -> None:
    """Refuse data of which almost all rows are bad, ties aside."""
    faults = [row for row in bad if row.is_fault]
    rows = used + len(faults)
    if rows >= _FEWEST_TO_JUDGE and len(faults) > _MOST_BAD * rows:
        raise UserError(
            f"{len(faults):,} of {rows:,} rows in '{path}' are bad",
            f"training on the other {used:,} is hardly meant:\n{describe_bad(faults)}",
            f"{_advice(faults)}; to train on the others alone, write them to a file of their own",
        )


def _advice(bad: list[BadRow]) -> str:
    """Advice on the most frequent reason for bad rows."""
    [(category, _)] = Counter(row.category for row in bad).most_common(1)
    if category.startswith(_UNKNOWN):
        return (
            "correct the name in data.columns, which applies to every file of the recipe, also to those of the other "
            "stages: give all files the same names, or data.columns={} to a command of one stage"
        )
    return _ADVICE.get(category, "rename columns with data.columns, set data.format, or correct the rows")


def _demonstration(raw: RawRow) -> Demonstration:
    row, source = raw.columns, raw.source
    if "completion" in row:
        _check_label(row)
        return Demonstration(*_answered(row, "completion"), source, read_variables(row))
    if "chosen" in row:
        pair = _preference(raw)
        return Demonstration(pair.prompt, pair.chosen, source, pair.variables)
    if "messages" in row:
        _check_label(row)
        return Demonstration(*_split_last_reply(_full_conversation(row), "messages"), source, read_variables(row))
    if "text" in row:
        _check_text(row)
        return Demonstration("", _text(row["text"], "text"), source, read_variables(row))
    raise _NoColumn("prompt and completion, chosen and rejected, messages, or text")


def _check_text(row: Columns) -> None:
    """Refuse a text of which the model should learn only a part or nothing."""
    if isinstance(row.get("label"), bool):  # other values are classes, as texts of any kind may have
        _check_label(row)
    if _is_given(row.get("system")):
        raise RowError("system beside text: a text has no system turn")
    if _is_given(row.get("prompt")):
        raise RowError(
            "prompt beside text: data.columns={completion: text} where the text answers it, or data.ignore=[prompt]"
        )
    if parse_turns(row, ["text"])["text"] is not row["text"]:
        raise RowError("not text: text holds messages (data.columns={messages: text} reads them)")


def _preference(raw: RawRow) -> Preference:
    row = raw.columns
    if "chosen" not in row or "rejected" not in row:
        raise _NoColumn("chosen and rejected")
    prompt: Messages | str
    chosen: Message | str
    rejected: Message | str
    if "prompt" not in row and "messages" not in row and isinstance(row["chosen"], str):
        if "text" in row:
            raise RowError(
                "text beside two answers: data.columns={prompt: text} where it is their prompt, or data.ignore=[text]"
            )
        prompt, chosen, rejected = _split_common_prefix(row)
    else:
        prompt, chosen = _answered(row, "chosen")
        other, rejected = _answered(row, "rejected")
        if prompt != other:
            raise RowError("prompts differ: chosen and rejected do not answer the same prompt")
    if chosen == rejected:
        raise RowError("chosen equals rejected")
    return Preference(prompt, chosen, rejected, _margin(row), raw.source, read_variables(row))


def _labelled(raw: RawRow) -> LabelledAnswer:
    row = raw.columns
    if "completion" not in row or "label" not in row:
        raise _NoColumn("prompt, completion and label")
    label = row["label"]
    if not isinstance(label, bool):
        raise RowError(f"not a label: label is {label!r:.40}, not true or false")
    return LabelledAnswer(*_answered(row, "completion"), label, raw.source, read_variables(row))


def _prompt_row(raw: RawRow) -> PromptRow:
    column = raw.names.get("prompt", "prompt")
    beside = {name: value for name, value in raw.given.items() if name != column}
    return PromptRow(_prompt_of(raw), raw.source, beside, read_variables(raw.columns), column)


def _prompt_of(raw: RawRow) -> Messages | str:
    row = raw.columns
    if "chosen" in row and "prompt" not in row:
        return _preference(raw).prompt
    answer = next((name for name in ("completion", "chosen") if name in row), None)
    if answer and ("messages" in row or are_turns(row[answer])):
        return _answered(row, answer)[0]  # the same prompt as in the stages that train on the answer
    if "messages" in row:
        turns = _full_conversation(row)
        return _prompt(turns if turns[-1].role != "assistant" else turns[:-1])
    if "prompt" in row:
        return _prompt(_given_prompt(row))
    raise _NoColumn("prompt, messages, or chosen and rejected")


def _answered(row: Columns, column: str) -> tuple[Messages | str, Message | str]:
    """Prompt and reply of a row whose reply is in ``column``.

    A list of messages may begin with the prompt, and an answer alone may continue the column ``messages``. If such a
    conversation stands beside a text ``prompt``, as in several public preference sets, it must contain that prompt, and
    the conversation is used. Beside an answer alone, a text ``prompt`` is the user's turn.
    """
    reply = _text_or_messages(row[column], column)
    if "messages" in row and (isinstance(reply, str) or _is_answer(reply)):
        reply = (*_conversation(row), *((Message("assistant", reply),) if isinstance(reply, str) else reply))
        column = "messages"
    if isinstance(reply, str):
        if "prompt" not in row:
            raise _NoColumn(f"prompt beside {column}")
        return _prompt(_given_prompt(row)), reply
    before = row.get("prompt")
    if isinstance(before, list | dict):
        prompt = _given_prompt(row)
        assert not isinstance(prompt, str)
        whole = join_turns(prompt, reply, column)
        _require_alternation(reply, column)  # not the whole: the prompt may end with a turn that the reply continues
        return _split_last_reply(whole, column)
    if isinstance(before, str) and _is_answer(reply):
        asked = prompt_text(_text(before, "prompt"), None, _optional(row, "input"))
        reply = (Message("user", asked), *reply)  # an answer as messages to a prompt as text
    elif isinstance(before, str):
        _require_said_again(before, reply, column)
    return _split_last_reply(_with_system(_require_alternation(reply, column), row), column)


def _is_answer(turns: Messages) -> bool:
    return all(turn.role == "assistant" for turn in turns)


def _conversation(row: Columns) -> Messages:
    """The column ``messages`` without the answer that it may end with, which must be one of the row's."""
    turns = read_messages(row["messages"], "messages")
    if turns[-1].role != "assistant":
        return turns
    given = [_text_or_messages(row[name], name) for name in ("completion", "chosen", "rejected") if name in row]
    answers = {(each if isinstance(each, str) else each[-1].content).strip() for each in given}
    if turns[-1].content.strip() not in answers or len(turns) == 1:
        raise RowError(
            "prompts differ: messages ends with an answer that is none of the row's (data.ignore=[messages])"
        )
    return turns[:-1]


def _full_conversation(row: Columns) -> Messages:
    """The column ``messages`` of a row without answers; it must contain the ``prompt`` beside it."""
    turns, prompt = read_messages(row["messages"], "messages"), row.get("prompt")
    if isinstance(prompt, str):
        _require_said_again(prompt, turns, "messages")
    elif isinstance(prompt, list | dict) and prompt:
        begun = read_messages(prompt, "prompt")
        turns = turns if begun == turns else join_turns(begun, turns, "messages")
    return _with_system(_require_alternation(turns, "messages"), row)


def _require_alternation(turns: Messages, column: str) -> Messages:
    """Refuse two consecutive assistant turns in one column: only a prompt's last turn may be continued."""
    if any(one.role == other.role == "assistant" for one, other in pairwise(turns)):
        raise RowError(f"assistant turns in a row: {column} holds two without a turn between them; join them into one")
    return turns


def _require_said_again(prompt: str, conversation: Messages, column: str) -> None:
    """Refuse a conversation that does not contain the text prompt, as one turn or as the whole transcript."""
    asked = [" ".join(turn.content.split()) for turn in conversation if turn.role == "user"]
    shown = " ".join(prompt.split())
    if asked and shown and not (asked[-1] in shown or shown in " ".join(asked)):
        raise RowError(
            f"prompts differ: {column} is a conversation that does not hold the prompt (data.ignore=[prompt] where it "
            "is none)"
        )


def _given_prompt(row: Columns) -> Messages | str:
    """The ``prompt`` column with ``system`` before it and ``input`` after it."""
    prompt = _text_or_messages(row["prompt"], "prompt")
    if isinstance(prompt, str):
        return prompt_text(prompt, _optional(row, "system"), _optional(row, "input"))
    if _optional(row, "input"):
        raise RowError("input beside messages: a conversation has no input")
    return _with_system(_require_alternation(prompt, "prompt"), row)


def _optional(row: Columns, column: str) -> str | None:
    return _text(row[column], column) if _is_given(row.get(column)) else None


def _with_system(turns: Messages, row: Columns) -> Messages:
    """The conversation with the row's ``system`` text as its first turn."""
    system = row.get("system")
    if not _is_given(system):
        return turns
    first = Message("system", _text(system, "system"))
    if turns[0].role != "system":
        return (first, *turns)
    if turns[0].content.strip() != first.content.strip():
        raise RowError("two system turns: the column system and the conversation have different ones")
    return turns


def _is_given(value: object) -> bool:
    return value is not None and value != ""


def _split_last_reply(turns: Messages, column: str) -> tuple[Messages | str, Message]:
    """The last assistant turn and the turns before it; turns after it have no answer and are left out."""
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None:
        raise RowError(f"no assistant turn: {column} holds no answer")
    reply = turns[last]
    if not reply.content.strip() and not reply.fields:
        raise RowError(f"empty {column}")
    return _prompt(turns[:last]), reply


def _split_common_prefix(row: Columns) -> tuple[str, str, str]:
    """Split two texts at their common prefix, shortened to whole words, without the space before the next word.

    Scripts without spaces between words are split between grapheme clusters: never before an accent or inside an emoji.
    """
    chosen, rejected = _text(row["chosen"], "chosen"), _text(row["rejected"], "rejected")
    common = os.path.commonprefix([chosen, rejected])
    cut = len(_UNFINISHED_WORD.sub("", common))
    shared = [end for end in _character_ends(chosen) if end <= cut]
    ends = set(_character_ends(rejected))
    cut = max((end for end in shared if end in ends and end < min(len(chosen), len(rejected))), default=0)
    cut = len(common[:cut].rstrip())
    _prompt(common[:cut])
    prompt = prompt_text(common[:cut], _optional(row, "system"), None)
    return prompt, _text(chosen[cut:], "chosen"), _text(rejected[cut:], "rejected")


def _character_ends(text: str) -> list[int]:
    return [found.end() for found in regex.finditer(r"\X", text)]


def _prompt(prompt: Messages | str) -> Messages | str:
    if not (prompt.strip() if isinstance(prompt, str) else any(turn.content.strip() or turn.fields for turn in prompt)):
        raise RowError("empty prompt")
    return prompt


def _text_or_messages(value: object, column: str) -> Messages | str:
    is_turn = isinstance(value, dict) and ("role" in value or "from" in value)
    return read_messages(value, column) if is_turn or isinstance(value, list) else _text(value, column)


def _text(value: object, column: str) -> str:
    """The value if it is a non-empty text; booleans and numbers are not converted."""
    if not isinstance(value, str):
        raise RowError(f"not text: {column} is {value!r:.40}")
    if not value.strip():
        raise RowError(f"empty {column}")
    require_unicode(value, column)
    return value


def _check_label(row: Columns) -> None:
    label = row.get("label", True)
    if label is False:
        raise RowError("label is false: the completion is no demonstration")
    if label is not True:
        raise RowError(f"not a label: label is {label!r:.40}, not true or false (data.ignore=[label] where it is none)")


def _margin(row: Columns) -> float:
    margin = row.get("margin")
    if margin is None:  # the column is optional, and tables fill missing values with null
        return 0.0
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not abs(margin) <= LARGEST_MARGIN:
        raise RowError(
            f"not a number: margin is {margin!r:.40}, not a finite number up to {LARGEST_MARGIN:g} "
            "(data.ignore=[margin] to train without margins)"
        )
    return float(margin)


class _NoColumn(RowError):
    """A row lacks a column; its reader adds the names that the file has."""

    def __init__(self, needed: str) -> None:
        super().__init__(f"columns missing: needs {needed}")
