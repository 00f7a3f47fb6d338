"""What the trainer's side of a weight transfer needs of the client that calls the engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient

from rlhf.weights.adapter import AdapterWeights


class TimedClient(VLLMWeightSyncClient, Protocol):
    """Client that calls the engines during a transfer, with a timeout."""

    seconds: float
    """Timeout of each call."""
    left_out: dict[int, str]
    """Kind of failure of engines that failed, by index: ``died``, ``stalled``, ``failed`` or ``ABORTED``."""
    on_loss: Callable[[str], None] | None
    """Called with the reason when an engine is lost during a call."""

    def leave_out_others(self) -> None:
        """Leave out the remaining engines as ``ABORTED``: they did not receive all weights."""

    def load_adapter(self, adapter: AdapterWeights) -> None:
        """Have every engine replace its adapter."""
