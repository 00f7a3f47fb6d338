"""Fingerprints of the weights that a vLLM worker computes with, and other methods added to the worker.

Loaded into the worker as its extension class.
"""

from __future__ import annotations

import ctypes
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.weights.aborts import Watchdog, call_within, on_this_device
from rlhf.weights.adapter import AdapterHolder
from rlhf.weights.fingerprint import HEAD, Fingerprint, fingerprint, group_of

PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl(2): the signal that this process receives when its parent ends."""
_ROWS = 1024  # rows of the identity multiplied at a time


def held_tensors(model: nn.Module, first_shard: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of all weights that the model computes with, fused as in the engine.

    A repacked matrix comes in parts: the columns that one product recovers.
    A module that is shared between layers appears in each, because a tied output head may have a repacked copy, which
    is then the one in use; one that has two names within a layer (a router) appears once. Tensors that are replicated
    over tensor-parallel shards are yielded for the first shard only.
    """
    seen = set()
    for path, module in model.named_modules(remove_duplicate=False):
        path = path.replace(".base_layer", "")  # inside a layer that vLLM has wrapped to adapt it
        place = group_of(f"{path}.weight"), module
        if place in seen:
            continue
        seen.add(place)
        repacked = getattr(module, "cpu_linear", None)
        for name, parameter in module.named_parameters(recurse=False):
            if not (first_shard or _is_sharded(module, name)):
                continue
            if name == "weight" and repacked is not None:
                for columns in _recovered_columns(module, parameter):
                    yield f"{path}.{name}", _unrepeated_rows(module, columns)
            elif parameter.numel():
                yield f"{path}.{name}", _unrepeated_rows(module, parameter)


def _is_sharded(module: nn.Module, name: str) -> bool:
    if hasattr(module, "num_embeddings_per_partition") or hasattr(module, "output_size_per_partition"):
        repeated_bias = name == "bias" and hasattr(module, "input_is_parallel")  # a row-parallel layer's bias
        return not repeated_bias and getattr(module, "tp_size", 1) > 1
    return False


def _unrepeated_rows(module: nn.Module, tensor: Tensor) -> Tensor:
    """The tensor without key and value rows that an earlier shard has too, if there are more shards than KV heads."""
    replicas = getattr(module, "num_kv_head_replicas", 1)
    if replicas == 1 or module.tp_rank % replicas == 0:
        return tensor
    return tensor[: module.num_heads * module.head_size]  # query rows come first


def _recovered_columns(module: nn.Module, parameter: Tensor) -> Iterator[Tensor]:
    """Yield the columns of the matrix W of a layer that only provides x·Wᵀ, some at a time.

    They are exact, since each sum has a single non-zero term.
    """
    widths = ("input_size_per_partition", "input_size", "embedding_dim")
    width = next(getattr(module, name) for name in widths if getattr(module, name, None))
    for rows in torch.eye(width, dtype=parameter.dtype).split(_ROWS):
        yield module.cpu_linear(rows, parameter, None).T


def _setup_and_repack(setup: Callable[..., None], experts: Any, layer: nn.Module, **weights: Tensor) -> None:
    """vLLM's ``_setup_kernel`` in an update, followed by the packing that it leaves out."""
    setup(layer=layer, **weights)
    experts.process_weights_after_loading(layer)


