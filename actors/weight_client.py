"""The client with which a policy rank calls the engines during a publish: ``VLLMWeightSyncClient`` over Ray actors.

Unlike vLLM's own Ray client, it has a deadline on each call, assigns each engine its ranks in an NCCL group, and
continues without an engine that fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.ray_errors import translate_error
from rlhf.errors import LostError
from rlhf.weights.aborts import ABORTED
from rlhf.weights.adapter import AdapterWeights

ABORT_FRACTION = 0.9
"""Fraction of the deadline of a call after which an engine ends its wait for others."""


class EngineClient:
    """Calls all engines in parallel. ``workers_per_engine`` is vLLM's tensor-parallel size.

    An engine that dies or is late is left out from then on: its weights are stale or partially updated. ``seconds`` is
    the deadline of one call.

    If the engines form a group with the trainer (``is_group``), in which all wait for one that is lost, they end their
    wait themselves, before that deadline: they are sound, and not to be taken for late.
    """

    def __init__(
        self, engines: Sequence[ActorHandle], workers_per_engine: int, seconds: float, is_group: bool = False
    ) -> None:
        self.engines, self.workers_per_engine, self.seconds = list(engines), workers_per_engine, seconds
        self.is_group = is_group
        self.left_out: dict[int, str] = {}
        """Kind of failure of lost engines, by index: ``died``, ``stalled``, ``failed`` or ``ABORTED``."""
        self.on_loss: Callable[[str], None] | None = None
        """Called with the reason when an engine is lost during a call: what the others wait for is then aborted."""
        self.on_other_hosts: set[int] = set()
        """Indices of engines on other hosts, which do not see this host's files."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect every engine to the trainer; engine i's workers have the ranks after those of engine i − 1."""
        infos = [dict(init_info) for _ in self.engines]
        for index, info in enumerate(infos):
            if "rank_offset" in info:
                info["rank_offset"] += index * self.workers_per_engine
        own = {index: (infos[index], *self._limit()) for index in self._active()}
        self._all("init_weight_transfer_engine", own)

    def start_weight_update(self) -> None:
        """Begin an update on every engine."""
        self._all("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Send one chunk to every engine; engines on other hosts get the file's content through Ray's object store."""
        if self.is_group:
            if not self.left_out:
                self._all("update_weights", dict.fromkeys(self._active(), (update_info, None, *self._limit())))
            return
        found = self._all("update_weights", dict.fromkeys(self._active() - self.on_other_hosts, (update_info,)))
        self.on_other_hosts |= {index for index, is_found in found.items() if is_found is False}
        if others := self._active() & self.on_other_hosts:
            from rlhf.weights.shared_memory import chunk_content  # imports vLLM, as only the policy's process does

            content = ray.put(chunk_content(update_info))
            self._all("update_weights", dict.fromkeys(others, (update_info, content)))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End the update on every engine. The version is set later, when the weights are verified.

        In a group nobody has all weights once one is left out: the next update closes this one.
        """
        if not (self.is_group and self.left_out):
            self._all("finish_weight_update")

    def load_adapter(self, adapter: AdapterWeights) -> None:
        """Replace the adapter of every engine; A and B travel through Ray's object store."""
        self._all("load_adapter", dict.fromkeys(self._active(), (ray.put(adapter),)))

    def leave_out_others(self) -> None:
        """Leave out all engines that are not yet, as ``ABORTED``."""
        self.left_out |= dict.fromkeys(self._active(), ABORTED)

    def _limit(self) -> tuple[float, ...]:
        """Argument that limits an engine's wait for the others of its group; none without a group."""
        return (ABORT_FRACTION * self.seconds,) if self.is_group else ()

    def _active(self) -> set[int]:
        """Indices of engines that are not left out."""
        return set(range(len(self.engines))) - set(self.left_out)

    def _all(self, method: str, arguments: Mapping[int, Sequence[Any]] | None = None) -> dict[int, Any]:
        """Call engines in parallel, by index with their arguments, or all without arguments; returns their answers."""
        end = time.monotonic() + self.seconds
        given = dict.fromkeys(self._active(), ()) if arguments is None else arguments
        pending = {getattr(self.engines[index], method).remote(*values): index for index, values in given.items()}
        answers = {}
        while pending:
            ready = ray.wait(list(pending), timeout=max(0.0, end - time.monotonic()))[0]
            for ref in ready or list(pending):  # if none is ready, all are late
                index = pending.pop(ref)
                try:
                    answers[index] = ray.get(ref, timeout=0)
                except RayError as error:
                    own = translate_error(error, f"engine {index} of {len(self.engines)}", method, self.seconds)
                    if not isinstance(own, LostError):
                        raise
                    self._leave_out(index, own, pending.values())
        return answers

    def _leave_out(self, index: int, error: LostError, others: Iterable[int]) -> None:
        """Leave out one engine, and end the wait of ``others`` for it if they form a group."""
        print(f"publish continues without one engine: {error}", flush=True)
        self.left_out[index] = error.kind
        if self.is_group and error.kind != ABORTED:
            for other in others:
                self.engines[other].abort_transfer.remote()
            if self.on_loss is not None:
                self.on_loss(str(error))
