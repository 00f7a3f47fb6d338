"""``rlhf registry card``: the model card of an artefact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlhf.errors import UserError

PURPOSE = "write the model card of an artefact"
EXAMPLE = "rlhf registry card registry.db travel-3 --about card.yaml --out travel-3.md"


def run(
    registry: Annotated[Path, typer.Argument(metavar="REGISTRY.db", help="the registry's file")],
    version: Annotated[str, typer.Argument(metavar="VERSION", help="an artefact's version, or digest")],
    about: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="licence, intended use, limits; see docs/production.md")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.md", help="by default the card is printed")] = None,
) -> None:
    """Write a card from the artefact's run, its gates and the registry.

    Raises:
        UserError: there is no such artefact, or its run or the settings cannot be read.
    """
    from launch.options import writable
    from rlhf.serving.card_facts import load_about, read_facts
    from rlhf.serving.model_card import write_card
    from rlhf.serving.registry import Registry
    from rlhf.storage.durable import write_atomically

    place = None if out is None else writable(out)
    with Registry(registry) as opened:
        artefact = opened.artefact(version)
        entries = opened.audit()
    if place is not None and place.resolve().is_relative_to(artefact.folder):
        what = f"--out {out} lies in the artefact's folder"
        raise UserError(what, "a new file there would change its digest", "write the card elsewhere")
    facts = read_facts(artefact, entries, load_about(about))
    card = write_card(facts)
    if place is None:
        print(card, end="")
        return
    write_atomically(place, card)
    if facts.licence is None:
        print("the licence of the base model is not known: set licence in the file of --about")
    print(f"→ {place}")
