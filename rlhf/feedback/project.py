"""A feedback project as training data: its preferences, demonstrations and prompts, wherever a recipe names a project.

Each loader reads a project if the recipe's path is one, and otherwise files, through ``rlhf.data``. Votes become
preferences by ``data.aggregation``. Only label items are read: what raters were checked with is no training data.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from rlhf.config.fields import defaults_of
from rlhf.config.schema import DataConfig
from rlhf.data import formats
from rlhf.data.split import canonical_prompt
from rlhf.data.turns import RowError, read_variables
from rlhf.errors import UserError
from rlhf.feedback.aggregate import Aggregated, Outcome, Ties, bradley_terry, dawid_skene, majority
from rlhf.feedback.labelled import LabelledOutcome, labelled_answers
from rlhf.feedback.records import Item
from rlhf.feedback.schema import APPLICATION_ID
from rlhf.feedback.snapshot import ProjectSnapshot, read_snapshot
from rlhf.records import (
    BadRow,
    DataFile,
    Demonstration,
    LabelledAnswer,
    Loaded,
    Preference,
    PromptRow,
    RowLocation,
)
from rlhf.storage.database import connect, is_sqlite

T = TypeVar("T", Preference, Demonstration, PromptRow, LabelledAnswer)
S = TypeVar("S", Item, Outcome, LabelledOutcome)

RULES: Mapping[str, Callable[..., Aggregated]] = {
    "majority": majority,
    "dawid_skene": dawid_skene,
    "bradley_terry": bradley_terry,
}
"""``data.aggregation`` → how the votes on an item become a preference."""
DEFAULT_RULE = "majority"


def is_project(path: str | Path) -> bool:
    """Whether a path is a feedback project: a SQLite file with the mark of one."""
    try:
        place = Path(path).expanduser()
        if not is_sqlite(place):
            return False
    except (OSError, ValueError, RuntimeError):  # no file, or a name that no file can have
        return False
    with suppress(sqlite3.DatabaseError), closing(connect(place)) as db:  # a damaged one is refused by whoever reads it
        return bool(db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID)
    return False


def aggregate(snapshot: ProjectSnapshot, rule: str, ties: Ties) -> Aggregated:
    """The preferences of a project's votes by one of ``RULES``."""
    return RULES[rule](snapshot.items, snapshot.votes, ties)


def load_preferences(config: DataConfig) -> Loaded[Preference]:
    """The preferences of ``config.preferences`` or ``config.path``: a project's by its votes, or those of files.

    Raises:
        UserError: as ``rlhf.data.formats.load_preferences``; or a key of the recipe has no effect on this kind of data.
    """
    path = config.preferences or config.path
    if path is None or not is_project(path):
        _refuse_keys_of_projects(config)
        return formats.load_preferences(config)
    _refuse_keys_of_files(path, config)
    loaded = _load(read_snapshot(path), config, _preference)
    if "margin" in config.ignore:
        return replace(loaded, rows=tuple(replace(pair, margin=0.0) for pair in loaded.rows))
    return loaded


def load_demonstrations(config: DataConfig) -> Loaded[Demonstration]:
    """The demonstrations of ``config.demonstrations`` or ``config.path``; of a project, the preferred answers.

    A project without comparisons gives the answers with a thumb up. Raises as ``load_preferences``.
    """
    path = config.demonstrations or config.path
    if path is None or not is_project(path):
        return formats.load_demonstrations(config)
    _refuse_keys_of_files(path, config)
    snapshot = read_snapshot(path)
    good = [each for each in labelled_answers(snapshot) if each.is_good]
    if good and not snapshot.votes:
        return _loaded(snapshot, good, _good_answer, (f"{len(good):,} answers with a thumb up",))
    return _load(snapshot, config, _demonstration)


