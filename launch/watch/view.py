"""The state of a run at one moment, and estimates from the numbers of its last steps."""

from __future__ import annotations

from dataclasses import dataclass, field

from launch.report.read import number
from launch.watch.follow import Recent, Row
from rlhf.metrics import METRICS, labelled
from rlhf.recovery.member import role_of

NUMBERS = labelled(
    *("objective/scores", "objective/kl", "policy/entropy_avg", "rollout/length_mean", "rollout/logprob_gap_mean"),
    *("perf/goodput", "holdout/score", "train/loss", "train/accuracy", "rewards/margins", "eval/loss", "eval/accuracy"),
)
"""Name on the screen → metric; a stage has some of them."""
RATES = labelled("perf/samples_per_second", "perf/rollout_tokens_per_second", "perf/train_tokens_per_second")
"""The same for throughput."""
STEP = "time/step"
"""Seconds of a whole step, beside those of its phases."""
RECENT_STEPS = 10
"""Number of last steps whose mean time predicts the remaining time."""


@dataclass(frozen=True, kw_only=True)
class ActorRow:
    """One actor of the run."""

    name: str
    """``policy rank 1``, ``rollout engine 0``."""
    state: str
    """Its state in ``status.json``."""
    node: str = ""
    process: int | None = None
    heartbeat_age: float | None = None
    """Seconds since its last heartbeat, if the run reports it."""

    @property
    def role(self) -> str:
        """``policy``, ``rollout``."""
        return role_of(self.name)


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The end of a run."""

    text: str
    good: bool
    """Whether the run succeeded."""
    is_unannounced: bool = False
    """Whether its process ended without a message: the same command may have been given again."""


@dataclass(frozen=True, kw_only=True)
class RunView:
    """State of a run; unknown fields are empty or None."""

    title: str
    """Name of the run or its job."""
    source: str
    """The watched folder, or a cluster's address."""
    stage: str = ""
    finished: tuple[str, ...] = ()
    """Earlier stages, and this one if it is finished."""
    phase: str = ""
    phase_seconds: float | None = None
    """Seconds in the phase."""
    step: int | None = None
    """Step of the phase, from 0."""
    done: int = 0
    """Number of recorded steps."""
    steps: int | None = None
    """Planned number of steps."""
    seconds_left: float | None = None
    """Estimate for the remaining steps."""
    members: tuple[ActorRow, ...] = ()
    metrics: Recent[Row] = field(default_factory=Recent)
    """One row per step, with ``step`` and metrics by name."""
    samples: tuple[Row, ...] = ()
    """Samples of the last step that has any."""
    events: Recent[Row] = field(default_factory=Recent)
    """Rows of ``events.jsonl``, oldest first."""
    log: Recent[str] = field(default_factory=Recent)
    """Lines of the job's log."""
    warning: str = ""
    """Problem of the run as a whole, if any."""
    ending: Ending | None = None


def history(view: RunView) -> dict[str, list[float | None]]:
    """Values of the ``NUMBERS`` over the steps, by their names on the screen; None for values that were not finite.

    Steps without a metric are left out of its list, and a metric without any finite value is left out.
    """
    found = {}
    for name, metric in NUMBERS.items():
        values = [number(row[metric]) for row in view.metrics.items if metric in row]
        if any(value is not None for value in values):
            found[name] = values
    return found


def rates(view: RunView) -> dict[str, float]:
    """Throughput of the last step, in samples or tokens per second, by name on the screen; empty before the first step.

    For supervised stages tokens per second are computed from ``train/tokens`` and ``time/update``.
    """
    row = view.metrics.items[-1] if view.metrics.items else {}
    found = {name: number(row.get(metric)) for name, metric in RATES.items()}
    tokens, seconds = number(row.get("train/tokens")), number(row.get("time/update"))
    if tokens is not None and seconds:
        found[METRICS["perf/train_tokens_per_second"].label] = tokens / seconds
    return {name: value for name, value in found.items() if value is not None}


def phases(view: RunView) -> dict[str, float]:
    """Seconds of each phase of the last step, in order."""
    row = view.metrics.items[-1] if view.metrics.items else {}
    found = {name.removeprefix("time/"): number(row[name]) for name in row if name.startswith("time/") and name != STEP}
    return {phase: seconds for phase, seconds in found.items() if seconds is not None}


def step_seconds(rows: tuple[Row, ...]) -> float | None:
    """Mean seconds of the last steps, including saving and evaluation between them; None without steps."""
    times = [seconds for row in rows[-RECENT_STEPS:] if (seconds := _seconds(row)) is not None]
    return sum(times) / len(times) if times else None


def _seconds(row: Row) -> float | None:
    """Seconds of a step; None if the row has no times.

    ``time/step`` plus checkpoint, snapshot and held-out evaluation, which are outside it; without ``time/step``, the
    sum of the phases.
    """
    times = {name: number(value) or 0.0 for name, value in row.items() if name.startswith("time/")}
    if not times:
        return None
    outside = sum(times.get(f"time/{phase}", 0.0) for phase in ("checkpoint", "snapshot", "judge"))
    return times[STEP] + outside if STEP in times else sum(times.values())


def seconds_left(rows: tuple[Row, ...], done: int, steps: int | None) -> float | None:
    """Estimated seconds of the remaining steps; None if their number is unknown or no step has times."""
    each = step_seconds(rows)
    return None if steps is None or each is None else each * max(0, steps - done)
