"""What the controller of a PPO run knows between two steps: all there is to know, with the models' own checkpoints.

Frozen: a step that is done again begins from the same state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rlhf.algorithms.controller import AlgorithmState
from rlhf.config.schema import Recipe
from rlhf.data.order import OrderState
from rlhf.errors import UserError
from rlhf.evaluation.overoptimisation import Watch


@dataclass(frozen=True, kw_only=True)
class WatchState:
    """Where the watch for over-optimisation stands: what was judged, and what came between two judgements."""

    watch: Watch
    rewards: tuple[float, ...] = ()
    """Mean reward of each step since the last judgement."""
    stop: str = ""
    """Why the run is to end early; empty while it goes on."""
    unrecorded: Mapping[str, float] = field(default_factory=dict)
    """What was judged before the first step, to be recorded with it."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state after ``step`` steps, which is the version of the policy's weights too."""

    step: int
    order: OrderState
    """The trained frontier: prompts taken by steps that were finished. Prompts in flight are those that the next step
    will take from here, with seeds that depend on its number alone."""
    algorithm: AlgorithmState
    watch: WatchState | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each of the run's growing files, without what later steps added."""
    set_aside: int = 0
    """Samples without a response, so far."""
    goodput: Mapping[str, Any] = field(default_factory=dict)
    """Seconds that were of use and seconds that were lost, so far."""
    wandb_id: str = ""
    """The W&B run."""

    @classmethod
    def start(cls, recipe: Recipe) -> RunState:
        """Before the first step."""
        return cls(step=0, order=OrderState(0, 0), algorithm=AlgorithmState.start(recipe.algorithm))

    def to_json(self) -> dict[str, Any]:
        """In JSON's types; floats keep all their bits."""
        return dict(_STATES.dump_python(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunState:
        """What ``to_json`` gave.

        Raises:
            UserError: it is something else.
        """
        try:
            return _STATES.validate_python(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(
                f"the checkpoint's state is not one of this version: {place}: {first['msg']}",
                "it was written by another version of rlhf, or changed",
                "go on with the version that wrote it (versions.json beside it), or give the run another name",
            ) from None


_STATES: TypeAdapter[RunState] = TypeAdapter(RunState)