def load_labelled(config: DataConfig) -> Loaded[LabelledAnswer]:
    """The unpaired labels of ``config.preferences`` or ``config.path``; of a project, its ``labelled_answers``.

    Raises as ``load_preferences``.
    """
    path = config.preferences or config.path
    if path is None or not is_project(path):
        _refuse_keys_of_projects(config)
        return formats.load_labelled(config)
    _refuse_keys_of_files(path, config)
    snapshot = read_snapshot(path)
    found = list(labelled_answers(snapshot))
    if not found:
        raise UserError(
            f"no thumb in '{path}', and no item whose answers are both bad",
            "these are a project's unpaired labels",
            "collect thumbs, or import some by `rlhf feedback import`, or train on the project's comparisons",
        )
    bad = len(found) - len(snapshot.thumbs)
    remarks = (f"{len(snapshot.thumbs):,} thumbs, and {bad:,} answers of items of which both are bad",)
    return _loaded(snapshot, found, _labelled, remarks)


def load_prompts(config: DataConfig) -> Loaded[PromptRow]:
    """The prompts of ``config.prompts`` or ``config.path``; of a project, those of its items, each once.

    Raises as ``load_preferences``.
    """
    path = config.prompts or config.path
    if path is None or not is_project(path):
        return formats.load_prompts(config)
    _refuse_keys_of_files(path, config)
    snapshot = read_snapshot(path)
    items: dict[str, Item] = {}
    for item in snapshot.labels:
        items.setdefault(canonical_prompt(item.prompt), item)
    return _loaded(snapshot, tuple(items.values()), _prompt, ())


def _load(snapshot: ProjectSnapshot, config: DataConfig, convert: Callable[[ProjectSnapshot, Outcome], T]) -> Loaded[T]:
    rule, ties = config.aggregation or DEFAULT_RULE, Ties(config.ties or Ties.DROP)
    aggregated = aggregate(snapshot, rule, ties)
    if not aggregated.outcomes:
        raise UserError(
            f"no preference in '{snapshot.path}'",
            "; ".join(describe_votes(snapshot, aggregated, rule, ties)),
            "collect votes by `rlhf feedback serve`, or import some by `rlhf feedback import`",
        )
    remarks = describe_votes(snapshot, aggregated, rule, ties)
    return _loaded(snapshot, aggregated.outcomes, convert, remarks)


def _loaded(
    snapshot: ProjectSnapshot, given: Sequence[S], convert: Callable[[ProjectSnapshot, S], T], remarks: Sequence[str]
) -> Loaded[T]:
    rows: list[T] = []
    bad: list[BadRow] = []
    for each in given:
        try:
            rows.append(convert(snapshot, each))
        except RowError as error:
            bad.append(BadRow(_location(snapshot, each), str(error)))
    if not rows:
        why = f"{bad[0].source}: {bad[0].reason}" if bad else "it has no item to label"
        raise UserError(f"no usable row in '{snapshot.path}'", why, "add items whose answers are not empty")
    file = DataFile(snapshot.path, len(snapshot.votes), _digest(rows))
    return Loaded(tuple(rows), tuple(bad), files=(file,), remarks=tuple(remarks))


def _digest(rows: Sequence[T]) -> str:
    """SHA-256 of the rows in the order of their text: what is not trained on, such as an item without a vote, a thumb
    beside comparisons, or a vote that changes no preference, does not count."""
    nowhere = RowLocation("", 0)
    lines = sorted(repr(replace(row, source=nowhere)) for row in rows)
    return hashlib.sha256("\n".join(lines).encode(errors="backslashreplace")).hexdigest()


def _preference(snapshot: ProjectSnapshot, outcome: Outcome) -> Preference:
    item = outcome.item
    chosen, rejected = outcome_texts(outcome)
    _require_prompt(item)
    _require_text(chosen, "chosen")
    _require_text(rejected, "rejected")
    if chosen == rejected:
        raise RowError("chosen equals rejected")
    source, variables = snapshot.locations[item.id], read_variables(item.extra)
    return Preference(item.prompt, chosen, rejected, outcome.margin, source, variables, is_tie(outcome))


def _location(snapshot: ProjectSnapshot, given: Item | Outcome | LabelledOutcome) -> RowLocation:
    """Where a row came from: an item by its number, a thumb by its number after all items."""
    if isinstance(given, LabelledOutcome) and given.thumb is not None:
        return RowLocation(snapshot.path, 1 + len(snapshot.items) + snapshot.thumbs.index(given.thumb))
    item = given if isinstance(given, Item) else given.item
    assert item is not None
    return snapshot.locations[item.id]


