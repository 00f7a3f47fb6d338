"""The trainer's weights as a source for vLLM's weight-transfer API: whole tensors under Hugging Face names."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

from rlhf.device import wait_for_stream
from rlhf.models.lora import adapters, merged, parts
from rlhf.weights.fingerprint import Fingerprint, add, fingerprint, group_of
from rlhf.zero.engine import ZeroEngine, full_shape


class ZeroSource(WeightSource):
    """All parameters of a model under DeepSpeed, gathered layer by layer under ZeRO-3, with adapters merged.

    The engine receives the plain model, and verifies merged weights like any others. A tied output head is also sent
    under its own name, because the engine would otherwise silently keep a stale copy.

    Args:
        merges: whether adapters are merged; otherwise the tensors are those of the base model.
    """

    def __init__(self, engine: ZeroEngine, model: nn.Module, dtype: torch.dtype, merges: bool = True) -> None:
        self.engine, self.model, self.dtype, self.merges = engine, model, dtype, merges
        self.head = self._saved_head()
        self._hashing = ThreadPoolExecutor(1, "fingerprint")
        self._sums: list[Future[Fingerprint]] = []
        """Fingerprints of the layers of the last iteration."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of the tensors of the last iteration; empty except on rank 0. Waits until it is computed."""
        return add(sums.result() for sums in self._sums)

    def _saved_head(self) -> str:
        """The output head's name in a saved model; in memory it may have another (GPT-NeoX: ``embed_out``)."""
        head = self.model.get_output_embeddings()
        name = next((name for name, module in self.model.named_modules() if module is head), "lm_head")
        weight = torch.empty(full_shape(head.weight), device="meta")
        return next(iter(self._as_saved({f"{name}.weight": weight}))).rpartition(".")[0]

    def _parameters(self) -> dict[str, Tensor]:
        named = self.engine.named_tensors(self.model)
        return {name: tensor for name, tensor in named.items() if isinstance(tensor, nn.Parameter)}

    def metadata(self) -> list[ParamMeta]:
        """Name, dtype and full shape of every tensor, in iteration order."""
        plain = {name: torch.empty(full_shape(t), device="meta") for name, t in self._parameters().items()}
        groups = [self._as_saved({name: plain[name] for name in group}) for group in _consecutive_groups(list(plain))]
        return [ParamMeta(name, self.dtype, tuple(t.shape)) for group in groups for name, t in group.items()]

    def _as_saved(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert one layer's tensors to the names and shapes of a saved model, which the engine loads.

        In memory transformers may fuse tensors that a checkpoint stores separately, such as experts, or rename them.
        """
        saved: dict[str, Tensor] = revert_weight_conversion(self.model, tensors)
        return saved

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._sums = []
        plain, adapted = self._parameters(), adapters(self.model) if self.merges else {}
        for group in _consecutive_groups(list(plain)):
            with self.engine.full(parts(group, plain, adapted)):
                whole = {name: merged(name, plain, adapted).to(self.dtype, copy=self.engine.gathers) for name in group}
            tensors = self._as_saved(whole)
            if self.engine.rank == 0:
                named = [(self._engine_name(name), tensor) for name, tensor in tensors.items()]
                wait_for_stream(self.engine.device)  # vLLM's sender has one of its own, which the thread does not know
                self._sums.append(self._hashing.submit(fingerprint, named))  # while the tensors are sent
                if self.engine.gathers:
                    self._sums[-1].result()  # so that gathered tensors do not pile up
            yield from tensors.items()

    def _engine_name(self, name: str) -> str:
        """The tensor's name in the engine, which calls every output head ``lm_head`` (InternLM2: ``output``)."""
        return f"lm_head.{name.rpartition('.')[2]}" if name.rpartition(".")[0] == self.head else name


def _consecutive_groups(names: list[str]) -> list[list[str]]:
    groups: list[list[str]] = []
    for name in names:
        if groups and group_of(groups[-1][-1]) == group_of(name):
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups
