"""Whether a run may go on from a checkpoint: not with another configuration than the one it was made with."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from rlhf.checkpoints.checkpoint import Checkpoint
from rlhf.config.keys import join
from rlhf.errors import UserError

ABSENT = "(not there)"
"""Stands for the value of a key that one of two configurations does not have."""
SHOWN = 10
"""Differing keys that an error lists: they fit on one screen."""


def differing_keys(then_yaml: str, now_yaml: str, sections: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """Dotted keys whose values differ between two configurations, with the value then and the value now.

    Args:
        sections: top-level keys that are compared.

    Raises:
        UserError: one of the two is not a YAML mapping.
    """
    then, now = _settings(then_yaml), _settings(now_yaml)
    return [row for name in sections for row in _differences(then.get(name, ABSENT), now.get(name, ABSENT), name)]


def require_same(checkpoint: Checkpoint, now_yaml: str, sections: Sequence[str]) -> None:
    """Refuse to go on from a checkpoint with another configuration.

    Raises:
        UserError: values under ``sections`` differ, or the checkpoint's configuration is damaged.
    """
    rows = differing_keys(checkpoint.config(), now_yaml, sections)
    if not rows:
        return
    lines = [f"  {key}: {reprlib.repr(then)} then, {reprlib.repr(now)} now" for key, then, now in rows[:SHOWN]]
    if len(rows) > SHOWN:
        lines.append(f"  and {len(rows) - SHOWN} more")
    raise UserError(
        "\n".join([f"{checkpoint.path} was made with another configuration:", *lines]),
        "a run that went on from it would be a mixture of two",
        f"give this run another name (name=...), set the values back, or delete {checkpoint.path.parent} to start anew",
    )


def _differences(then: Any, now: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(then, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*then, *now]):
            yield from _differences(then.get(name, ABSENT), now.get(name, ABSENT), join(key, str(name)))
    elif then != now:
        yield key, then, now


def _settings(text: str) -> dict[Any, Any]:
    try:
        settings = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError("a configuration to compare with is not YAML", str(error)) from error
    if not isinstance(settings, dict):
        raise UserError("a configuration to compare with is not a YAML mapping")
    return settings
