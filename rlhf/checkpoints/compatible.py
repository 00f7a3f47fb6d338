"""Checks that a run resumes from a checkpoint with the same configuration and the same data."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf.checkpoints.store import Checkpoint
from rlhf.config.keys import join
from rlhf.config.load import to_yaml
from rlhf.config.schema import Recipe
from rlhf.errors import UserError
from rlhf.records import DataFile

ABSENT = "(not there)"
"""Value of a key that one of two configurations does not have."""
SHOWN = 10
"""Largest number of differences that an error lists, to fit on one screen."""


def differing_keys(then_yaml: str, now_yaml: str, sections: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """Dotted keys whose values differ between two configurations, with the values then and now.

    A key that was absent then and has its default now is not a difference: a later version added it.

    Args:
        sections: top-level keys to compare.

    Raises:
        UserError: a configuration is not a YAML mapping.
    """
    then, now = _settings(then_yaml), _settings(now_yaml)
    defaults = _settings(to_yaml(Recipe(name="")))
    return [
        row
        for name in sections
        for row in _differences(then.get(name, ABSENT), now.get(name, ABSENT), name, defaults.get(name, ABSENT))
    ]


def describe_differences(then_yaml: str, now_yaml: str, sections: Sequence[str], but_for: Collection[str] = ()) -> str:
    """Lines for a message, one for each of ``differing_keys`` ``but_for`` these; empty if there is none."""
    rows = [row for row in differing_keys(then_yaml, now_yaml, sections) if row[0] not in but_for]
    return _list([f"{key}: {reprlib.repr(then)} then, {reprlib.repr(now)} now" for key, then, now in rows])


def require_same(checkpoint: Checkpoint, now_yaml: str, sections: Sequence[str], but_for: Collection[str] = ()) -> None:
    """Check that a checkpoint has the current configuration, ``but_for`` these keys.

    Raises:
        UserError: values under ``sections`` differ, or the checkpoint's configuration is damaged.
    """
    lines = describe_differences(checkpoint.config(), now_yaml, sections, but_for)
    if not lines:
        return
    raise UserError(
        f"{checkpoint.path} was made with another configuration:{lines}",
        "a run that resumes from it would be a mixture of two",
        f"restore the values, give this run another name (name=...), or delete {checkpoint.path.parent} to start "
        "again; to train for longer, let it finish, and train its model further by a run of another name",
    )


def data_changes(then: Sequence[DataFile] | None, now: Sequence[DataFile]) -> list[str]:
    """Differences between the data files of two commands, one line per file.

    The content is compared, in reading order; names and folders of files may differ. ``then`` is None if unknown.
    """
    if then is None or [file.digest for file in then] == [file.digest for file in now]:
        return []
    kept = {file.digest for file in then} & {file.digest for file in now}
    before = {Path(file.file).name: file for file in then if file.digest not in kept}
    after = {Path(file.file).name: file for file in now if file.digest not in kept}
    lines = [_change(before.get(name), after.get(name)) for name in dict.fromkeys([*before, *after])]
    return lines or ["the files are the same, but are read in another order"]


def _change(then: DataFile | None, now: DataFile | None) -> str:
    if then is None or now is None:
        file = then or now
        assert file is not None
        return f"{file.file} ({file.rows:,} rows) {'is new' if then is None else 'is not read any more'}"
    return f"{now.file} has other content: {then.rows:,} rows then, {now.rows:,} rows now"


def require_same_data(holder: str, changes: Sequence[str], path: Path) -> None:
    """Check that the data is the same.

    Args:
        holder: checkpoint or stage that was made with the data, as the subject of a sentence.
        changes: result of ``data_changes``.
        path: folder to delete in order to start again.

    Raises:
        UserError: the data changed.
    """
    if not changes:
        return
    raise UserError(
        f"{holder} was made with other data:{_list(changes)}",
        "a resumed run would be a mixture of two: rows seen twice or never, and others held out",
        f"restore the data, give this run another name (name=...), delete {path} to start again, or accept the change "
        "with checkpoint.changed_data=accept",
    )


def _list(lines: Sequence[str]) -> str:
    """Up to ``SHOWN`` indented lines, each after a line break."""
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "".join(f"\n  {line}" for line in (*lines[:SHOWN], *more))


def _differences(then: Any, now: Any, key: str, default: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(then, dict) and isinstance(now, dict):
        defaults = default if isinstance(default, dict) else {}
        for name in dict.fromkeys([*then, *now]):
            values = then.get(name, ABSENT), now.get(name, ABSENT)
            yield from _differences(*values, join(key, str(name)), defaults.get(name, ABSENT))
    elif then != now and not (then == ABSENT and now == default):
        yield key, then, now


def _settings(text: str) -> dict[Any, Any]:
    try:
        settings = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError("a configuration to compare with is not YAML", str(error)) from error
    if not isinstance(settings, dict):
        raise UserError("a configuration to compare with is not a YAML mapping")
    return settings
