"""Settings of a feedback project: votes per item, checks of raters, leases, and when an adjudicator decides."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

import yaml

from rlhf.errors import UserError


class Disagreement(StrEnum):
    """When the votes on a complete item count as a disagreement, which an adjudicator decides.

    A vote says first, second or neither; a tie and both bad are neither.
    """

    OPPOSITE = "opposite"
    """Some votes prefer the first answer and some the second, or no outcome has more than half of the votes."""
    NO_MAJORITY = "no_majority"
    """No outcome has more than half of the votes."""
    NEVER = "never"
    """Nothing is adjudicated."""


@dataclass(frozen=True, kw_only=True)
class ProjectSettings:
    """How a project collects votes. Settings may change while raters work.

    Raises:
        UserError: a value is outside its range.
    """

    overlap: int = 3
    """Raters who judge each label item."""
    gold_fraction: float = 0.05
    """Fraction of a rater's items that are gold items, while label items remain."""
    repeat_fraction: float = 0.05
    """Fraction of a rater's items that the rater judged before, shown with the sides swapped."""
    lease_seconds: float = 900.0
    """How long an item is reserved for the rater to whom it was shown."""
    minimum_seconds: float = 1.0
    """A faster vote is kept, and counted as too fast in the rater's quality."""
    calibration_items: int = 0
    """Calibration items that a rater judges before the first label item; fewer if the project has fewer."""
    reasons: tuple[str, ...] = ("accurate", "helpful", "harmless", "clear", "concise")
    """Reasons that a rater can give for a choice."""
    disagreement_to_adjudicate: Disagreement = Disagreement.OPPOSITE

    def __post_init__(self) -> None:
        object.__setattr__(self, "reasons", tuple(self.reasons))
        object.__setattr__(self, "disagreement_to_adjudicate", Disagreement(self.disagreement_to_adjudicate))
        _require(1 <= self.overlap <= 1000, f"overlap is {self.overlap}", "each item needs 1 to 1,000 votes")
        for name in ("gold_fraction", "repeat_fraction"):
            _require(
                0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}", "a fraction is at least 0, below 1"
            )
        _require(
            self.gold_fraction + self.repeat_fraction <= MOST_CHECKS,
            f"gold_fraction + repeat_fraction is {self.gold_fraction + self.repeat_fraction:g}",
            f"at most {MOST_CHECKS:g} of a rater's items may be checks, so that votes on label items are collected",
        )
        _require(self.lease_seconds > 0, f"lease_seconds is {self.lease_seconds}", "a lease must last")
        _require(self.minimum_seconds >= 0, f"minimum_seconds is {self.minimum_seconds}", "no vote takes less than 0 s")
        _require(
            self.calibration_items >= 0, f"calibration_items is {self.calibration_items}", "it is a number of items"
        )


MOST_CHECKS = 0.5


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """Settings from ``name=value`` with YAML values.

    Raises:
        UserError: a word has another form, or there is no such setting, or its value is of another type.
    """
    kinds = {field.name: type(getattr(ProjectSettings(), field.name)) for field in fields(ProjectSettings)}
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in kinds:
            raise UserError(
                f"{word!r} is no setting of a project", f"the settings are {', '.join(kinds)}", "name=value"
            )
        found[name] = _converted(name, text, kinds[name])
    return found


def _converted(name: str, text: str, kind: type) -> Any:
    try:
        value = yaml.safe_load(text)
        if kind is tuple and isinstance(value, list):
            return tuple(map(str, value))
        if kind in (int, float) and type(value) in (int, kind):
            return kind(value)
        if issubclass(kind, str):
            return kind(value)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{name}={text}", str(error).splitlines()[0], f"give a {kind.__name__}") from error
    raise UserError(f"{name}={text} is no {kind.__name__}", "", f"give a {kind.__name__}")


def write_settings(db: sqlite3.Connection, settings: ProjectSettings) -> None:
    """Store the settings, inside the caller's transaction."""
    db.execute("INSERT OR REPLACE INTO meta VALUES ('settings', ?)", (json.dumps(asdict(settings)),))


def read_settings(db: sqlite3.Connection) -> ProjectSettings:
    """The stored settings; one that a file of an older version lacks has its default."""
    saved: Mapping[str, object] = json.loads(
        db.execute("SELECT value FROM meta WHERE key = 'settings'").fetchone()["value"]
    )
    known = {field.name for field in fields(ProjectSettings)}
    return ProjectSettings(**{name: value for name, value in saved.items() if name in known})  # type: ignore[arg-type]


def _require(is_right: bool, what: str, why: str) -> None:
    if not is_right:
        raise UserError(what, why, "choose another value")
