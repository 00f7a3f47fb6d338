"""The trainer's side of a weight transfer by NCCL, which a lost engine does not hang.

vLLM's sender waits for every engine without a limit. Here the wait ends when an engine is lost, and at the latest after
the client's timeout: the communicator is aborted. The source is iterated to its end in any case, because all ranks of
the trainer gather tensors together.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Self

from torch import Tensor
from vllm.distributed.weight_transfer.base import WeightSource
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

from rlhf.weights.aborts import Watchdog, call_within, on_this_device
from rlhf.weights.timed_client import TimedClient


class GuardedGroup:
    """A communicator whose errors abort it instead of being raised; after an abort, vLLM's sends nothing."""

    def __init__(self, group: Any, watchdog: Watchdog) -> None:
        self.group, self._watchdog = group, watchdog

    def broadcast(self, tensor: Tensor, src: int, stream: Any = None) -> None:
        """Send one tensor."""
        try:
            self.group.broadcast(tensor, src=src, stream=stream)
        except RuntimeError as error:  # vLLM's type for NCCL's errors
            self._watchdog.fire(str(error))


class NCCLSender(NCCLTrainerWeightTransferEngine):
    """vLLM's sender, which raises no error for engines that did not receive all weights: they are ``left_out``."""

    client: TimedClient

    @classmethod
    def trainer_init(
        cls, init_info: NCCLTrainerInitInfo, *, client: TimedClient, source: WeightSource | None = None
    ) -> Self:
        """Connect to the engines. If one is lost meanwhile, or is late, the sender has no group and sends nothing."""
        connect = super().trainer_init
        if not init_info.is_sender:
            return connect(init_info, client=client, source=source)
        rendezvous = on_this_device(partial(connect, init_info, client=client, source=source))
        try:
            return call_within(client.seconds, rendezvous, lambda: bool(client.left_out))
        except (TimeoutError, RuntimeError) as error:  # the types of torch's store and of vLLM for NCCL's errors
            print(f"the engines could not be connected: {error}", flush=True)
            client.leave_out_others()
            assert source is not None
            return cls(client=client, source=source, is_sender=True)

    def send_weights(self) -> None:
        """Send all weights; collective over the trainer's ranks."""
        if not self.is_sender:
            super().send_weights()
        elif self.model_update_group is None:
            for _ in self.source or ():
                pass
        else:
            self._send_guarded(self.model_update_group)

    def _send_guarded(self, group: Any) -> None:
        with Watchdog(self.client.seconds, group.destroy) as watchdog:
            self.client.on_loss = watchdog.fire
            guarded: Any = GuardedGroup(group, watchdog)
            self.model_update_group = guarded
            try:
                super().send_weights()
            finally:
                self.model_update_group, self.client.on_loss = group, None
        if watchdog.reason:
            print(f"the transfer of weights was aborted: {watchdog.reason}", flush=True)
            self.client.leave_out_others()
            self.model_update_group = None
