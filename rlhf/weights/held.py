"""What a running vLLM worker really computes with: loaded into the worker as its extension class."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rlhf.weights.fingerprint import HEAD, Fingerprint, fingerprint

PR_SET_PDEATHSIG = 1
"""Linux's prctl(2) option: a signal that this process gets when its parent ends."""
_ROWS = 1024  # rows of the identity multiplied at one time


def held_tensors(model: nn.Module, first_shard: bool = True) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all that the model computes with, fused as the engine has it.

    Shared modules appear under each of their names: a tied output head may have a repacked copy of its own, and it is
    the copy that answers. Of tensors that every tensor-parallel shard repeats, only the first shard's count.
    """
    for path, module in model.named_modules(remove_duplicate=False):
        repacked = getattr(module, "cpu_linear", None)
        for name, parameter in module.named_parameters(recurse=False):
            if not (first_shard or _is_sharded(module, name)):
                continue
            if name == "weight" and repacked is not None:
                yield f"{path}.{name}", _counted_rows(module, _through_product(module, parameter))
            elif parameter.numel():
                yield f"{path}.{name}", _counted_rows(module, parameter)


def _is_sharded(module: nn.Module, name: str) -> bool:
    if hasattr(module, "num_embeddings_per_partition") or hasattr(module, "output_size_per_partition"):
        repeated_bias = name == "bias" and hasattr(module, "input_is_parallel")  # a row-parallel layer's bias
        return not repeated_bias and getattr(module, "tp_size", 1) > 1
    return False


def _counted_rows(module: nn.Module, tensor: Tensor) -> Tensor:
    """Without the key and value rows that an earlier shard has too: shards beyond the key-value heads repeat them."""
    replicas = getattr(module, "num_kv_head_replicas", 1)
    if replicas == 1 or module.tp_rank % replicas == 0:
        return tensor
    return tensor[: module.num_heads * module.head_size]  # the queries, which come first


def _through_product(module: nn.Module, parameter: Tensor) -> Tensor:
    """The matrix W of a layer that only offers x·Wᵀ: exact, since each sum has one term that is not zero."""
    widths = ("input_size_per_partition", "input_size", "embedding_dim")
    width = next(getattr(module, name) for name in widths if getattr(module, name, None))
    identity = torch.eye(width, dtype=parameter.dtype)
    return torch.cat([module.cpu_linear(rows, parameter, None) for rows in identity.split(_ROWS)]).T


class HeldWeights:
    """Methods that vLLM adds to its worker (``worker_extension_cls``)."""

    _weight_update_active: bool  # the worker's own: whether an update is open

    def end_with_parent(self) -> int:
        """Have the kernel end this process when the one that started it ends, even if that is killed; returns its id.

        vLLM ends its processes when it is told to, which a killed process is not; they would keep their memory.
        """
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        return os.getpid()

    def close_weight_update(self) -> None:
        """Close an update whose sender is gone, if one is open: vLLM opens no other before, and offers no way back.

        A layer that had not got all of its tensors holds what it held before; which layers these are is not known, so
        the weights have to be sent again. An update in which a chunk failed is closed for vLLM, but its layers are not.
        """
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        receiver = self.weight_transfer_engine  # type: ignore[attr-defined]
        if receiver is None:  # the weights never change
            return
        layers = [info for layer in receiver.model.modules() if (info := get_layerwise_info(layer)).can_load()]
        if not layers and not self._weight_update_active:
            return
        for info in layers:  # as if nothing of it had come: it gets its own tensors back
            info.load_numel = 0
            info.loaded_weights.clear()
        with set_current_vllm_config(self.vllm_config):  # type: ignore[attr-defined]
            receiver.finish_weight_update()
        receiver.reset_weight_update_target()
        self._weight_update_active = False

    def pass_over_absent_head(self) -> None:
        """Have a model that computes logits with its embedding take no output head: it is sent one by name, and some
        models of vLLM's refuse names that they do not know."""
        model = self.model_runner.model  # type: ignore[attr-defined]  # the worker that this class is mixed into
        if hasattr(model, "lm_head"):
            return
        load = model.load_weights
        model.load_weights = lambda weights: load(each for each in weights if each[0] != HEAD)

    def held_fingerprint(self) -> Fingerprint:
        """Fingerprint of this worker's shard of the model it serves."""
        from vllm.distributed import get_tensor_model_parallel_rank

        model = self.model_runner.model  # type: ignore[attr-defined]  # the worker that this class is mixed into
        with torch.no_grad():
            return fingerprint(held_tensors(model, first_shard=get_tensor_model_parallel_rank() == 0))
