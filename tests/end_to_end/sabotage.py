"""A policy whose publishes go wrong on demand: what sends is the real thing, what is sent is not."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from rlhf.models.load import DTYPES
from rlhf.roles.policy import PolicyRole
from rlhf.zero.source import ZeroSource

DROPPED, ALTERED, HEAD = (
    "model.layers.1.mlp.down_proj.weight",
    "model.layers.0.self_attn.v_proj.weight",
    "lm_head.weight",
)


class SabotagedSource(ZeroSource):
    """Sends all tensors but one, or one that is slightly off; ``fault`` says which, or nothing."""

    fault = ""

    def metadata(self) -> list:
        """What will be sent."""
        return [meta for meta in super().metadata() if not self._is_kept_back(meta.name)]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in super().__iter__():
            if self.fault == "altered" and name == ALTERED:
                tensor = tensor.clone()
                tensor[3, 5] += 1e-3
            if not self._is_kept_back(name):
                yield name, tensor

    def _is_kept_back(self, name: str) -> bool:
        return (self.fault == "dropped" and name == DROPPED) or (self.fault == "head" and name == HEAD)


class SabotagedPolicy(PolicyRole):
    """The policy with a source that can be sabotaged between two publishes."""

    def make_source(self) -> SabotagedSource:
        """The faulty stream."""
        return SabotagedSource(self.engine, self.lm, DTYPES[self.recipe.model.dtype])

    def sabotage(self, fault: str) -> None:
        """From now on: ``dropped``, ``altered``, ``head``, or nothing."""
        self.source.fault = fault
