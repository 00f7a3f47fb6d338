"""Goodput: the fraction of the time since a run first started that was spent on steps it kept, over all commands."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

DOWN = "down"
"""Kind of time lost between commands."""
REPLAYED = "replayed"
"""Kind of time lost on steps that were repeated."""


class Goodput:
    """Time account of a run. Time that is neither useful nor lost was spent on starting, saving and evaluating.

    Args:
        clock: returns seconds since 1970, so that all commands of a run share it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._useful_before = 0.0
        self._steps: dict[int, float] = {}
        self.lost_by_kind: defaultdict[str, float] = defaultdict(float)
        """Seconds lost by kind: the kinds of incidents, ``replayed`` and ``down``."""
        self.restarts = 0
        """Restarts of actors."""
        self.redispatched = 0
        """Samples that were re-dispatched after their actor failed."""
        self.set_aside = 0
        """Quarantined samples."""

    @classmethod
    def resumed(cls, state: Mapping[str, Any], clock: Callable[[], float], last_seen: float | None = None) -> Goodput:
        """Resume the account from the ``state`` in a checkpoint.

        Args:
            last_seen: last known time of the previous command; its work between the checkpoint and that time counts as
                replayed. If None, that time counts as down.
        """
        goodput = cls(clock)
        stopped = state["began"] + state["wall"]
        worked = 0.0 if last_seen is None else max(0.0, min(last_seen, goodput._began) - stopped)
        down = max(0.0, goodput._began - stopped - worked)
        goodput._began, goodput._useful_before = state["began"], state["useful"]
        goodput.lost_by_kind.update(state["lost_by_kind"])
        goodput.restarts, goodput.redispatched, goodput.set_aside = (
            state[name] for name in ("restarts", "redispatched", "set_aside")
        )
        goodput.lost(REPLAYED, worked)
        goodput.lost(DOWN, down)
        return goodput

    @property
    def useful(self) -> float:
        """Seconds spent on steps that are kept."""
        return self._useful_before + sum(self._steps.values())

    @property
    def wall(self) -> float:
        """Seconds since the run first started; no fewer than the useful ones, if the clock was set back."""
        return max(self._clock() - self._began, self.useful)

    def step(self, step: int, seconds: float) -> None:
        """Record a step's useful seconds; if the step is repeated, its earlier seconds become lost."""
        self.lost(REPLAYED, self._steps.get(step, 0.0))
        self._steps[step] = max(0.0, seconds)  # negative if a clock was set back

    def lost(self, kind: str, seconds: float) -> None:
        """Record lost seconds of the run (not of each actor)."""
        if seconds > 0:
            self.lost_by_kind[kind] += seconds

    @contextmanager
    def waiting(self, kind: str) -> Iterator[None]:
        """Context whose duration is lost; time that is recorded as lost within it is not counted twice."""
        begin, lost = self._clock(), self.seconds_lost
        try:
            yield
        finally:
            self.lost(kind, self._clock() - begin - (self.seconds_lost - lost))

    @property
    def seconds_lost(self) -> float:
        """Lost seconds of all kinds."""
        return sum(self.lost_by_kind.values())

    def metrics(self) -> dict[str, float]:
        """``perf/goodput`` from 0 to 1, and the counts and lost seconds of the whole run in ``health/``."""
        wall = self.wall
        return {
            "perf/goodput": self.useful / wall if wall > 0 else 0.0,
            "health/restarts": float(self.restarts),
            "health/redispatched": float(self.redispatched),
            "health/set_aside": float(self.set_aside),
            "health/seconds_lost": self.seconds_lost,
        }

    def state(self) -> dict[str, Any]:
        """The account as JSON types, for the checkpoint."""
        return {
            "began": self._began,
            "wall": self.wall,
            "useful": self.useful,
            "lost_by_kind": dict(self.lost_by_kind),
            "restarts": self.restarts,
            "redispatched": self.redispatched,
            "set_aside": self.set_aside,
        }
