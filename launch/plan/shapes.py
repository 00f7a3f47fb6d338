"""A model's shape, from its ``config.json`` alone: its number of parameters and the sizes of its activations.

Shapes: h hidden size, L layers, f width inside the feed-forward block, V vocabulary, A all attention heads together,
K all key-value heads together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhf.config.schema import ScratchConfig
from rlhf.errors import UserError

Kind = Literal["gated", "neox", "gpt2"]
KINDS: dict[str, Kind] = {
    "llama": "gated",
    "mistral": "gated",
    "qwen2": "gated",
    "qwen3": "gated",
    "gpt_neox": "neox",
    "gpt2": "gpt2",
}
"""``model_type`` of a config → structure of its layers."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a causal language model."""

    name: str
    kind: Kind
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int
    tied: bool
    """Whether embedding and output head share one matrix."""
    biased: tuple[str, ...] = ()
    """Linear layers with a bias."""
    qk_norm: bool = False
    """Whether queries and keys are normalised by head (Qwen3)."""

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Linear layers inside one decoder layer: name → (inputs, outputs)."""
        h, f, a, k = self.hidden, self.intermediate, self.heads * self.head_dim, self.kv_heads * self.head_dim
        if self.kind == "gated":
            attention = {"q_proj": (h, a), "k_proj": (h, k), "v_proj": (h, k), "o_proj": (a, h)}
            return {**attention, "gate_proj": (h, f), "up_proj": (h, f), "down_proj": (f, h)}
        if self.kind == "neox":
            attention = {"query_key_value": (h, 3 * h), "dense": (h, h)}
            return {**attention, "dense_h_to_4h": (h, f), "dense_4h_to_h": (f, h)}
        return {"attn.c_attn": (h, 3 * h), "attn.c_proj": (h, h), "mlp.c_fc": (h, f), "mlp.c_proj": (f, h)}

    @property
    def matrices(self) -> int:
        """Parameters of one layer's matrices; a token's forward pass takes 2 FLOPs for each."""
        return sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def layer(self) -> int:
        """Parameters of one decoder layer."""
        biases = sum(self.linears[name][1] for name in self.biased)
        norms = 2 * self.hidden if self.kind == "gated" else 4 * self.hidden
        return self.matrices + biases + norms + (2 * self.head_dim if self.qk_norm else 0)

    @property
    def embedding(self) -> int:
        """Parameters of the token embedding, which equal those of the output head."""
        return self.vocab * self.hidden

    @property
    def backbone(self) -> int:
        """Parameters without a separate output head."""
        positions = self.context * self.hidden if self.kind == "gpt2" else 0
        norm = self.hidden if self.kind == "gated" else 2 * self.hidden
        return self.embedding + positions + self.layers * self.layer + norm

    @property
    def parameters(self) -> int:
        """Parameters of the language model."""
        return self.backbone + (0 if self.tied else self.embedding)

    @property
    def classifier(self) -> int:
        """Parameters of the same backbone with one label: a reward model or a critic."""
        return self.backbone + self.hidden

    def adapters(self, rank: int, targets: Sequence[str]) -> int:
        """Parameters of LoRA's A and B over the layers in ``targets``."""
        chosen = [
            size
            for name, size in self.linears.items()
            if any(target in ("all-linear", name, name.rpartition(".")[2]) for target in targets)
        ]
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in chosen)

    def kv_bytes(self, size: int, shards: int = 1) -> int:
        """KV cache bytes per token on each of ``shards`` GPUs, at ``size`` bytes per number; heads are not split."""
        return 2 * self.layers * -(-self.kv_heads // shards) * self.head_dim * size


def shape_of(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape described by a ``config.json``.

    Raises:
        UserError: the model type is unknown, or a size is missing.
    """
    kind = config.get("model_type")
    if kind not in KINDS:
        raise UserError(
            f"the config of {name!r} has model_type = {kind!r}",
            f"model sizes can be computed for {', '.join(KINDS)}",
            "plan with a model of one of these types and of similar size",
        )
    read = _Fields(config, name)
    return _gpt2(read) if kind == "gpt2" else _rotary(read, str(kind))


class _Fields:
    """Reads whole numbers of a config, under one of several names."""

    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        self.config, self.name = config, name

    def number(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or value < 1:
            found = "is missing" if value is None else f"is {value!r:.40}"
            raise UserError(
                f"the config of {self.name!r}: {key} {found}",
                "the model's size follows from it",
                "give the config.json that came with the model",
            )
        return value

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.config.get(key, default))


def _rotary(read: _Fields, kind: str) -> ModelShape:
    hidden, heads = read.number("hidden_size"), read.number("num_attention_heads")
    neox = KINDS[kind] == "neox"
    kv_heads = heads if neox else read.number("num_key_value_heads", heads)
    return ModelShape(
        name=read.name,
        kind=KINDS[kind],
        layers=read.number("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=read.number("head_dim", max(1, hidden // heads)),
        intermediate=read.number("intermediate_size"),
        vocab=read.number("vocab_size"),
        context=read.number("max_position_embeddings", 2**31),
        tied=read.flag("tie_word_embeddings", False),
        biased=_biased(read, kind),
        qk_norm=kind == "qwen3",
    )


def _biased(read: _Fields, kind: str) -> tuple[str, ...]:
    """Linear layers with a bias, as transformers builds them."""
    if kind == "gpt_neox":
        fused = ("query_key_value", "dense") if read.flag("attention_bias", True) else ()
        return (*fused, "dense_h_to_4h", "dense_4h_to_h")
    if kind == "qwen2":
        return ("q_proj", "k_proj", "v_proj")
    attention = ("q_proj", "k_proj", "v_proj", "o_proj") if read.flag("attention_bias", False) else ()
    return (*attention, *(("gate_proj", "up_proj", "down_proj") if read.flag("mlp_bias", False) else ()))


def _gpt2(read: _Fields) -> ModelShape:
    hidden, heads = read.number("n_embd"), read.number("n_head")
    return ModelShape(
        name=read.name,
        kind="gpt2",
        layers=read.number("n_layer"),
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=max(1, hidden // heads),
        intermediate=read.number("n_inner", 4 * hidden),
        vocab=read.number("vocab_size"),
        context=read.number("n_positions"),
        tied=read.flag("tie_word_embeddings", True),
        biased=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    )


def scratch_shape(config: ScratchConfig) -> ModelShape:
    """The shape of a randomly initialised model, with the largest vocabulary that it may get."""
    return ModelShape(
        name="model.scratch",
        kind="gated",
        layers=config.layers,
        hidden=config.hidden_size,
        heads=config.heads,
        kv_heads=config.heads,
        head_dim=max(1, config.hidden_size // config.heads),
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
        context=config.max_length,
        tied=config.tie_embeddings,
    )
