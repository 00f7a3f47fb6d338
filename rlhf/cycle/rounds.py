"""What a journal says of each round, for readers: its state, its numbers, and what it cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.cycle.journal import CycleStep, JournalEntry, StepState

COSTS = {"rater_minutes": "rater minutes", "seconds": "machine seconds", "judge_calls": "judge calls"}
"""Names of costs for readers."""


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """One round."""

    number: int
    steps: Mapping[CycleStep, JournalEntry]
    """The newest line of each step, in their order."""
    costs: Mapping[CycleStep, Mapping[str, float]]
    """Of all finished attempts at a step."""

    @property
    def state(self) -> str:
        """As text: finished, or the step that it is at."""
        last = max(self.steps.values(), key=lambda entry: entry.time)
        if last.step is CycleStep.PROMOTE and last.state is StepState.FINISHED:
            return "finished"
        if last.state is StepState.WAITING:
            return f"{last.step}: {last.result.get('what', 'waiting')}"
        return f"{last.step}: {last.state}"

    def result(self, step: CycleStep) -> Mapping[str, Any]:
        """What a step gave; empty if it is not finished."""
        entry = self.steps.get(step)
        return entry.result if entry is not None and entry.state is StepState.FINISHED else {}

    def total(self, cost: str) -> float:
        """Sum of a cost over the steps."""
        return sum(each.get(cost, 0.0) for each in self.costs.values())


def read_rounds(entries: Sequence[JournalEntry]) -> tuple[RoundRecord, ...]:
    """All rounds, the start (number 0) included."""
    order = list(CycleStep)
    found = []
    for number in sorted({entry.round for entry in entries}):
        own = [entry for entry in entries if entry.round == number]
        newest = {entry.step: entry for entry in own}
        costs: defaultdict[CycleStep, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        for entry in own:
            for name, value in entry.cost.items():
                costs[entry.step][name] += value
        steps = {step: newest[step] for step in order if step in newest}
        found.append(RoundRecord(number=number, steps=steps, costs={step: dict(costs[step]) for step in steps}))
    return tuple(found)
