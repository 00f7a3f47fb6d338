"""Low-rank adapters in an engine: what is sent, how vLLM loads it, and the fingerprint of what it computes with.

vLLM adds alpha/rank·B·A·x to the output of the base layer. It keeps A and B of fused layers side by side, pads both
with zeros, and multiplies B by alpha/rank when it loads them; the fingerprint does not depend on order and padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.weights.element_hash import element_hash_sum
from rlhf.weights.fingerprint import Fingerprint, group_of

NUMBER = 1
"""vLLM's number of the adapter; there is one."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks for which vLLM reserves memory; an adapter of another rank is padded to the next one."""


@dataclass(frozen=True, kw_only=True)
class AdapterWeights:
    """A (rank, in) and B (out, rank) of each layer, by its name in the plain model."""

    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]
    rank: int
    alpha: float

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of A and alpha/rank·B."""
        scale = self.alpha / self.rank
        return _adapter_fingerprint(
            (name, tensor) for name, a in self.a.items() for tensor in (a, scale * self.b[name])
        )

    def peft_tensors(self) -> dict[str, Tensor]:
        """Copies of A and B under peft's names."""
        named = {f"base_model.model.{name}.lora_A.weight": a for name, a in self.a.items()}
        named |= {f"base_model.model.{name}.lora_B.weight": b for name, b in self.b.items()}
        return {name: tensor.clone() for name, tensor in named.items()}


def _adapter_fingerprint(tensors: Iterator[tuple[str, Tensor]]) -> Fingerprint:
    """By layer; without layers that hold zeros alone, which vLLM has where nothing was sent."""
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in tensors:
        groups.setdefault(group_of(name), []).append(tensor.detach().reshape(-1))
    sums = {group: element_hash_sum(torch.cat(parts)) for group, parts in groups.items()}  # one pass a layer
    return {f"adapter of {group}": value for group, value in sums.items() if value}


class AdapterHolder:
    """Methods for vLLM's worker, see ``HeldWeights``."""

    def load_adapter(self, adapter: AdapterWeights) -> list[str]:
        """Replace the adapter; returns the names of its layers that vLLM's model cannot adapt."""
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.peft_helper import PEFTHelper

        manager: Any = self.model_runner.lora_manager._adapter_manager  # type: ignore[attr-defined]
        mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
        loaded = LoRAModel.from_lora_tensors(
            NUMBER,
            adapter.peft_tensors(),
            PEFTHelper(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=[]),
            device="cpu",
            dtype=manager.lora_config.lora_dtype,
            weights_mapper=None if mapper is None else mapper.get_rename_mapper(),
        )
        manager.remove_adapter(NUMBER)
        manager.add_adapter(loaded)  # fuses layers as the model does
        manager.activate_adapter(NUMBER)
        return sorted(loaded.loras.keys() - manager.modules.keys())

    def adapter_fingerprint(self) -> Fingerprint:
        """Fingerprint of the A and B that this worker computes with."""
        manager: Any = self.model_runner.lora_manager._adapter_manager  # type: ignore[attr-defined]
        slot = manager.lora_index_to_id.index(NUMBER)
        return _adapter_fingerprint(
            (name, tensor[slot])
            for name, layer in manager.modules.items()
            for tensor in (*layer.lora_a_stacked, *layer.lora_b_stacked)
        )
