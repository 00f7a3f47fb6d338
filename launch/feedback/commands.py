"""``rlhf feedback``: makes a project, serves its labelling page, and manages raters and guidelines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

import launch.feedback.learning_report
import launch.feedback.round
import launch.feedback.sample
import launch.feedback.transfer

if TYPE_CHECKING:
    from launch.feedback.status_tables import Table

PURPOSE = "collect people's judgements of answers"
EXAMPLE = "rlhf feedback init votes.db"

Project = Annotated[Path, typer.Argument(metavar="PROJECT.db", help="the project's file")]
Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="a rater's alias, such as rater-07; never a name")]
RoleName = Literal["rater", "adjudicator", "admin", "service"]
DAY = 24 * 3600.0
LONGEST_DAYS = 3650.0


def init(
    project: Project,
    guidelines: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Markdown that raters read before they vote")
    ] = None,
    overlap: Annotated[int, typer.Option(help="raters who judge each item")] = 3,
    calibration: Annotated[int, typer.Option(help="calibration items that a rater judges first")] = 0,
) -> None:
    """Create a project.

    Raises:
        UserError: the file exists, or the guidelines cannot be used.
    """
    from rlhf.feedback.settings import ProjectSettings
    from rlhf.feedback.store import Store

    settings = ProjectSettings(overlap=overlap, calibration_items=calibration)
    text = _read_guidelines(guidelines) if guidelines else None
    with Store.create(project, settings) as store:
        if text is not None:
            store.add_guideline(text)
    print(project)


def serve(
    project: Project,
    allow_host: Annotated[
        list[str],
        typer.Option(
            default_factory=list, show_default=False, metavar="NAME", help="host name of the page, as raters type it"
        ),
    ],
    trusted_proxy: Annotated[
        list[str],
        typer.Option(
            default_factory=list, show_default=False, metavar="ADDRESS", help="proxy whose X-Forwarded-* is believed"
        ),
    ],
    host: Annotated[str, typer.Option(help="address to listen at")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen at")] = 8450,
    root_path: Annotated[str, typer.Option(metavar="/PATH", help="path under which a proxy serves the page")] = "",
) -> None:
    """Serve the labelling page until it is stopped.

    Raises:
        UserError: the project or the address cannot be used.
    """
    from launch.feedback.serve import Address
    from launch.feedback.serve import serve as run
    from rlhf.feedback.store import Store

    address = Address(
        host=host, port=port, allowed_hosts=allow_host, root_path=root_path, trusted_proxies=trusted_proxy
    )
    with Store.open(project) as store:
        run(store, address)


def token(
    project: Project,
    alias: Alias,
    role: Annotated[RoleName, typer.Option(help="what the link permits")] = "rater",
    days: Annotated[float, typer.Option(help="days until the link expires")] = 30.0,
    url: Annotated[str, typer.Option(metavar="URL", help="address of the page")] = "http://127.0.0.1:8450",
) -> None:
    """Print a link for an alias, which replaces an earlier one; a new rater is added.

    Raises:
        UserError: the alias has another role, or is malformed.
    """
    from rlhf.errors import UserError
    from rlhf.feedback.access import AccessRole, issue_token
    from rlhf.feedback.store import Store

    if not 0 < days <= LONGEST_DAYS:
        why = "a link must be valid for some time, and expire"
        raise UserError(f"--days is {days:g}", why, f"give a number above 0, and up to {LONGEST_DAYS:g}")
    with Store.open(project) as store:
        if role in ("rater", "adjudicator"):
            store.add_rater(alias, is_adjudicator=role == "adjudicator")
        made = issue_token(store, alias, AccessRole(role), seconds=days * DAY, now=time.time())
    print(made if role == "service" else f"{url.rstrip('/')}/enter?token={made}")


def guidelines(project: Project, file: Annotated[Path, typer.Argument(metavar="FILE", help="Markdown")]) -> None:
    """Add a version of the guidelines, which raters acknowledge before their next vote.

    Raises:
        UserError: the file cannot be read, is empty, or has a malformed example.
    """
    from rlhf.feedback.store import Store

    text = _read_guidelines(file)
    with Store.open(project) as store:
        print(f"version {store.add_guideline(text)}")


def _read_guidelines(file: Path) -> str:
    from launch.feedback.examples import check_guidelines
    from rlhf.errors import UserError

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}", str(error), "give a Markdown file in UTF-8") from error
    check_guidelines(text, str(file))
    return text


def checks(
    project: Project,
    file: Annotated[str, typer.Argument(metavar="FILE", help="rows with prompt, chosen, rejected, explanation")],
    purpose: Annotated[
        Literal["gold", "calibration"], typer.Option(help="shown silently among the others, or first and explained")
    ] = "gold",
) -> None:
    """Add items whose better answer is known.

    Raises:
        UserError: the project or the file cannot be used.
    """
    from rlhf.feedback.known_items import read_known_items
    from rlhf.feedback.records import Purpose
    from rlhf.feedback.store import Store

    with Store.open(project) as store:
        items = read_known_items(file, Purpose(purpose))
        added = store.add_items(items)
        count = store.settings.calibration_items
    print(f"{project}: {added} {purpose} items added of {len(items)} in {file}")
    if purpose == "calibration" and count == 0:
        print(f"raters see none of them yet: rlhf feedback settings {project} calibration_items={len(items)}")


def settings(
    project: Project,
    values: Annotated[
        list[str] | None, typer.Argument(metavar="name=value", help="settings to change, such as overlap=2")
    ] = None,
) -> None:
    """Change settings of a project, and print all of them.

    Raises:
        UserError: there is no such setting, or a value is outside its range.
    """
    from dataclasses import asdict, replace

    import yaml

    from rlhf.feedback.settings import ProjectSettings, parse_settings
    from rlhf.feedback.store import Store

    with Store.open(project) as store:
        current: ProjectSettings = store.settings
        if values:
            current = replace(current, **parse_settings(values))
            store.set_settings(current)
    print(yaml.safe_dump({name: _plain(value) for name, value in asdict(current).items()}, sort_keys=False).strip())


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, str) else value


def suspend(
    project: Project, alias: Alias, reason: Annotated[str, typer.Option(help="why, for the record")] = ""
) -> None:
    """Suspend a rater: the votes are kept, marked, and replaced by other raters' votes.

    Raises:
        UserError: there is no such rater.
    """
    from rlhf.feedback.store import Store

    with Store.open(project) as store:
        store.suspend(alias, reason)
    print(f"{alias} is suspended")


def reinstate(project: Project, alias: Alias) -> None:
    """End a rater's suspension.

    Raises:
        UserError: there is no such rater.
    """
    from rlhf.feedback.store import Store

    with Store.open(project) as store:
        store.reinstate(alias)
    print(f"{alias} is reinstated")


def delete_rater(
    project: Project,
    alias: Alias,
    yes: Annotated[bool, typer.Option("--yes", help="delete without a question")] = False,
) -> None:
    """Delete a rater with all votes and comments; backups and exports made before keep them.

    Raises:
        UserError: there is no such rater, or the deletion is not confirmed.
    """
    from rlhf.errors import UserError
    from rlhf.feedback.store import Store

    if not yes:
        raise UserError(f"{alias} is not deleted", "the votes cannot be restored", "repeat the command with --yes")
    with Store.open(project) as store:
        print(f"{alias} is deleted, with {store.delete_rater(alias)} votes")


def backup(project: Project, file: Annotated[Path, typer.Argument(metavar="FILE", help="file to write")]) -> None:
    """Copy a project while it is served.

    Raises:
        UserError: the file exists or cannot be written.
    """
    from rlhf.feedback.store import Store

    with Store.open(project) as store:
        store.backup(file)
    print(file)


def status(
    project: Project, is_json: Annotated[bool, typer.Option("--json", help="as JSON, as /status.json gives it")] = False
) -> None:
    """Print progress, raters, agreement and flags.

    Raises:
        UserError: there is no such project.
    """
    from launch.feedback.quality_tables import quality_tables
    from launch.feedback.status_tables import as_json, read_status
    from rlhf.feedback.store import Store

    with Store.open(project) as store:
        tables = read_status(store, [quality_tables])
    if is_json:
        print(json.dumps(as_json(tables), ensure_ascii=False, indent=1))
    else:
        _print_tables(tables)


def _print_tables(tables: list[Table]) -> None:
    from launch.feedback.render import format_cell
    from rlhf.tracking.console import one_line

    for table in tables:
        rows = [[one_line(format_cell(cell)) for cell in row] for row in (table.columns, *table.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        print(f"{table.title}\n" + "".join(f"  {_align(row, widths)}\n" for row in rows))


def _align(row: list[str], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


COMMANDS: Mapping[str, tuple[Callable[..., int | None], str, str]] = {
    "init": (init, "create a project", "rlhf feedback init votes.db --guidelines guidelines.md --overlap 3"),
    "settings": (settings, "show or change a project's settings", "rlhf feedback settings votes.db overlap=2"),
    "guidelines": (guidelines, "add a version of the guidelines", "rlhf feedback guidelines votes.db guidelines.md"),
    "checks": (
        checks,
        "add gold or calibration items, whose better answer is known",
        "rlhf feedback checks votes.db gold.jsonl --purpose gold",
    ),
    "sample": (launch.feedback.sample.run, launch.feedback.sample.PURPOSE, launch.feedback.sample.EXAMPLE),
    "token": (token, "print a link for a rater", "rlhf feedback token votes.db rater-07 --days 14"),
    "serve": (serve, "serve the labelling page", "rlhf feedback serve votes.db"),
    "status": (status, "print progress, raters, agreement and flags", "rlhf feedback status votes.db --json"),
    "suspend": (suspend, "suspend a rater", 'rlhf feedback suspend votes.db rater-07 --reason "votes too fast"'),
    "reinstate": (reinstate, "end a rater's suspension", "rlhf feedback reinstate votes.db rater-07"),
    "delete-rater": (
        delete_rater,
        "delete a rater with all votes and comments",
        "rlhf feedback delete-rater votes.db rater-07 --yes",
    ),
    "round": (launch.feedback.round.run, launch.feedback.round.PURPOSE, launch.feedback.round.EXAMPLE),
    "report": (
        launch.feedback.learning_report.run,
        launch.feedback.learning_report.PURPOSE,
        launch.feedback.learning_report.EXAMPLE,
    ),
    "backup": (backup, "copy a project while it is served", "rlhf feedback backup votes.db votes-backup.db"),
    **launch.feedback.transfer.COMMANDS,
}
"""Function, purpose and example of each command, by name."""
