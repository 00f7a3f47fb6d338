"""State of a stage's controller between steps; together with the models' checkpoints, all state of a stage.

The state is immutable: a repeated step starts from the same state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

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
class StageState:
    """State after ``step`` steps; supervised stages have no more: their batches follow from data, seed and step."""

    step: int
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Size in bytes of each append-only file of the run after this step, and of its first answers."""
    goodput: Mapping[str, Any] = field(default_factory=dict)
    """Useful and lost seconds so far."""
    wandb_id: str = ""
    """Id of the W&B run."""

    @property
    def stops(self) -> bool:
        """Whether the stage ends after this step, although it has more."""
        return False

    @property
    def best_step(self) -> int | None:
        """Step of the best model so far that the stage has saved; None without one."""
        return None

    def with_other_data(self) -> Self:
        """The state from which to go on if the data has changed."""
        return self

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON types; floats keep all their bits."""
        return dict(TypeAdapter(type(self)).dump_python(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Restore from the result of ``to_json``; entries that only other stages have are ignored.

        Raises:
            UserError: ``data`` does not have this format.
        """
        try:
            return TypeAdapter(cls).validate_python(data)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise UserError(
                f"the checkpoint's state is not in this version's format: {key}: {first['msg']}",
                "another version of rlhf wrote it, or it was modified",
                "resume with the version that wrote it (versions.json beside it), or give the run another name",
            ) from None


@dataclass(frozen=True, kw_only=True)
class RunState(StageState):
    """State of a PPO run; ``step`` is also the version of the policy's weights."""

    order: OrderState
    """Position in the order of prompts after the finished steps. The next step continues from here, with seeds that
    depend only on its number."""
    algorithm: AlgorithmState
    watch: WatchState | None = None
    set_aside: int = 0
    """Number of quarantined samples so far."""
    extra_rounds: int = 0
    """Number of rounds of sampling so far beyond one in each step."""

    @classmethod
    def start(cls, recipe: Recipe) -> RunState:
        """The state before the first step."""
        return cls(step=0, order=OrderState(0, 0), algorithm=AlgorithmState.start(recipe.algorithm))

    @property
    def stops(self) -> bool:
        """Whether early stopping has ended the run."""
        return bool(self.watch and self.watch.stop)

    @property
    def best_step(self) -> int | None:
        """Step of the policy with the best held-out score so far; None without ``early_stop``."""
        return self.watch.watch.best.step if self.watch and self.watch.watch.best else None

    def with_other_data(self) -> Self:
        """The state from which to go on if the data has changed: an epoch of the new prompts begins."""
        return replace(self, order=OrderState(self.order.epoch + 1, 0))

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
