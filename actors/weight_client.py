"""How a policy rank talks to the engines during a publish: vLLM's ``VLLMWeightSyncClient`` over Ray actors.

vLLM has a client for Ray too; this one has a deadline on each call, gives every engine its own place in an NCCL group,
and goes on without an engine that is lost.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.losses import own_error
from rlhf.errors import LostError


class EngineClient:
    """Drives all engines as one. ``workers_per_engine`` is vLLM's tensor-parallel size.

    An engine that dies, or is late, is left out from then on: it holds old weights, or mixed ones. ``seconds`` is how
    long one call may take.
    """

    def __init__(self, engines: Sequence[ActorHandle], workers_per_engine: int, seconds: float) -> None:
        self.engines, self.workers_per_engine, self.seconds = list(engines), workers_per_engine, seconds
        self.left_out: dict[int, str] = {}
        """Engines that were lost, by their place, and how: ``died``, ``stalled`` or ``failed``."""
        self.far: set[int] = set()
        """Engines on other hosts, which do not see the files of this one."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Have every engine meet the trainer; engine i's workers follow those of the engines before it."""
        infos = [dict(init_info) for _ in self.engines]
        for index, info in enumerate(infos):
            if "rank_offset" in info:
                info["rank_offset"] += index * self.workers_per_engine
        self._all("init_weight_transfer_engine", {place: (infos[place],) for place in self._places()})

    def start_weight_update(self) -> None:
        """Begin an update on every engine."""
        self._all("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Give every engine one chunk: what it says to those that can take it from there, and to those on other hosts
        what is in its file too, through Ray's object store.
        """
        found = self._all("update_weights", dict.fromkeys(self._places() - self.far, (update_info,)))
        self.far |= {place for place, is_found in found.items() if is_found is False}
        if far := self._places() & self.far:
            content = ray.put(np.fromfile(update_info["path"], dtype=np.uint8))
            self._all("update_weights", dict.fromkeys(far, (update_info, content)))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End the update on every engine. The version is set later, once the weights are proven."""
        self._all("finish_weight_update")

    def _places(self) -> set[int]:
        """Those that are not left out."""
        return set(range(len(self.engines))) - set(self.left_out)

    def _all(self, method: str, arguments: Mapping[int, Sequence[Any]] | None = None) -> dict[int, Any]:
        """Call the engines at these places, all without arguments where none are given; returns their answers."""
        end = time.monotonic() + self.seconds
        given = dict.fromkeys(self._places(), ()) if arguments is None else arguments
        refs = {place: getattr(self.engines[place], method).remote(*words) for place, words in given.items()}
        answers = {}
        for index, ref in refs.items():
            try:
                answers[index] = ray.get(ref, timeout=max(0.0, end - time.monotonic()))
            except RayError as error:
                own = own_error(error, f"engine {index} of {len(self.engines)}", method, self.seconds)
                if not isinstance(own, LostError):
                    raise
                print(f"publish goes on without one: {own}", flush=True)
                self.left_out[index] = own.kind
        return answers
