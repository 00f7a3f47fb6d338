"""The file of a gate: which numbers decide, against which bar, and with which certainty."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import StrictStr, model_validator

from rlhf.config.fields import Count, Number, OpenFraction, PartName, Texts, refuse, section
from rlhf.config.plain_file import validate_settings
from rlhf.config.source import read_source
from rlhf.errors import UserError

PAGE = "docs/production.md"


class DecidedBy(StrEnum):
    """What a KPI is compared with."""

    ABSOLUTE = "absolute"
    """A fixed number, ``threshold``."""
    NON_INFERIORITY = "non_inferiority"
    """Production: not worse by ``margin`` or more."""
    SUPERIORITY = "superiority"
    """Production: better by more than ``margin``."""


@section
class KpiConfig:
    """One number that decides."""

    metric: StrictStr | None = None
    """Its name in the results; by default the KPI's own name."""
    direction: Literal["higher", "lower"] = "higher"
    """Which values are better."""
    decided_by: DecidedBy = DecidedBy.ABSOLUTE
    threshold: Number | None = None
    """For ``absolute``: the mean must be above it, or below it for ``lower``."""
    margin: Number | None = None
    """For the other two, in the metric's unit; 0 by default for ``superiority``."""
    minimum_n: Count = 30
    """Independent units (prompts, requests; of each arm where arms have their own) below which nothing is decided."""
    confidence: OpenFraction | None = None
    """By default the gate's."""
    range: tuple[Number, Number] | None = None
    """Lowest and highest value that is possible. Needed for ``sequential``, except for counts and values of 0 and 1."""

    @model_validator(mode="after")
    def _validate(self) -> KpiConfig:
        refuse(_kpi_problems(self))
        return self

    @property
    def is_compared(self) -> bool:
        """Whether it is compared with production."""
        return self.decided_by is not DecidedBy.ABSOLUTE


@section
class CostConfig:
    """What the round cost; numbers, or where to read them."""

    rater_minutes: Number | None = None
    gpu_hours: Number | None = None
    judge_calls: Number | None = None
    feedback: StrictStr | None = None
    """A feedback project: minutes are summed over its votes."""
    runs: Texts = ()
    """Folders of stages (``runs/<name>/<stage>``): hours are summed over their steps, times ``gpus``."""
    gpus: Count = 1


@section
class GateConfig:
    """KPIs, and how they decide together."""

    for_stage: Literal["shadow", "canary", "production"]
    """The step that it guards; ``for`` in the file."""
    kpis: dict[PartName, KpiConfig]
    require: Literal["all", "any"] = "all"
    """``all``: every KPI must pass. ``any``: one is enough."""
    confidence: OpenFraction = 0.95
    """1 − the largest probability of a false decision."""
    correction: Literal["holm", "bonferroni", "none"] = "holm"
    """For the side on which one KPI of several decides: failing for ``all``, passing for ``any``."""
    looks: Literal["fixed", "sequential"] = "fixed"
    """``fixed``: one look. ``sequential``: as many as one likes, while data grow."""
    power: OpenFraction = 0.8
    """For the number of further samples."""
    candidate: StrictStr = "candidate"
    """The candidate's arm in reports of ``rlhf evaluate``."""
    production: StrictStr = "production"
    """Production's arm there."""
    results: Texts = ()
    """Files of results, relative to the gate's file; ``--results`` adds to them."""
    costs: CostConfig = field(default_factory=CostConfig)

    @model_validator(mode="after")
    def _validate(self) -> GateConfig:
        refuse(_gate_problems(self))
        return self

    def level(self, name: str) -> float:
        """Largest probability of a false decision on one KPI."""
        return 1 - (self.kpis[name].confidence or self.confidence)


def _kpi_problems(kpi: KpiConfig) -> Iterable[UserError]:
    if kpi.is_compared and kpi.threshold is not None:
        yield UserError("threshold has no effect on a comparison with production", fix="give a margin")
    if not kpi.is_compared and kpi.threshold is None:
        yield UserError("threshold is missing", "an absolute KPI is compared with it", "threshold: 0.9")
    if not kpi.is_compared and kpi.margin is not None:
        yield UserError("margin has no effect on an absolute KPI", fix="move the threshold")
    if kpi.margin is not None and kpi.margin < 0:
        yield UserError(f"margin = {kpi.margin:g}", "it is a distance, whatever the direction", "give a number from 0")
    if kpi.decided_by is DecidedBy.NON_INFERIORITY and not kpi.margin:
        why = "no data can show that a model is not worse at all"
        yield UserError("margin is missing", why, "give the largest loss that does not matter, as margin: 0.02")
    if kpi.range is not None and kpi.range[0] >= kpi.range[1]:
        yield UserError(f"range = {list(kpi.range)} is empty", fix="give the lowest value first")
    if kpi.confidence is not None and kpi.confidence < 0.5:
        yield UserError(f"confidence = {kpi.confidence:g}", "less than a coin's", "give 0.95")


def _gate_problems(gate: GateConfig) -> Iterable[UserError]:
    if not gate.kpis:
        yield UserError("kpis is empty", "a gate without numbers would always pass", "name a KPI")
    if gate.confidence < 0.5:
        yield UserError(f"confidence = {gate.confidence:g}", "less than a coin's", "give 0.95")
    if gate.candidate == gate.production:
        yield UserError("candidate and production are one arm", fix="name two")


def load_gate(path: Path, overrides: Sequence[str] = ()) -> GateConfig:
    """Read a gate; names of files in it are relative to its folder.

    Args:
        overrides: ``key.path=value``.

    Raises:
        UserError: lists what is wrong.
    """
    settings = dict(read_source(path, overrides, "gate").settings)
    if "for" in settings:  # a word of Python, which no field can have as its name
        settings["for_stage"] = settings.pop("for")
    elif "for_stage" not in settings:
        fix = "for: shadow, for: canary or for: production"
        raise UserError(f"{path}: for is missing", "each step to production has its own gate", fix)
    return validate_settings(GateConfig, _beside(settings, path), file=str(path), subject="gate", page=PAGE)


def _beside(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    folder = path.expanduser().parent

    def place(value: Any) -> Any:
        return str(folder / Path(value).expanduser()) if isinstance(value, str) else value

    placed = dict(settings)
    if isinstance(placed.get("results"), list):
        placed["results"] = [place(value) for value in placed["results"]]
    costs = placed.get("costs")
    if isinstance(costs, dict):
        costs = {**costs, **({"feedback": place(costs["feedback"])} if "feedback" in costs else {})}
        if isinstance(costs.get("runs"), list):
            costs["runs"] = [place(value) for value in costs["runs"]]
        placed["costs"] = costs
    return placed
