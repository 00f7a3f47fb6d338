"""``rlhf feedback import`` and ``rlhf feedback export``: votes and thumbs from files, and back into files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rlhf.feedback.formats.reading import Feedback
    from rlhf.feedback.importing import Added
    from rlhf.feedback.settings import ProjectSettings
    from rlhf.feedback.store import Store

Project = Annotated[Path, typer.Argument(metavar="PROJECT.db", help="the project's file")]
ImportFormat = Literal[
    "native",
    "trl",
    "trl-unpaired",
    "hh",
    "label-studio",
    "openai",
    "webgpt",
    "best-of",
    "pandalm",
    "finegrained",
]
ExportFormat = Literal["native", "trl", "trl-unpaired"]
Aggregation = Literal["majority", "dawid_skene", "bradley_terry"]
TieRule = Literal["drop", "both_orders"]


def import_(
    project: Project,
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSONL, JSON or Parquet, packed by gzip or not")],
    format: Annotated[ImportFormat, typer.Option(help="format of the file, see docs/feedback.md")],
    bad_rows: Annotated[
        Path | None, typer.Option(metavar="FILE", help="file to write the unusable rows to, with line and reason")
    ] = None,
) -> None:
    """Add the votes or thumbs of a file to a project, which is created if there is none. A second time adds nothing.

    Raises:
        UserError: the file or the project cannot be used, or the file contradicts the project's votes.
    """
    if bad_rows is not None:
        _require_new(bad_rows)
    if format == "native":
        _import_project(project, file)
    else:
        _import_file(project, file, format, bad_rows)


def _import_project(project: Path, file: str) -> None:
    from rlhf.feedback.importing import restore
    from rlhf.feedback.native import read_project

    contents = read_project(file)
    with _opened(project, contents.settings) as store:
        added = restore(store, contents)
    _print_summary(file, [(len(contents.items), "item"), (len(contents.votes), "vote")], project, added)


def _import_file(project: Path, file: str, format: str, bad_rows: Path | None) -> None:
    from rlhf.data.report import write_bad_rows
    from rlhf.feedback.formats.reading import read_feedback
    from rlhf.feedback.importing import import_feedback, number_of_rows
    from rlhf.feedback.settings import ProjectSettings
    from rlhf.tracking.console import Console

    feedback = read_feedback(file, format)
    with _opened(project, ProjectSettings()) as store:
        total = number_of_rows(feedback)
        with Console(sys.stderr).stage("import", total) as report:
            added = import_feedback(store, feedback, lambda done: report(done, {}))
    found = [(len(feedback.items), "item"), (len(feedback.votes), "vote"), (len(feedback.thumbs), "thumb")]
    _print_summary(file, found, project, added)
    _print_unused(feedback)
    if bad_rows is not None:
        write_bad_rows(bad_rows, feedback.bad)


@contextmanager
def _opened(project: Path, settings: ProjectSettings) -> Iterator[Store]:
    """The project; one that did not exist is created, and removed again if the import fails."""
    from rlhf.feedback.store import Store

    if project.exists():
        with Store.open(project) as store:
            yield store
        return
    try:
        with Store.create(project, settings) as store:
            yield store
    except BaseException:
        for file in (project, *(project.with_name(project.name + end) for end in ("-wal", "-shm"))):
            file.unlink(missing_ok=True)
        raise


def _print_summary(file: str, found: Sequence[tuple[int, str]], project: Path, added: Added) -> None:
    print(f"{file}: {', '.join(_number(count, name) for count, name in found if count)}")
    new = [(added.items, "item"), (added.votes, "vote"), (added.thumbs, "thumb"), (added.raters, "rater")]
    print(f"{project}: {', '.join(_number(count, name) for count, name in new if count) or 'nothing'} added")


def _number(count: int, name: str) -> str:
    return f"{count:,} {name}{'s' * (count != 1)}"


def _print_unused(feedback: Feedback) -> None:
    """The rows and votes that are unusable, by reason, with their first lines."""
    from rlhf.data.report import describe_bad

    if feedback.bad:
        print(f"not used: {len(feedback.bad):,}\n{describe_bad(feedback.bad)}")
    for remark in feedback.remarks:
        print(f"  {remark}")


def export(
    project: Project,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="JSONL file to write")],
    format: Annotated[
        ExportFormat,
        typer.Option(
            help="native: all of a project, to import again; trl: preferences; trl-unpaired: thumbs, both-bad answers"
        ),
    ] = "native",
    aggregation: Annotated[
        Aggregation | None, typer.Option(help="how votes become preferences (default: majority)")
    ] = None,
    ties: Annotated[TieRule | None, typer.Option(help="what becomes of ties (default: drop)")] = None,
) -> None:
    """Write a project to a file: whole, or as rows to train on.

    Raises:
        UserError: the file exists, or the project cannot be read, or an option has no effect.
    """
    from rlhf.errors import UserError

    if format != "trl" and (aggregation or ties):
        what = "--aggregation" if aggregation else "--ties"
        raise UserError(
            f"{what} has no effect with --format {format}", "only preferences are aggregated", "leave it out"
        )
    _require_new(out)
    count = _write(out, _rows(project, format, aggregation, ties))
    print(f"{out}: {_number(count, 'line')}")


def _rows(project: Path, format: str, aggregation: str | None, ties: str | None) -> Iterator[Mapping[str, Any]]:
    from rlhf.feedback.aggregate import Ties
    from rlhf.feedback.native import project_rows
    from rlhf.feedback.project import DEFAULT_RULE, aggregate, describe_votes
    from rlhf.feedback.snapshot import read_snapshot
    from rlhf.feedback.store import Store
    from rlhf.feedback.training_rows import labelled_rows, preference_rows

    if format == "native":
        with Store.open(project) as store:
            yield from project_rows(store)
        return
    snapshot = read_snapshot(project)
    if format == "trl-unpaired":
        yield from labelled_rows(snapshot)
        return
    rule, how = aggregation or DEFAULT_RULE, Ties(ties or Ties.DROP)
    aggregated = aggregate(snapshot, rule, how)
    print("\n".join(describe_votes(snapshot, aggregated, rule, how)))
    yield from preference_rows(snapshot, aggregated, rule)


def _write(out: Path, rows: Iterator[Mapping[str, Any]]) -> int:
    """Write rows, and return their number. The file appears when it is whole."""
    from rlhf.storage.durable import sync
    from rlhf.storage.jsonl import to_line

    partial, count = out.with_name(out.name + ".partial"), 0
    try:
        with partial.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(to_line(row))
                count += 1
        sync(partial)
        partial.rename(out)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return count


def _require_new(out: Path) -> None:
    from rlhf.errors import UserError

    if out.exists():
        raise UserError(f"{out} exists", "nothing is overwritten", "choose another name, or remove the file")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        why = f"{out.parent} is no folder that you can write"
        raise UserError(f"{out} cannot be written", why, "name a file in an existing folder")


COMMANDS: Mapping[str, tuple[Callable[..., int | None], str, str]] = {
    "import": (
        import_,
        "add votes or thumbs from a file",
        "rlhf feedback import votes.db comparisons.jsonl --format label-studio",
    ),
    "export": (
        export,
        "write a project, or its training rows, to a file",
        "rlhf feedback export votes.db preferences.jsonl --format trl --aggregation dawid_skene",
    ),
}
"""Function, purpose and example of each command, by name."""
