"""How a policy rank talks to the engines during a publish: vLLM's ``VLLMWeightSyncClient`` over Ray actors.

vLLM has a client for Ray too; this one has a deadline on each call and gives every engine its own place in an NCCL
group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.actor import ActorHandle

from actors.waiting import Moment, wait


class EngineClient:
    """Drives all engines as one. ``workers_per_engine`` is vLLM's tensor-parallel size."""

    def __init__(self, engines: Sequence[ActorHandle], workers_per_engine: int, seconds: float) -> None:
        self.engines, self.workers_per_engine, self.seconds = list(engines), workers_per_engine, seconds

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Have every engine meet the trainer; engine i's workers follow those of the engines before it."""
        infos = [dict(init_info) for _ in self.engines]
        for index, info in enumerate(infos):
            if "rank_offset" in info:
                info["rank_offset"] += index * self.workers_per_engine
        self._all([e.init_weight_transfer_engine.remote(info) for e, info in zip(self.engines, infos, strict=True)])

    def start_weight_update(self) -> None:
        """Begin an update on every engine."""
        self._all([engine.start_weight_update.remote() for engine in self.engines])

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Give every engine one chunk."""
        self._all([engine.update_weights.remote(update_info) for engine in self.engines])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End the update on every engine. The version is set later, once the weights are proven."""
        self._all([engine.finish_weight_update.remote() for engine in self.engines])

    def _all(self, refs: list[ray.ObjectRef]) -> None:
        wait(refs, [f"rollout engine {i}" for i in range(len(refs))], Moment(phase="publish"), self.seconds)
