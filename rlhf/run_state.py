"""State of a PPO run's controller between steps; together with the models' checkpoints, all state of a run.

The state is immutable: a repeated step starts from the same state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rlhf.algorithms.state import AlgorithmState
from rlhf.config.schema import Recipe
from rlhf.data.order import OrderState
from rlhf.errors import UserError
from rlhf.evaluation.overoptimisation import Watch


@dataclass(frozen=True, kw_only=True)
class WatchState:
    """State of the detection of over-optimisation."""

    watch: Watch
    rewards: tuple[float, ...] = ()
    """Mean reward of each step since the last held-out evaluation."""
    stop: str = ""
    """Why the run should stop early; empty if it should not."""
    unrecorded: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the held-out evaluation before the first step, recorded with the first step."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """State after ``step`` steps; ``step`` is also the version of the policy's weights."""

    step: int
    order: OrderState
    """Position in the order of prompts after the finished steps. The next step continues from here, with seeds that
    depend only on its number."""
    algorithm: AlgorithmState
    watch: WatchState | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Size in bytes of each append-only file of the run after this step."""
    set_aside: int = 0
    """Number of quarantined samples so far."""
    extra_rounds: int = 0
    """Number of rounds of sampling so far beyond one in each step."""
    goodput: Mapping[str, Any] = field(default_factory=dict)
    """Useful and lost seconds so far."""
    wandb_id: str = ""
    """Id of the W&B run."""

    @classmethod
    def start(cls, recipe: Recipe) -> RunState:
        """The state before the first step."""
        return cls(step=0, order=OrderState(0, 0), algorithm=AlgorithmState.start(recipe.algorithm))

    def after_step(self, order: OrderState, algorithm: AlgorithmState, set_aside: int, rounds: int) -> RunState:
        """The state after one more step, which had so many ``rounds`` of sampling."""
        return replace(
            self,
            step=self.step + 1,
            order=order,
            algorithm=algorithm,
            set_aside=set_aside,
            extra_rounds=self.extra_rounds + rounds - 1,
        )

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON types; floats keep all their bits."""
        return dict(_STATES.dump_python(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunState:
        """Restore from the result of ``to_json``.

        Raises:
            UserError: ``data`` does not have this format.
        """
        try:
            return _STATES.validate_python(data)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise UserError(
                f"the checkpoint's state is not in this version's format: {key}: {first['msg']}",
                "another version of rlhf wrote it, or it was modified",
                "resume with the version that wrote it (versions.json beside it), or give the run another name",
            ) from None


_STATES: TypeAdapter[RunState] = TypeAdapter(RunState)
