"""A model card in the form of the Hugging Face Hub: front matter for programs, and sections for readers.

All texts of others are escaped: names of files, reasons, settings.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from rlhf.config.source import Dumper
from rlhf.secrets import without_secrets
from rlhf.serving.card_facts import CardFacts
from rlhf.serving.markdown import escape_markdown, markdown_table

NOT_GIVEN = "**Not stated.** Whoever publishes this model has to state it."
LONGEST_TEMPLATE = 20_000
"""Characters of a chat template that are shown."""


def write_card(facts: CardFacts) -> str:
    """The card as Markdown."""
    sections = (
        _front_matter(facts),
        f"# {escape_markdown(facts.artefact.version)}\n",
        _licence(facts),
        _intended_use(facts),
        _training(facts),
        _data(facts),
        _metrics(facts),
        _gates(facts),
        _template(facts),
    )
    return "\n".join(section for section in sections if section)


def _front_matter(facts: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        model_name=facts.artefact.version,
        license=facts.licence or "unknown",
        base_model=None if facts.base_model and Path(facts.base_model).expanduser().exists() else facts.base_model,
        language=list(facts.about.languages) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["rlhf", *([facts.stage] if facts.stage else [])],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _licence(facts: CardFacts) -> str:
    if facts.licence is None:
        text = (
            f"**THE LICENCE IS UNKNOWN: {escape_markdown(facts.licence_source)}.** Do not publish or sell this model "
            "before its licence is clear."
        )
    else:
        text = f"{escape_markdown(facts.licence)}, {escape_markdown(facts.licence_source)}."
    base = escape_markdown(facts.base_model) if facts.base_model else "none: random weights, or not known"
    return f"## Licence\n\n{text}\n\nBase model: {base}\n"


def _intended_use(facts: CardFacts) -> str:
    about = facts.about
    parts = [f"## Intended use\n\n{_text(about.intended_use)}\n", f"### Out of scope\n\n{_text(about.out_of_scope)}\n"]
    parts.append(f"### Limitations\n\n{_text(about.limitations)}\n")
    if about.contact:
        parts.append(f"Contact: {escape_markdown(about.contact)}\n")
    return "\n".join(parts)


def _text(value: str | None) -> str:
    return NOT_GIVEN if value is None else escape_markdown(value)


def _training(facts: CardFacts) -> str:
    head = f"## Training\n\nDigest of the files: `{facts.artefact.digest}`\n"
    if not facts.settings:
        return f"{head}\nNo run of this machine made these files, or they were changed since: nothing is known of it.\n"
    settings: dict[str, Any] = without_secrets(dict(facts.settings))
    names = ["model", "data", facts.stage, "algorithm"] if facts.stage == "ppo" else ["model", "data", facts.stage]
    shown = {name: settings[name] for name in names if name in settings}
    text = yaml.dump(shown, Dumper=Dumper, sort_keys=False, allow_unicode=True)
    run = escape_markdown(facts.settings.get("name", ""))
    return f"{head}\nRun {run}, stage {facts.stage}, with these settings:\n\n{_fenced(text, 'yaml')}"


def _data(facts: CardFacts) -> str:
    rows = [(stage, each.file, f"{each.rows:,}", each.digest) for stage, files in facts.data.items() for each in files]
    if not rows:
        return "## Data\n\nNot recorded.\n"
    return f"## Data\n\n{markdown_table(('stage', 'file', 'rows', 'digest (BLAKE2b)'), rows)}"


def _metrics(facts: CardFacts) -> str:
    if not facts.metrics:
        return ""
    rows = [(name, f"{value:.6g}" if isinstance(value, float) else value) for name, value in facts.metrics.items()]
    return f"## Metrics of the training\n\n{markdown_table(('metric', 'value'), rows)}"


def _gates(facts: CardFacts) -> str:
    parts = [f"## On the way to production\n\nStage now: {facts.artefact.stage}\n"]
    rows = []
    for entry in facts.entries:
        when = datetime.fromtimestamp(entry.time, UTC).strftime("%Y-%m-%d %H:%M")
        rows.append((when, entry.action, entry.version, entry.stage, entry.who, entry.why, entry.gate[:12] or "-"))
    head = ("when (UTC)", "action", "version", "stage", "who", "why", "gate")
    parts.append(markdown_table(head, rows))
    for entry in facts.entries:
        if entry.action == "promote" and entry.version == facts.artefact.version:
            lines = entry.detail.get("summary", ())
            parts.append(f"Gate for {entry.stage}, digest `{entry.gate}`:\n")
            parts.append("\n".join(f"- {escape_markdown(line)}" for line in lines) + "\n")
    return "\n".join(parts)


def _template(facts: CardFacts) -> str:
    if not facts.template:
        return "## Chat template\n\nThe model has none.\n"
    return f"## Chat template\n\n{_fenced(facts.template[:LONGEST_TEMPLATE], 'jinja')}"


def _fenced(text: str, language: str) -> str:
    """A block of code whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"
