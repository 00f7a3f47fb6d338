"""How much of the time since a run first started became steps that it kept, over all commands that it took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

DOWN = "down"
"""Time lost between commands: nobody was running."""
REPLAYED = "replayed"
"""Time lost in steps that were done and had to be done again."""


class Goodput:
    """The account of a run's time. What is neither useful nor lost went into starting, saving and judging.

    Args:
        clock: seconds since 1970; it has to mean the same to every command of the run.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._useful_before = 0.0
        self._steps: dict[int, float] = {}
        self.lost_by_kind: defaultdict[str, float] = defaultdict(float)
        """Seconds lost: by the kind of incident, ``replayed`` and ``down``."""
        self.restarts = 0
        """Incidents after which actors were restarted."""
        self.redispatched = 0
        """Samples that were given out again after the actor that had them was lost."""
        self.set_aside = 0
        """Samples that were given up."""

    @classmethod
    def resumed(cls, state: Mapping[str, Any], clock: Callable[[], float], last_seen: float | None = None) -> Goodput:
        """The account of a run that goes on from a checkpoint with this ``state``.

        Args:
            last_seen: when the command before was last seen at work; what it did between its checkpoint and then has
                to be done again. Without, that time counts as down.
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
        """Seconds that became steps that are kept."""
        return self._useful_before + sum(self._steps.values())

    @property
    def wall(self) -> float:
        """Seconds since the run first started."""
        return self._clock() - self._began

    def step(self, step: int, seconds: float) -> None:
        """``step`` took ``seconds``, without what was lost in it. If it was done before, that was in vain."""
        self.lost(REPLAYED, self._steps.get(step, 0.0))
        self._steps[step] = max(0.0, seconds)  # clocks are set back

    def lost(self, kind: str, seconds: float) -> None:
        """``seconds`` of the run, not of each actor, came to nothing."""
        if seconds > 0:
            self.lost_by_kind[kind] += seconds

    @contextmanager
    def waiting(self, kind: str) -> Iterator[None]:
        """What the block takes is lost, but for what is lost in it otherwise: no second is counted twice."""
        begin, lost = self._clock(), self.seconds_lost
        try:
            yield
        finally:
            self.lost(kind, self._clock() - begin - (self.seconds_lost - lost))

    @property
    def seconds_lost(self) -> float:
        """Seconds that came to nothing, of every kind."""
        return sum(self.lost_by_kind.values())

    def metrics(self) -> dict[str, float]:
        """``perf/goodput`` from 0 to 1, and ``health/``: counts, and seconds lost of every kind, over the whole run."""
        wall = self.wall
        return {
            "perf/goodput": min(1.0, self.useful / wall) if wall > 0 else 0.0,
            "health/restarts": float(self.restarts),
            "health/redispatched": float(self.redispatched),
            "health/set_aside": float(self.set_aside),
            "health/seconds_lost": self.seconds_lost,
        }

    def state(self) -> dict[str, Any]:
        """For the checkpoint, in JSON's own types."""
        return {
            "began": self._began,
            "wall": self.wall,
            "useful": self.useful,
            "lost_by_kind": dict(self.lost_by_kind),
            "restarts": self.restarts,
            "redispatched": self.redispatched,
            "set_aside": self.set_aside,
        }
