"""Fits the constants of the model of a step to measurements on this machine, and tests them on others.

A phase takes seconds for each of its calls and for each of its FLOPs or bytes. The counts are those of the plan
(``launch/plan``), for the busiest rank, at the mean length that was measured. The constants of a phase are fitted to
the model of 3M parameters at fixed lengths; the model of 25M and real lengths are held out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from scipy.optimize import nnls

from benchmarks.results import OURS, Results
from benchmarks.workload import SIZES, Workload, recipe
from launch.plan.members import PlannedRole, Shapes, members
from launch.plan.memory import size_of
from launch.plan.shapes import ModelShape, scratch_shape
from launch.plan.timing import forward_flops, token_flops, update_flops
from launch.plan.work import StepWork, batch_of
from rlhf.config.load import load_recipe
from rlhf.config.schema import ScratchConfig

FITTED = ("fixed-ppo", "fixed-grpo", "long-ppo")
HELD_OUT = ("real-ppo", "real-grpo", "25m-ppo")
PHASES = ("generate and score", "update", "publish", "other")
"""``other`` is the rest of a step: advantages, snapshots, reports."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Operations of a step: for each phase its calls, and its FLOPs or bytes."""

    calls: Mapping[str, float]
    size: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Constants:
    """Seconds of a phase by call, and by FLOP or byte; 0 where the measurements show no such part."""

    calls: Mapping[str, float]
    size: Mapping[str, float]

    def predict(self, counts: Counts) -> dict[str, float]:
        """Seconds of each phase, and of the whole ``step``."""
        parts = {p: self.calls[p] * counts.calls[p] + self.size[p] * counts.size[p] for p in PHASES}
        return {**parts, "step": sum(parts.values())}


def count(work: Workload, mean: float) -> Counts:
    """Count the operations of a step whose responses have a mean length of ``mean`` tokens.

    Engine and scoring roles share the cores, so their FLOPs add up; policy and critic update on a core each.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe(work, Path(folder), work.name, None, 1)), encoding="utf-8")
        loaded = load_recipe(path)
    shape = shape_of(work)
    roles = members(loaded, "ppo", Shapes(loaded, lambda path: shape))
    batch = replace(batch_of(loaded, "ppo", roles), response_tokens=round(mean))
    scores = sum(_score_flops(role, batch) for role in roles)
    trained = [update_flops(role, batch, loaded) for role in roles if role.trained]
    return Counts(
        calls={"generate and score": work.new, "update": batch.updates, "publish": 1, "other": 1},
        size={
            "generate and score": _generate_flops(shape, batch) + scores,
            "update": batch.updates * max(trained),
            "publish": size_of(work.dtype) * shape.parameters,
            "other": batch.samples * batch.length,
        },
    )


def _score_flops(role: PlannedRole, batch: StepWork) -> float:
    tokens, answers = batch.samples * batch.length, batch.samples * batch.response_tokens
    return forward_flops(role, tokens, batch.length, answers)


def _generate_flops(shape: ModelShape, batch: StepWork) -> float:
    return batch.samples * batch.length * token_flops(shape)


def shape_of(work: Workload) -> ModelShape:
    """The shape of the workload's models."""
    size = SIZES[work.size]
    return scratch_shape(
        ScratchConfig(
            hidden_size=size.hidden,
            intermediate_size=size.intermediate,
            layers=size.layers,
            heads=size.heads,
            vocab_size=size.vocabulary,
            max_length=512,
        )
    )


def measured_phases(results: Results, name: str) -> dict[str, float]:
    """Median seconds of each phase of this project on a workload, and of the whole ``step``."""
    entry = results.entries[name][OURS]
    known = {
        "generate and score": entry.median("generate") + entry.median("score"),
        "update": entry.median("update"),
        "publish": entry.median("publish"),
    }
    step = entry.median("step")
    return {**known, "other": max(0.0, step - sum(known.values())), "step": step}


def counts_of(results: Results, name: str) -> Counts:
    """Counts of a workload at its measured mean length."""
    work, entry = results.workloads[name], results.entries[name][OURS]
    return count(work, entry.median("tokens") / entry.median("samples"))


def fit(counts: Sequence[Counts], seconds: Sequence[Mapping[str, float]]) -> Constants:
    """Constants of least squared relative error, none below 0."""
    calls, size = dict[str, float](), dict[str, float]()
    for phase in PHASES:
        measured = np.array([max(each[phase], 1e-6) for each in seconds])
        columns = np.array([[c.calls[phase], c.size[phase]] for c in counts]) / measured[:, None]
        scale = np.abs(columns).max(axis=0)
        found = nnls(columns / scale, np.ones(len(measured)))[0] / scale
        calls[phase], size[phase] = map(float, found)
    return Constants(calls=calls, size=size)


def timed(results: Results, names: Sequence[str]) -> list[str]:
    """Those of these workloads on which this project was timed."""
    return [name for name in names if OURS in results.entries.get(name, {})]


def fit_results(results: Results) -> Constants | None:
    """The constants of a machine; None if fewer than two of the ``FITTED`` workloads were timed."""
    names = timed(results, FITTED)
    if len(names) < 2:
        return None
    return fit([counts_of(results, name) for name in names], [measured_phases(results, name) for name in names])