def _labelled(snapshot: ProjectSnapshot, given: LabelledOutcome) -> LabelledAnswer:
    if isinstance(given.prompt, str):
        _require_text(given.prompt, "prompt")
    _require_text(given.answer.text, "completion")
    variables = read_variables(given.item.extra) if given.item else {}
    return LabelledAnswer(given.prompt, given.answer.text, given.is_good, _location(snapshot, given), variables)


def _good_answer(snapshot: ProjectSnapshot, given: LabelledOutcome) -> Demonstration:
    row = _labelled(snapshot, given)
    return Demonstration(row.prompt, row.completion, row.source, row.variables)


def _demonstration(snapshot: ProjectSnapshot, outcome: Outcome) -> Demonstration:
    pair = _preference(snapshot, outcome)
    return Demonstration(pair.prompt, pair.chosen, pair.source, pair.variables)


def _prompt(snapshot: ProjectSnapshot, item: Item) -> PromptRow:
    _require_prompt(item)
    return PromptRow(item.prompt, snapshot.locations[item.id], {}, read_variables(item.extra))


def _require_prompt(item: Item) -> None:
    if isinstance(item.prompt, str):
        _require_text(item.prompt, "prompt")


def _require_text(text: str, column: str) -> None:
    if not text.strip():
        raise RowError(f"empty {column}")


def is_tie(outcome: Outcome) -> bool:
    """Whether an outcome is one of the two orders of a tie."""
    return outcome.margin == 0 and outcome.probability == 0.5


def outcome_texts(outcome: Outcome) -> tuple[str, str]:
    """The texts of the better and of the worse answer."""
    first, second = (answer.text for answer in outcome.item.answers)
    return (first, second) if outcome.first_wins else (second, first)


def describe_votes(snapshot: ProjectSnapshot, aggregated: Aggregated, rule: str, ties: Ties) -> list[str]:
    """What a project's votes became, and how many became nothing, one line each."""
    raters = len({vote.rater for vote in snapshot.votes})
    suspended = len({vote.rater for vote in snapshot.votes if vote.is_suspended})
    by = f"{raters:,} rater{'s' * (raters != 1)}" + (f", {suspended} of them suspended" if suspended else "")
    handled = "dropped" if ties is Ties.DROP else "in both orders, in training only"
    lines = [
        f"{len(snapshot.votes):,} votes of {by}, on {len(snapshot.labels):,} items to label; aggregated by {rule}",
        f"{aggregated.ties:,} tie{'s' * (aggregated.ties != 1)}, {handled}",
    ]
    if aggregated.left_out:
        lines.append("left out: " + ", ".join(f"{count:,} × {reason}" for reason, count in aggregated.left_out.items()))
    if not aggregated.is_converged:
        lines.append(f"the fit of {rule} did not reach its tolerance")
    return lines


def _refuse_keys_of_projects(config: DataConfig) -> None:
    if any(path and is_project(path) for path in (config.path, config.demonstrations, config.prompts)):
        return  # they are for that one
    for key in ("aggregation", "ties"):
        if (value := getattr(config, key)) is not None:
            raise UserError(
                f"data.{key} = {value} has no effect",
                f"'{config.preferences or config.path}' is no feedback project, and has no votes to aggregate",
                f"set data.{key}=null, or name a project in data.preferences",
            )


def _refuse_keys_of_files(path: str, config: DataConfig) -> None:
    """Refuse keys that say how to read files; the project may still be one of several sources of a pipeline."""
    if {config.demonstrations, config.preferences, config.prompts, config.path} - {path, None}:
        return  # they may be meant for the others
    set_here = [name for name in ("columns", "labels", "max_rows") if getattr(config, name)]
    set_here += ["ignore"] * bool({*config.ignore} - {"margin"}) + ["format"] * (config.format != "auto")
    if set_here:
        raise UserError(
            f"data.{set_here[0]} has no effect on the feedback project '{path}'",
            "a project has no columns and is read as a whole",
            defaults_of(DataConfig, "data", set_here),
        )
