"""The client with which a policy rank calls the engines during a publish: ``VLLMWeightSyncClient`` over Ray actors.

Unlike vLLM's own Ray client, it has a deadline on each call, assigns each engine its ranks in an NCCL group, and
continues without an engine that fails.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.ray_errors import translate_error
from rlhf.errors import LostError
from rlhf.weights.adapter import AdapterWeights


class EngineClient:
    """Calls all engines in parallel. ``workers_per_engine`` is vLLM's tensor-parallel size.

    An engine that dies or is late is left out from then on: its weights are stale or partially updated. ``seconds`` is
    the deadline of one call.
    """

    def __init__(self, engines: Sequence[ActorHandle], workers_per_engine: int, seconds: float) -> None:
        self.engines, self.workers_per_engine, self.seconds = list(engines), workers_per_engine, seconds
        self.left_out: dict[int, str] = {}
        """Kind of failure of lost engines, by index: ``died``, ``stalled`` or ``failed``."""
        self.on_other_hosts: set[int] = set()
        """Indices of engines on other hosts, which do not see this host's files."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect every engine to the trainer; engine i's workers have the ranks after those of engine i − 1."""
        infos = [dict(init_info) for _ in self.engines]
        for index, info in enumerate(infos):
            if "rank_offset" in info:
                info["rank_offset"] += index * self.workers_per_engine
        self._all("init_weight_transfer_engine", {index: (infos[index],) for index in self._active()})

    def start_weight_update(self) -> None:
        """Begin an update on every engine."""
        self._all("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Send one chunk to every engine; engines on other hosts get the file's content through Ray's object store."""
        found = self._all("update_weights", dict.fromkeys(self._active() - self.on_other_hosts, (update_info,)))
        self.on_other_hosts |= {index for index, is_found in found.items() if is_found is False}
        if others := self._active() & self.on_other_hosts:
            content = ray.put(np.fromfile(update_info["path"], dtype=np.uint8))
            self._all("update_weights", dict.fromkeys(others, (update_info, content)))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End the update on every engine. The version is set later, when the weights are verified."""
        self._all("finish_weight_update")

    def load_adapter(self, adapter: AdapterWeights) -> None:
        """Replace the adapter of every engine; A and B travel through Ray's object store."""
        self._all("load_adapter", dict.fromkeys(self._active(), (ray.put(adapter),)))

    def _active(self) -> set[int]:
        """Indices of engines that are not left out."""
        return set(range(len(self.engines))) - set(self.left_out)

    def _all(self, method: str, arguments: Mapping[int, Sequence[Any]] | None = None) -> dict[int, Any]:
        """Call engines in parallel, by index with their arguments, or all without arguments; returns their answers."""
        end = time.monotonic() + self.seconds
        given = dict.fromkeys(self._active(), ()) if arguments is None else arguments
        refs = {index: getattr(self.engines[index], method).remote(*values) for index, values in given.items()}
        answers = {}
        for index, ref in refs.items():
            try:
                answers[index] = ray.get(ref, timeout=max(0.0, end - time.monotonic()))
            except RayError as error:
                own = translate_error(error, f"engine {index} of {len(self.engines)}", method, self.seconds)
                if not isinstance(own, LostError):
                    raise
                print(f"publish continues without one engine: {own}", flush=True)
                self.left_out[index] = own.kind
        return answers
