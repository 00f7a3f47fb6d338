"""Fingerprints of modules that hide their matrices like vLLM's CPU layers: they only provide the product x·Wᵀ."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rlhf.weights import held
from rlhf.weights.fingerprint import add, differences, fingerprint
from rlhf.weights.held import HeldWeights, held_tensors

DTYPES = [torch.float32, torch.bfloat16]


class Layer(nn.Module):
    """A weight, optionally a bias, and attributes that vLLM sets on modules."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, **notes: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        if bias is not None:
            self.bias = nn.Parameter(bias.clone())
        for name, value in notes.items():
            setattr(self, name, value)


def repack(layer: Layer) -> Layer:
    """Hide the matrix: the layer's own parameter is emptied, and a closure over a copy multiplies."""
    weight = layer.weight.detach().clone()
    layer.cpu_linear = lambda x, _, bias: functional.linear(x, weight, bias)
    layer.weight = nn.Parameter(torch.empty(0, dtype=weight.dtype))
    return layer


def random(rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Values over many orders of magnitude, whose sums would round."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.randint(-8, 8, (rows, columns), generator=generator)
    return (torch.randn(rows, columns, generator=generator) * scale).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slice_of_identity", [1024, 7])
def test_a_repacked_matrix_is_recovered_to_the_last_bit(
    dtype: torch.dtype, slice_of_identity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "_ROWS", slice_of_identity)
    weight, bias = random(30, 20, dtype), random(30, 1, dtype)[:, 0]
    model = nn.ModuleDict({"proj": repack(Layer(weight, bias, input_size_per_partition=20))})
    *columns, (name, found) = held_tensors(model)
    assert {each for each, _ in columns} == {"proj.weight"} and len(columns) == -(-20 // slice_of_identity)
    assert torch.equal(torch.cat([part for _, part in columns], dim=1), weight)
    assert name == "proj.bias" and torch.equal(found, bias)


def test_the_width_of_an_embedding_is_its_dimension() -> None:
    weight = random(9, 5)
    [(name, found)] = held_tensors(nn.ModuleDict({"head": repack(Layer(weight, embedding_dim=5))}))
    assert name == "head.weight" and torch.equal(found, weight)


def test_the_width_of_a_router_is_its_inputs() -> None:
    weight = random(9, 5)
    [(_, found)] = held_tensors(nn.ModuleDict({"gate": repack(Layer(weight, input_size=5))}))
    assert torch.equal(found, weight)


def test_a_router_with_two_names_in_its_layer_counts_once_and_a_shared_head_twice() -> None:
    """vLLM gives its experts the router of their layer too; a tied head has the embedding's numbers, maybe repacked."""
    router, table = Layer(random(4, 5)), Layer(random(9, 5))
    block = nn.ModuleDict({"gate": router, "experts": nn.ModuleDict({"gate": router})})
    model = nn.ModuleDict({"model": nn.ModuleDict({"embed_tokens": table, "layers": nn.ModuleList([block])})})
    model["lm_head"] = table
    names = [name for name, _ in held_tensors(model)]
    assert names == ["model.embed_tokens.weight", "model.layers.0.gate.weight", "lm_head.weight"]


def test_a_model_without_a_head_is_spared_the_head_that_it_is_sent() -> None:
    """vLLM's Gemma 2 computes logits with its embedding, and refuses a name that it does not know."""

    class Loading(nn.Module):
        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> list[str]:
            return [name for name, _ in weights]

    sent = [("model.norm.weight", torch.ones(1)), ("lm_head.weight", torch.ones(1))]
    without, having = Loading(), Loading()
    having.lm_head = nn.Identity()
    for model in (without, having):
        worker = HeldWeights()
        worker.model_runner = SimpleNamespace(model=model)  # type: ignore[attr-defined]
        worker.pass_over_absent_head()
    assert without.load_weights(sent) == ["model.norm.weight"]
    assert having.load_weights(sent) == ["model.norm.weight", "lm_head.weight"]


class Served(nn.Module):
    """A model with a tied output head, one repacked layer and a norm."""

    def __init__(self, embedding: Tensor, projection: Tensor, norm: Tensor, head: Tensor) -> None:
        super().__init__()
        self.embed = Layer(embedding)
        self.layers = nn.ModuleList([nn.ModuleDict({"proj": repack(Layer(projection, input_size_per_partition=8))})])
        self.norm = Layer(norm)
        self.head = repack(Layer(head, embedding_dim=8))


STATE = {
    "embed.weight": random(11, 8, seed=1),
    "layers.0.proj.weight": random(6, 8, seed=2),
    "norm.weight": random(1, 8, seed=3)[0],
}
STATE["head.weight"] = STATE["embed.weight"]


def test_the_fingerprint_of_a_served_model_is_that_of_its_state() -> None:
    served = Served(*STATE.values())
    assert differences(fingerprint(STATE.items()), fingerprint(held_tensors(served))) == []


@pytest.mark.parametrize("stale", list(STATE))
def test_a_stale_tensor_is_named_even_where_only_the_repacked_copy_is_stale(stale: str) -> None:
    served = Served(*{**STATE, stale: torch.nextafter(STATE[stale], torch.tensor(torch.inf))}.values())
    expected = "layers.0" if stale.startswith("layers") else stale
    assert differences(fingerprint(STATE.items()), fingerprint(held_tensors(served))) == [expected]


def test_a_module_under_two_names_is_held_under_both() -> None:
    shared = Layer(STATE["embed.weight"])
    names = [name for name, _ in held_tensors(nn.ModuleDict({"embed": shared, "head": shared}))]
    assert names == ["embed.weight", "head.weight"]


def test_shards_of_a_tensor_parallel_model_add_up_to_the_whole() -> None:
    """Vocabulary and outputs are cut by rows, inputs by columns; norms and biases of row-parallel layers repeat."""
    whole = {
        "embed.weight": random(12, 8, seed=1),
        "column.weight": random(6, 8, seed=2),
        "column.bias": random(6, 1, seed=3)[:, 0],
        "row.weight": random(8, 6, seed=4),
        "row.bias": random(8, 1, seed=5)[:, 0],
        "norm.weight": random(8, 1, seed=6)[:, 0],
    }

    def shard(rank: int) -> nn.Module:
        rows = lambda tensor: tensor.chunk(2)[rank]  # noqa: E731
        column = Layer(rows(whole["column.weight"]), rows(whole["column.bias"]), output_size_per_partition=3, tp_size=2)
        columns = {"input_size_per_partition": 3, "output_size_per_partition": 8, "input_is_parallel": True}
        row = Layer(whole["row.weight"].chunk(2, dim=1)[rank], whole["row.bias"], **columns, tp_size=2)
        embed = Layer(rows(whole["embed.weight"]), num_embeddings_per_partition=6, tp_size=2)
        return nn.ModuleDict({"embed": embed, "column": column, "row": row, "norm": Layer(whole["norm.weight"])})

    parts = [fingerprint(held_tensors(shard(rank), first_shard=rank == 0)) for rank in range(2)]
    assert differences(fingerprint(whole.items()), add(parts)) == []


@pytest.mark.parametrize("repacked", [False, True])
def test_key_and_value_heads_that_shards_repeat_count_once(repacked: bool) -> None:
    """Four query heads and two key-value heads, two wide, on four shards: each key-value head is on two of them."""
    sizes = {"q": 8, "k": 4, "v": 4}
    whole = {f"{name}.weight": random(rows, 5, seed=rows + ord(name)) for name, rows in sizes.items()}
    whole |= {f"{name}.bias": random(rows, 1, seed=rows + 1 + ord(name))[:, 0] for name, rows in sizes.items()}

    def shard(rank: int) -> nn.Module:
        part = lambda kind: torch.cat(  # noqa: E731
            [
                whole[f"q.{kind}"].chunk(4)[rank],
                whole[f"k.{kind}"].chunk(2)[rank // 2],
                whole[f"v.{kind}"].chunk(2)[rank // 2],
            ]
        )
        heads = {"num_heads": 1, "head_size": 2, "num_kv_head_replicas": 2}
        sizes = {"input_size_per_partition": 5, "output_size_per_partition": 6}
        layer = Layer(part("weight"), part("bias"), **heads, **sizes, tp_size=4, tp_rank=rank)
        return nn.ModuleDict({"0": repack(layer) if repacked else layer})

    parts = [fingerprint(held_tensors(shard(rank), first_shard=rank == 0)) for rank in range(4)]
    expected = fingerprint((f"0.{name}", tensor) for name, tensor in whole.items())
    assert differences(expected, add(parts)) == []


def test_a_layer_that_is_whole_on_every_shard_counts_once() -> None:
    layer = Layer(random(6, 8), output_size_per_partition=6, tp_size=1)
    assert list(held_tensors(nn.ModuleDict({"gate": layer}), first_shard=False)) == []
