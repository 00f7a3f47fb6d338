"""The results of a benchmark run as a JSON file, and the figures that follow from the steps."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contestants import SAME_FLOOR, Measured, Step
from benchmarks.workload import Workload

FOLDER = Path(__file__).with_name("results")
FLOOR, TRL, OURS = "floor", "TRL", "rlhf"
GIB = 2**30


@dataclass(kw_only=True)
class Entry:
    """All starts of one contestant on one workload."""

    steps: list[Step] = field(default_factory=list)
    peak_pss: list[int] = field(default_factory=list)
    """Bytes, one for each start."""
    controller_us_per_sample: list[float] = field(default_factory=list)
    """One for each start that measured it."""

    def add(self, measured: Measured) -> None:
        """Add one start."""
        self.steps += measured.steps
        self.peak_pss.append(measured.peak_pss)
        if measured.controller_us_per_sample is not None:
            self.controller_us_per_sample.append(measured.controller_us_per_sample)

    def median(self, part: str) -> float:
        """Median over the steps of a part's seconds, of ``samples`` or of ``tokens``."""
        return statistics.median(step[part] for step in self.steps)

    @property
    def spread(self) -> tuple[float, float]:
        """Seconds of the shortest and the longest step."""
        whole = [step["step"] for step in self.steps]
        return min(whole), max(whole)

    @property
    def samples_per_second(self) -> float:
        """Of the median step."""
        return self.median("samples") / self.median("step")

    @property
    def peak_gib(self) -> float:
        """Largest peak of its starts."""
        return max(self.peak_pss) / GIB


Entries = dict[str, dict[str, Entry]]
"""Name of a workload → name of a contestant → its steps."""


@dataclass(kw_only=True)
class Results:
    """One run of the benchmark."""

    date: str
    machine: dict[str, Any]
    options: dict[str, Any]
    workloads: dict[str, Workload]
    entries: Entries = field(default_factory=dict)
    controller: dict[str, Any] | None = None
    """The line of ``benchmarks.controller`` for the most samples, if it was run."""

    def entry(self, work: Workload, contestant: str) -> Entry:
        """The entry of a contestant, an empty one if it is new."""
        return self.entries.setdefault(work.name, {}).setdefault(contestant, Entry())

    def save(self, path: Path) -> None:
        """Write the results with their figures."""
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {**asdict(self), "figures": figures(self.entries)}
        path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load(path: Path) -> Results:
    """The inverse of ``Results.save``; figures are computed again when they are needed."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values.pop("figures")
    entries = {
        work: {name: Entry(**entry) for name, entry in found.items()} for work, found in values.pop("entries").items()
    }
    works = {name: Workload(**work) for name, work in values.pop("workloads").items()}
    return Results(**values, workloads=works, entries=entries)


def newest(folder: Path = FOLDER, pattern: str = "[0-9]*.json") -> Path | None:
    """The newest results, by the date in the file's name; None if there are none."""
    return max(folder.glob(pattern), key=lambda path: path.name, default=None)


def figures(entries: Entries) -> dict[str, dict[str, Any]]:
    """The figures of every workload on which this project was timed, by ``contestant`` where there are several.

    ``step_time_over_floor``: median step over the floor's; where responses have different lengths it is named
    ``real_lengths_over_padded_floor``. ``weights_sync_over_step``: median publish over median step.
    ``controller_us_per_sample``: of the controller's process, median of the starts; with few samples mostly what a step
    costs however few it has. ``samples_per_second``, and ``peak_gib`` of the process tree.
    """
    return {work: _figures(work, found, entries) for work, found in entries.items() if OURS in found}


def _figures(work: str, found: Mapping[str, Entry], entries: Entries) -> dict[str, Any]:
    ours = found[OURS]
    names = {
        "weights_sync_over_step": ours.median("publish") / ours.median("step"),
        "controller_us_per_sample": median(ours.controller_us_per_sample),
        "samples_per_second": {name: entry.samples_per_second for name, entry in found.items()},
        "peak_gib": {name: entry.peak_gib for name, entry in found.items()},
    }
    floor = entries.get(SAME_FLOOR.get(work, work), {}).get(FLOOR)
    if floor is None:
        return names
    key = "real_lengths_over_padded_floor" if work.startswith("real") else "step_time_over_floor"
    return {key: {name: entry.median("step") / floor.median("step") for name, entry in found.items()}, **names}


def median(values: Sequence[float]) -> float | None:
    """The median; None of nothing."""
    return statistics.median(values) if values else None


def ratio(entries: Entries, above: tuple[str, str], below: tuple[str, str]) -> float | None:
    """Median step of one (workload, contestant) over another's; None if either was not timed."""
    found = [entries.get(work, {}).get(name) for work, name in (above, below)]
    if found[0] is None or found[1] is None:
        return None
    return found[0].median("step") / found[1].median("step")


def default_over_best(entries: Entries, work: str = "fixed-ppo") -> float | None:
    """Median step at the default ``micro_batch_tokens`` over that at the best of all that were timed."""
    found = entries.get(work, {})
    steps: Iterable[float] = [entry.median("step") for name, entry in found.items() if name.startswith(OURS)]
    return found[OURS].median("step") / min(steps) if OURS in found else None
