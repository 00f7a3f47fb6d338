"""Low-rank adapters (Hu et al. 2021, section 4.1): a frozen W becomes W + (alpha/rank)·B·A, and only A and B learn.

peft inserts them into the transformers model in place, so code that runs the model needs no change. Engines and saved
models get the adapters merged, under the plain model's tensor names.

Shapes: W (out, in), A (rank, in), B (out, rank). GPT-2's ``Conv1D`` keeps W as (in, out).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf.config.schema import LoRAConfig
from rlhf.errors import UserError
from rlhf.models.stored import dequantised

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

ALL = "all-linear"
NAME = "default"  # peft's own name for the only adapter
DRAW = 10**9 + 7  # separates this random stream from other uses of the same seed


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One layer's adapter. Under ZeRO-3 both tensors are shards: merge within ``ZeroEngine.full``."""

    a: Tensor
    b: Tensor
    scale: float
    is_transposed: bool
    """Whether the layer stores W as (in, out)."""

    def merged(self, weight: Tensor) -> Tensor:
        """W + (alpha/rank)·B·A, in float32; W dequantised if it is quantised."""
        update = self.scale * (self.b.detach().float() @ self.a.detach().float())
        return dequantised(weight).float() + (update.T if self.is_transposed else update)


def add_adapters(model: PreTrainedModel, config: LoRAConfig, seed: int, heads: Sequence[str] = ()) -> None:
    """Freeze the model, quantise it if configured, and insert adapters into its linear layers, in place.

    B is zero and A is uniform as in peft, drawn from ``seed``: the same on every rank and at every ZeRO stage.

    Args:
        heads: names of a classifier's modules outside its backbone, which are trained as a whole.

    Raises:
        UserError: a target names no linear layer, there are no targets, or the model cannot be quantised.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes a second: it brings bitsandbytes

    layers = _linear_layers(model, heads)
    if config.quantization is not None:
        from rlhf.models.nf4 import quantise  # imports bitsandbytes

        quantise(model, layers)
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft only divides it by the rank
        target_modules=_select_layers(config.targets, layers),
        lora_dropout=0.0,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
        base_model_name_or_path=model.name_or_path,
        task_type="SEQ_CLS" if heads else "CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):  # A is drawn on the CPU, whatever the model's device
        torch.random.default_generator.manual_seed(int(np.random.default_rng([seed, DRAW]).integers(2**63)))
        holder = nn.ModuleList([model])  # hides the model's type, for which peft would redirect targets
        holder.is_loaded_in_4bit = config.quantization is not None
        inject_adapter_in_model(settings, holder, NAME)
        model.peft_config = holder.peft_config
    settings.modules_to_save = list(heads) or None  # for the saved file alone: peft would wrap them
    for head in heads:
        model.get_submodule(head).requires_grad_(True)


def _linear_layers(model: PreTrainedModel, heads: Sequence[str]) -> dict[str, nn.Module]:
    """Layers that can have adapters, by name: all linear layers but those of heads, which run outside the backbone.

    A router that is a linear layer and returns more than its product is excluded.
    """
    outside = {model.get_output_embeddings(), *(part for head in heads for part in model.get_submodule(head).modules())}
    return {name: layer for name, layer in model.named_modules() if layer not in outside and _is_linear(layer)}


def _is_linear(layer: nn.Module) -> bool:
    if type(layer).forward in (nn.Linear.forward, Conv1D.forward):
        return True
    if not isinstance(layer, nn.Linear):
        return False
    shapes = {"weight": (layer.out_features, layer.in_features), "bias": (layer.out_features,)}
    shapeless = {name: torch.empty(shapes[name], device="meta") for name, _ in layer.named_parameters()}
    result = torch.func.functional_call(layer, shapeless, torch.empty(1, layer.in_features, device="meta"))
    return isinstance(result, Tensor)


def _select_layers(targets: Iterable[str], layers: Iterable[str]) -> list[str]:
    """Names of the layers whose name, or last part of it, is a target."""
    found = {
        target: [name for name in layers if target in (ALL, name) or name.endswith(f".{target}")] for target in targets
    }
    missing = [target for target, names in found.items() if not names]
    if missing or not found:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
        raise UserError(
            f"model.lora.targets: the model has no linear layer {missing[0]!r}"
            if missing
            else "model.lora.targets = []",
            f"its linear layers are {known}; the output head and embeddings get no adapters",
            f"name some of these, or {ALL}",
        )
    return sorted({name for names in found.values() for name in names})


def adapter_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Layers with adapters, by the plain model's names; empty for a plain model."""
    peft = sys.modules.get("peft.tuners.lora")
    if peft is None:  # which has made none then
        return {}
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, peft.LoraLayer)}


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """Adapters, by the plain model's name of the weight that each one changes."""
    return {
        f"{name}.weight": Adapter(
            a=layer.lora_A[NAME].weight,
            b=layer.lora_B[NAME].weight,
            scale=layer.scaling[NAME],
            is_transposed=isinstance(layer.get_base_layer(), Conv1D),
        )
        for name, layer in adapter_layers(model).items()
    }


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors without adapters, under the plain model's names and in its order.

    A tied output head appears under its own name too.
    """
    layers = adapter_layers(model)
    plain = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        layer, _, rest = name.partition(".base_layer.")
        if layer in layers:
            plain[f"{layer}.{rest}"] = tensor
        elif name.partition(".lora_")[0] not in layers:
            plain[name] = tensor
    return plain


def parts(names: Iterable[str], plain: Mapping[str, Tensor], adapted: Mapping[str, Adapter]) -> list[Tensor]:
    """All tensors that ``merged`` needs for these names."""
    own = [adapted[name] for name in names if name in adapted]
    return [plain[name] for name in names] + [tensor for adapter in own for tensor in (adapter.a, adapter.b)]


def merged(name: str, plain: Mapping[str, Tensor], adapted: Mapping[str, Adapter]) -> Tensor:
    """The plain model's tensor of this name, dequantised; if it has an adapter, merged in float32."""
    return adapted[name].merged(plain[name]) if name in adapted else dequantised(plain[name])


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All trained tensors, A, B and a classifier's head, under the names of peft's files."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {f"base_model.model.{name.replace(f'.{NAME}.', '.')}": parameter for name, parameter in trained.items()}


def adapter_settings(model: nn.Module) -> LoraConfig | None:
    """peft's settings of the adapters, or None."""
    settings = getattr(model, "peft_config", None)
    return settings[NAME] if settings else None


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Disable the adapters within the block: the model computes exactly as before it had them."""
    layers = adapter_layers(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
