"""The way of a model to its users: offline values, ``rlhf gate`` and ``rlhf registry``, as a person would type them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from examples.travel.demo.place import DemoPlace, Result, write_rows
from examples.travel.demo.users import is_content
from examples.travel.guideline import fact

GATES = Path(__file__).with_name("gates")
WHO = "release-manager"
DECIDED = (0, 1, 4)
"""Exit codes of a gate that decided: pass, fail, inconclusive."""


def value_rows(
    prompts: Sequence[str], candidate: Sequence[str], production: Sequence[str] | None, demand: float
) -> list[Result]:
    """The gate's values by item: a person's verdict on each answer, and whether it states the fact asked for.

    Raises:
        UserError: a prompt is not one of this example's.
    """
    arms = {"candidate": candidate} | ({} if production is None else {"production": production})
    rows: list[Result] = []
    for number, prompt in enumerate(prompts):
        given = {arm: answers[number] for arm, answers in arms.items()}
        verdicts = {arm: int(is_content(prompt, text, demand, f"{number} {text}")) for arm, text in given.items()}
        facts = {arm: int(fact([prompt], [text])[0]) for arm, text in given.items()}
        rows += [{"metric": "helpful", "item": number, **verdicts}, {"metric": "fact", "item": number, **facts}]
    return rows


def register(place: DemoPlace, state: Path, version: str, folder: Path, why: str) -> None:
    """Add a model to the registry, as a candidate."""
    place.rlhf(
        f"rlhf registry register {version}",
        *("registry", "register", state / "registry.db", version, folder, "--why", why, "--who", WHO),
    )


def decide(place: DemoPlace, state: Path, gate: str, version: str, results: Path, *settings: str) -> Result:
    """Run a gate on a file of results; returns its decision, whatever it is."""
    for_stage = next((text.removeprefix("for=") for text in settings if text.startswith("for=")), gate)
    folder = state / "gates" / f"{version}-{for_stage}"
    file, registry = GATES / f"{gate}.yaml", state / "registry.db"
    words: list[str | Path] = [file, *settings, "--results", results, "--registry", registry, "--artefact", version]
    place.rlhf(f"rlhf gate, may {version} go to {for_stage}?", "gate", *words, "--out", folder, expect=DECIDED)
    content = json.loads((folder / "gate.json").read_text(encoding="utf-8"))
    print(f"   {content['outcome']}: {'; '.join(content['summary'])}", flush=True)
    kept = ("for", "outcome", "version", "summary", "digest")
    return {**{key: content[key] for key in kept}, "file": str(folder / "gate.json")}


def promote(place: DemoPlace, state: Path, version: str, decision: Result) -> None:
    """Move a version one step on."""
    place.rlhf(
        f"rlhf registry promote {version} --to {decision['for']}",
        *("registry", "promote", state / "registry.db", version, "--to", decision["for"]),
        *("--gate", decision["file"], "--why", "gate passed", "--who", WHO),
    )


def refuse_stale(place: DemoPlace, state: Path, version: str, decision: Result) -> str:
    """Try to promote a version with the decision on another one; returns the refusal.

    Raises:
        MachineryError: it was not refused.
    """
    log = state / "refused.txt"
    place.rlhf(
        f"rlhf registry promote {version}, with the gate of {decision['version']}",
        *("registry", "promote", state / "registry.db", version, "--to", decision["for"]),
        *("--gate", decision["file"], "--why", "measured last week", "--who", WHO),
        expect=(2,),
        log=log,
    )
    return log.read_text(encoding="utf-8").strip()


def write_values(state: Path, label: str, rows: list[Result]) -> Path:
    """A file of values for a gate."""
    return write_rows(state / "results" / f"{label}.jsonl", rows)