class HeldWeights(AdapterHolder):
    """Methods that vLLM adds to its worker (``worker_extension_cls``)."""

    _weight_update_active: bool  # attribute of the worker: whether an update is open
    _receiving: Watchdog | None = None
    """Ends the wait for a sender that all engines receive from together, while there is one."""

    def end_with_parent(self) -> int:
        """Have the kernel kill this process when its parent ends, even if the parent is killed; returns its id.

        vLLM stops its processes only on a regular shutdown; after a kill they would keep their memory.
        """
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        return os.getpid()

    def join_sender(self, init_info: dict[str, Any], seconds: float | None) -> bool:
        """Leave the group of the last sender, and connect to another; returns whether that took at most ``seconds``.

        A group of which a member is lost would keep its memory, and its threads.
        """
        receiver = self.weight_transfer_engine  # type: ignore[attr-defined]
        receiver.shutdown()
        connect = partial(self.init_weight_transfer_engine, init_info)  # type: ignore[attr-defined]
        if seconds is None:
            connect()
            return True
        try:
            call_within(seconds, on_this_device(connect))
        except (TimeoutError, RuntimeError):  # the types of torch's store and of vLLM for NCCL's errors
            traceback.print_exc()
            receiver.shutdown()
            return False
        return True

    def receive_within(self, update_info: dict[str, Any], seconds: float) -> bool:
        """Load what is sent to all engines together; returns whether it came, within ``seconds`` and before an abort.

        After an abort vLLM loads what happens to be in the buffers: the caller must not serve with these weights.
        """
        with Watchdog(seconds, self.weight_transfer_engine.shutdown) as watchdog:  # type: ignore[attr-defined]
            self._receiving = watchdog
            try:
                self.update_weights(update_info)  # type: ignore[attr-defined]
            except RuntimeError as error:  # vLLM's type for NCCL's errors
                if not watchdog.reason and "NCCL" not in str(error):
                    raise
                watchdog.fire(str(error))
            finally:
                self._receiving = None
        return not watchdog.reason

    def abort_receiving(self) -> None:
        """End ``receive_within``, from another thread, if it waits."""
        if (watchdog := self._receiving) is not None:
            watchdog.fire("another engine is lost")

    def close_weight_update(self) -> None:
        """Close an open update whose sender has failed: vLLM can neither abort it nor open another one before.

        Layers that received only some of their tensors keep their previous weights. The caller does not know which ones
        and must send all weights again. After a failed chunk vLLM counts the update as closed, but its layers are not;
        this method closes them too.
        """
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        receiver = self.weight_transfer_engine  # type: ignore[attr-defined]
        if receiver is None:  # the weights never change
            return
        layers = [info for layer in receiver.model.modules() if (info := get_layerwise_info(layer)).can_load()]
        if not layers and not self._weight_update_active:
            return
        for info in layers:  # as if no tensor had arrived, so that the layer gets its previous tensors back
            info.load_numel = 0
            info.loaded_weights.clear()
        with set_current_vllm_config(self.vllm_config):  # type: ignore[attr-defined]
            receiver.finish_weight_update()
        receiver.reset_weight_update_target()
        self._weight_update_active = False

    def pass_over_absent_head(self) -> None:
        """Have a model without an output head (tied to the embedding) ignore the one that is sent.

        Some of vLLM's models refuse unknown names.
        """
        model = self.model_runner.model  # type: ignore[attr-defined]  # the worker that this class is mixed into
        if hasattr(model, "lm_head"):
            return
        load = model.load_weights
        model.load_weights = lambda weights: load(each for each in weights if each[0] != HEAD)

    def repack_experts(self) -> None:
        """Have every update repack a mixture of experts, as the first load does.

        On CPUs vLLM computes experts from a packed layout, which it makes only once: after an update the layer would
        hold the new numbers in the plain layout and compute nonsense from them. The fingerprint, a sum over a layer's
        elements, cannot notice that.
        """
        from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

        for layer in self.model_runner.model.modules():  # type: ignore[attr-defined]
            method: Any = getattr(layer, "quant_method", None)
            experts = getattr(getattr(method, "moe_kernel", None), "fused_experts", None)
            if isinstance(experts, CPUUnquantizedExperts):
                method._setup_kernel = partial(_setup_and_repack, method._setup_kernel, experts)

    def held_fingerprint(self) -> Fingerprint:
        """Fingerprint of this worker's shard of the model."""
        from vllm.distributed import get_tensor_model_parallel_rank

        model = self.model_runner.model  # type: ignore[attr-defined]  # the worker that this class is mixed into
        with torch.no_grad():
            return fingerprint(held_tensors(model, first_shard=get_tensor_model_parallel_rank() == 0))
