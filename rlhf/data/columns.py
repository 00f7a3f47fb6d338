"""Maps the columns of a file to the names known here, by the recipe or by standard names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rlhf.data.shapes import is_conversation

COLUMNS = (
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "messages",
    "text",
    "label",
    "margin",
    "system",
    "input",
    "tools",
    "documents",
    "chat_template_kwargs",
)
"""Column names with a meaning; ``DataConfig.columns`` maps to these."""

STANDARD: Mapping[str, tuple[str, ...]] = {
    "messages": ("conversations", "conversation"),
    "system": ("system_prompt",),
    "prompt": ("instruction", "question", "query"),
    "completion": ("output", "response", "answer"),
}
"""Standard names in public data sets for a column; used if the row has exactly one of them."""


@dataclass(frozen=True)
class Missing:
    """A column that the recipe names and the row lacks."""

    column: str


def rename(row: Mapping[str, object], columns: Mapping[str, str], ignore: Sequence[str]) -> Mapping[str, str] | Missing:
    """Known name → the row's name, for every known column of the row; a dotted path leads into nested values.

    Args:
        row: column → value.
        columns: ``DataConfig.columns``, which takes precedence over the row's own names.
        ignore: columns to treat as absent.
    """
    for path in (path for value in columns.values() for path in paths_of(value)):
        if not has_value(row, path):
            return Missing(path)
    compared = is_conversation(value_at(row, columns.get("chosen", "chosen")))
    return _names(tuple(row), compared, tuple(columns.items()), tuple(ignore))


@lru_cache(maxsize=1024)
def _names(
    row: tuple[str, ...], compares_conversations: bool, given: tuple[tuple[str, str], ...], ignore: tuple[str, ...]
) -> Mapping[str, str]:
    """``rename`` for all rows with the same columns."""
    columns = dict(given)
    paths = [path for value in columns.values() for path in paths_of(value)]
    taken = {path if path in row else path.partition(".")[0] for path in paths}
    if {"prompt", "completion", "text"} & columns.keys() and "messages" not in columns:
        taken |= {"messages", *STANDARD["messages"]}  # the recipe names the prompt or the answer
    free = [name for name in row if name not in taken and name not in ignore]
    names = {name: name for name in COLUMNS if name in free and name not in columns and name != "input"} | columns
    for ours in STANDARD:
        if not (ours in ("prompt", "completion") and "text" in columns):  # the recipe names the text column
            names |= _standard(ours, free, names)
    if "prompt" in names and {"completion", "chosen"} & names.keys() and "text" not in columns:
        names.pop("text", None)  # Alpaca's: the same content in another template
    if compares_conversations and "prompt" not in columns and names.get("prompt") in STANDARD["prompt"]:
        del names["prompt"]  # the conversations contain it
    if names.get("prompt") == "instruction" and "input" in free:
        names.setdefault("input", "input")  # Alpaca's: the input of the instruction
    if (names.get("prompt"), names.get("completion")) == ("instruction", "response") and "context" in free:
        names.setdefault("input", "context")  # Dolly's
    return names


def _standard(ours: str, free: Iterable[str], names: Mapping[str, str]) -> Mapping[str, str]:
    """The only column with the standard name of ``ours``, if no other column has its role."""
    if ours in names or (ours in ("prompt", "completion") and "messages" in names):
        return {}
    if ours == "completion" and ("chosen" in names or ("text" in names and "prompt" not in names)):
        return {}
    found = [name for name in free if name in STANDARD[ours]]
    if ours == "prompt" and not found:
        found = [name for name in free if name == "input"]
    return {ours: found[0]} if len(found) == 1 else {}


def paths_of(value: str) -> list[str]:
    """The columns of one entry of ``DataConfig.columns``: several votes are written ``a, b, c``."""
    return [part.strip() for part in value.split(",")]


def has_value(row: Mapping[str, object], path: str) -> bool:
    """Whether the row has this column, or this dotted path into one."""
    return value_at(row, path, _NOTHING) is not _NOTHING


_NOTHING = object()


def value_at(row: Mapping[str, object], path: str, otherwise: object = None) -> object:
    """The value of a column, or at a dotted path such as ``outputs.0.text``; a column of that exact name wins."""
    if path in row:
        return row[path]
    value: object = row
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list | tuple) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return otherwise
    return value


def leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Every nested value that is neither a mapping nor a list, with its dotted path."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{path}.{i}")
    else:
        yield path, value


def is_within(path: str, others: Iterable[str]) -> bool:
    """Whether a path equals one of the others or leads into one."""
    return any(path == other or path.startswith(f"{other}.") for other in others)


def unused(row: Mapping[str, object], names: Mapping[str, str], ignore: Sequence[str]) -> list[str]:
    """Columns of a row that are not read; for a column that is read in part, the paths to the rest."""
    read = [*names.values(), *(path for value in names.values() for path in paths_of(value)), *ignore]
    found: list[str] = []
    for name, value in row.items():
        if not any(path.startswith(f"{name}.") for path in read):
            found += [] if name in read else [name]
        elif name not in read:
            rest = leaves(value, name)
            found += [path for path, inner in rest if inner is not None and not is_within(path, read)]
    return found
