"""``rlhf registry``: registers artefacts, promotes them by gates, rolls back, and shows the audit."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

import launch.registry.card
from launch.hashing import shown_hashing
from rlhf.errors import UserError

PURPOSE = "bring artefacts through shadow and canary to production, and back"
EXAMPLE = "rlhf registry list registry.db"

RegistryPath = Annotated[Path, typer.Argument(metavar="REGISTRY.db", help="the registry's file")]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="an artefact's version, or digest")]
Why = Annotated[str, typer.Option(metavar="TEXT", help="the reason, for the audit")]
Who = Annotated[str | None, typer.Option(metavar="NAME", help="for the audit; by default the user's login name")]
Operation = Annotated[
    str, typer.Option(metavar="KEY", help="a key of your choice: the command given again with it changes nothing")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
StepName = Literal["shadow", "canary", "production"]


def register(
    registry: RegistryPath,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="a new short name, such as travel-3")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="a model folder with *.safetensors")],
    why: Why,
    who: Who = None,
    operation: Operation = "",
) -> None:
    """Add a candidate; creates the registry if there is none.

    Raises:
        UserError: the folder is no model, or is registered otherwise.
    """
    from rlhf.serving.artefact import require_model
    from rlhf.serving.registry import Registry

    require_model(folder.expanduser())  # a wrong folder creates no registry
    with Registry.open_or_create(registry) as opened, shown_hashing() as opened.hashing:
        made = opened.register(version, folder, who=_name(who), why=why, operation=operation)
    print(f"{made.version} is a {made.stage}: {made.digest}")


def list_artefacts(registry: RegistryPath, as_json: AsJson = False) -> None:
    """Print all artefacts with their stages."""
    from launch.gate.show import show_table
    from rlhf.serving.gate_report import GateTable
    from rlhf.serving.registry import Registry

    with Registry(registry) as opened:
        ledger = opened.ledger()
    if as_json:
        rows = [{**asdict(each), "folder": str(each.folder)} for each in ledger.artefacts.values()]
        print(json.dumps({"artefacts": rows, "revision": len(ledger.entries)}, indent=1))
        return
    cells = tuple(
        (each.version, str(each.stage), each.digest[:12], _time(each.registered), str(each.folder))
        for each in ledger.artefacts.values()
    )
    table = GateTable(columns=("version", "stage", "digest", "registered (UTC)", "folder"), rows=cells)
    show_table(str(registry), table, sys.stdout)


def show(
    registry: RegistryPath,
    version: Version,
    verify: Annotated[bool, typer.Option("--verify", help="hash its files again; exit 2 if they have changed")] = False,
) -> None:
    """Print one artefact and what happened to it.

    Raises:
        UserError: there is no such artefact, or its files have changed.
    """
    from rlhf.serving.registry import Registry

    with Registry(registry) as opened, shown_hashing() as opened.hashing:
        found = opened.verify(version) if verify else opened.artefact(version)
        entries = [entry for entry in opened.audit() if found.version in (entry.version, entry.replaces)]
    rows = {"version": found.version, "stage": found.stage, "digest": found.digest, "folder": found.folder}
    rows |= {"registered": _time(found.registered)} | ({"files": "as registered"} if verify else {})
    print("\n".join(f"{name:<12}{value}" for name, value in rows.items()))
    for entry in entries:
        _print_entry(entry)


def promote(
    registry: RegistryPath,
    version: Version,
    to: Annotated[StepName, typer.Option(help="the next stage")],
    gate: Annotated[Path, typer.Option(metavar="gate.json", help="the passed gate of this step")],
    why: Why,
    who: Who = None,
    operation: Operation = "",
) -> None:
    """Move an artefact one step on.

    Raises:
        UserError: the step or the gate does not allow it, or files have changed.
    """
    from rlhf.serving.artefact import ServingStage
    from rlhf.serving.gate_result import read_gate_result
    from rlhf.serving.registry import Registry

    result = read_gate_result(gate.expanduser())
    with Registry(registry) as opened, shown_hashing() as opened.hashing:
        found = opened.promote(version, ServingStage(to), result, who=_name(who), why=why, operation=operation)
    print(f"{found.version} is in {found.stage}")


def rollback(
    registry: RegistryPath,
    why: Why,
    to: Annotated[
        str | None,
        typer.Option(metavar="DIGEST", help="of what was in production; by default the last one"),
    ] = None,
    who: Who = None,
    operation: Operation = "",
) -> None:
    """Return an earlier artefact to production; the present one is withdrawn.

    Raises:
        UserError: there is none, or its files have changed.
    """
    from rlhf.serving.registry import Registry

    with Registry(registry) as opened, shown_hashing() as opened.hashing:
        found = opened.roll_back(who=_name(who), why=why, to_digest=to, operation=operation)
    print(f"{found.version} is in {found.stage}: {found.digest}")


def withdraw(registry: RegistryPath, version: Version, why: Why, who: Who = None, operation: Operation = "") -> None:
    """Take a candidate, a shadow or a canary out.

    Raises:
        UserError: it is or was in production.
    """
    from rlhf.serving.registry import Registry

    with Registry(registry) as opened:
        found = opened.withdraw(version, who=_name(who), why=why, operation=operation)
    print(f"{found.version} is {found.stage}")


def audit(
    registry: RegistryPath,
    as_json: AsJson = False,
    expect: Annotated[
        str | None, typer.Option(metavar="HASH", help="a hash noted earlier; exit 1 if no entry has it")
    ] = None,
) -> int:
    """Verify the chain and print all entries, oldest first; returns 1 if an expected hash is not in it.

    Raises:
        RegistryDamaged: the chain is broken.
    """
    from rlhf.serving.registry import Registry

    with Registry(registry) as opened:
        ledger = opened.ledger()
    for entry in ledger.entries:
        if as_json:
            print(json.dumps(asdict(entry)))
        else:
            _print_entry(entry)
    if not as_json:
        print(f"{len(ledger.entries):,} entries, the chain is whole; hash of the last one: {ledger.head}")
    if expect is not None and all(entry.hash != expect for entry in ledger.entries):
        print(f"no entry has the hash {expect}: the audit was rewritten, or is another one's", file=sys.stderr)
        return 1
    return 0


def _print_entry(entry: object) -> None:
    from rlhf.serving.audit_chain import RegistryEntry
    from rlhf.tracking.console import one_line

    assert isinstance(entry, RegistryEntry)
    gate = f", gate {entry.gate[:12]}" if entry.gate else ""
    replaced = f", instead of {entry.replaces}" if entry.replaces else ""
    what = f"{entry.action} {entry.version} → {entry.stage}{replaced}{gate}"
    print(f"{entry.number:>4}  {_time(entry.time)}  {one_line(entry.who)}  {what}: {one_line(entry.why)}")


def _name(who: str | None) -> str:
    if who is not None:
        return who
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:
        raise UserError("this user has no name", "the audit says who did what", "--who NAME") from error


def _time(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


COMMANDS: Mapping[str, tuple[Callable[..., int | None], str, str]] = {
    "register": (
        register,
        "add a model folder as a candidate",
        'rlhf registry register registry.db travel-3 runs/quickstart/ppo/model --why "third round"',
    ),
    "list": (list_artefacts, "print all artefacts with their stages", EXAMPLE),
    "show": (show, "print one artefact and its history", "rlhf registry show registry.db travel-3 --verify"),
    "promote": (
        promote,
        "move an artefact one step on, by a passed gate",
        'rlhf registry promote registry.db travel-3 --to shadow --gate gates/travel-3/gate.json --why "gate passed"',
    ),
    "rollback": (
        rollback,
        "return an earlier artefact to production",
        'rlhf registry rollback registry.db --why "complaints about prices"',
    ),
    "withdraw": (
        withdraw,
        "take an artefact out before production",
        'rlhf registry withdraw registry.db travel-3 --why "too slow"',
    ),
    "audit": (audit, "verify and print who did what, when and why", "rlhf registry audit registry.db"),
    "card": (launch.registry.card.run, launch.registry.card.PURPOSE, launch.registry.card.EXAMPLE),
}
"""Function, purpose and example of each command."""
