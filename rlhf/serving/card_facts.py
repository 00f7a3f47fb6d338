"""The facts of a model card: from the artefact's run, the registry's audit, and a file of what no run knows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import StrictStr

from rlhf.checkpoints.manifest import file_entries
from rlhf.config.fields import Texts, section
from rlhf.config.plain_file import validate_settings
from rlhf.config.source import read_source
from rlhf.errors import UserError
from rlhf.records import DataFile
from rlhf.serving.artefact import Artefact
from rlhf.serving.audit_chain import RegistryEntry
from rlhf.tracking.run_folder import MODEL, RunFolder

STAGES = ("sft", "reward", "dpo", "ppo")


@section
class CardSettings:
    """What a run does not know of its model."""

    licence: StrictStr | None = None
    """Licence of this model, by its identifier (``apache-2.0``); by default the base model's."""
    intended_use: StrictStr | None = None
    out_of_scope: StrictStr | None = None
    """Uses for which the model is not meant."""
    limitations: StrictStr | None = None
    contact: StrictStr | None = None
    languages: Texts = ()
    """Codes of languages: ``en``."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """All that a card says."""

    artefact: Artefact
    about: CardSettings
    licence: str | None
    """None: unknown."""
    licence_source: str
    base_model: str | None
    """None for a randomly initialised model, or without a run."""
    run: str
    """Folder of the stage that made the files; empty if they were not made by a run, or were changed since."""
    settings: Mapping[str, Any]
    """The run's resolved recipe, as it is on disk: an earlier version may have had other keys."""
    stage: str
    data: Mapping[str, tuple[DataFile, ...]]
    """Stage → its data files."""
    metrics: Mapping[str, float | str]
    """The stage's summary."""
    template: str | None
    """The chat template."""
    entries: tuple[RegistryEntry, ...]
    """What happened to the artefact, oldest first."""


def load_about(path: Path | None) -> CardSettings:
    """Read the file of ``--about``.

    Raises:
        UserError: lists what is wrong with it.
    """
    if path is None:
        return CardSettings()
    settings = read_source(path, (), "model card").settings
    return validate_settings(CardSettings, settings, file=str(path), subject="model card", page="docs/production.md")


def read_facts(artefact: Artefact, entries: Sequence[RegistryEntry], about: CardSettings) -> CardFacts:
    """Collect the facts.

    Raises:
        UserError: the run's files are damaged.
    """
    own = tuple(entry for entry in entries if artefact.version in (entry.version, entry.replaces))
    run = _run_of(artefact, own)
    settings = read_source(run.config, ()).settings if run is not None else {}
    model = settings.get("model")
    base = model.get("path") if isinstance(model, dict) else None
    licence, source = _licence(about, base, is_scratch=run is not None and base is None)
    return CardFacts(
        artefact=artefact,
        about=about,
        licence=licence,
        licence_source=source,
        base_model=base,
        run=str(run.path) if run is not None else "",
        settings=settings,
        stage=run.stage if run is not None else "",
        data={} if run is None else _data_of(run.root),
        metrics={} if run is None else _numbers(run.read_summary()),
        template=_template(artefact.folder),
        entries=own,
    )


def _run_of(artefact: Artefact, entries: Sequence[RegistryEntry]) -> RunFolder | None:
    """The finished stage that wrote exactly the registered files."""
    folder = artefact.folder
    if folder.name != MODEL or folder.parent.name not in STAGES:
        return None
    run = RunFolder(folder.parent.parent, folder.parent.name)
    registered = next(entry for entry in reversed(entries) if entry.action == "register")
    made = {entry.name: entry for entry in run.finished_model()}
    now = {entry.name: entry for entry in file_entries(registered.detail["files"])}
    return run if made and made == now else None


def _data_of(root: Path) -> dict[str, tuple[DataFile, ...]]:
    """Data files of all finished stages of a run: the reward model's data made the policy, too."""
    found = {stage: RunFolder(root, stage).finished_data() for stage in STAGES}
    return {stage: files for stage, files in found.items() if files}


def _numbers(summary: Mapping[str, Any]) -> dict[str, float | str]:
    return {str(name): value for name, value in summary.items() if isinstance(value, int | float | str)}


def _template(folder: Path) -> str | None:
    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    if settings.is_file():
        try:
            found = json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
        except (ValueError, AttributeError, RecursionError) as error:
            raise UserError(f"{settings} is not JSON", fix="restore the file") from error
        return found if isinstance(found, str) else None
    return None


def _licence(about: CardSettings, base: str | None, is_scratch: bool) -> tuple[str | None, str]:
    """The licence, and where it was found."""
    if about.licence is not None:
        return about.licence, "given by the publisher"
    if is_scratch:
        return None, "the model is trained from random weights; its publisher has named no licence"
    if base is None:
        return None, "the base model is not known"
    folder = Path(base).expanduser()
    found = _licence_of(folder) if folder.is_dir() else None
    if found is not None:
        return found, "the licence of the base model"
    return None, f"{base} names none that could be read here"


def _licence_of(folder: Path) -> str | None:
    """``license`` in the front matter of a README, or in config.json."""
    from huggingface_hub import ModelCard

    readme, config = folder / "README.md", folder / "config.json"
    if readme.is_file():
        try:
            found = ModelCard(readme.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.get("license")
        except ValueError:  # a front matter that is no YAML
            found = None
        if isinstance(found, str):
            return found
    if config.is_file():
        try:
            found = json.loads(config.read_text(encoding="utf-8")).get("license")
        except (ValueError, AttributeError, RecursionError):
            return None
        return found if isinstance(found, str) else None
    return None
