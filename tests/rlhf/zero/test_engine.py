"""The engine on real DeepSpeed ranks, with networks so small that every gradient is known."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from rlhf.config.schema import OptimizerConfig, RoleConfig
from rlhf.errors import MachineryError
from rlhf.models.linear import NARROWEST, SMALLEST
from rlhf.models.packed_row import pack_row
from rlhf.models.policy import PolicyNet
from rlhf.zero.engine import ZeroEngine, full_shape
from rlhf.zero.process_group import Rank, join
from tests.rlhf.ranks import Crew
from tests.rlhf.tiny import random_sequences, tiny_model

STAGES = (0, 1, 2, 3)
PLAIN = OptimizerConfig(lr=0.5, schedule="constant", betas=(0.0, 0.0), eps=1.0, max_grad_norm=0.0)
"""Without momentum Adam's step is lr · g / (|g| + ε)."""


class Scale(nn.Module):
    """w · Σ x: the gradient of w is the sum of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def external_parameters(self) -> list[nn.Parameter]:
        return []

    def forward(self, x: Tensor) -> Tensor:
        return (self.w.float() * x).sum()


@dataclass(frozen=True)
class Trained:
    """A rank's results: each update's norm and learning rate, the next one's rate, the weight."""

    norms: list[float]
    rates: list[float]
    next_rate: float
    weight: float


def train_scale(
    rank: Rank,
    stage: int,
    splits: list[list[list[float]]],
    count: int,
    updates: int,
    optimizer: OptimizerConfig,
    dtype: str,
) -> Trained:
    """``updates`` steps on this rank's micro-batches, ``splits[rank]``."""
    place = join(rank)
    network = Scale().to(getattr(torch, dtype))
    engine = ZeroEngine(network, RoleConfig(zero_stage=stage), dtype, rank, place, optimizer, updates)
    rates, norms = [], []
    for _ in range(updates):
        norms.append(engine.update(splits[rank.rank], lambda x: engine.engine(torch.tensor(x)), count))
        rates.append(engine.learning_rate)
    [(_, weight)] = engine.full_state(network)
    return Trained(norms, rates, engine.engine.get_lr()[0], float(weight))


SPLITS = [
    [[[1.0, 2, 3, 4, 5, 6, 7]]],
    [[[1.0, 2], [3, 4, 5, 6, 7]]],
    [[[1.0], [2], [3], [4, 5, 6], [7]]],
    [[[1.0, 2]], [[3, 4, 5, 6, 7]]],
    [[[7.0, 1], [2]], [[3, 5, 6], [4]]],
    [[[1.0, 2, 3, 4], [5, 6, 7]], [[], []]],
]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("splits", SPLITS, ids=str)
def test_no_split_changes_the_gradient(splits: list[list[list[float]]], stage: int, crews: dict[int, Crew]) -> None:
    """OpenRLHF, tests/test_loss_aggregation.py: token losses 1..7 have the mean 28/7 = 4; means of means give 3.25."""
    for trained in crews[len(splits)].run(train_scale, stage, splits, 7, 1, PLAIN, "float32"):
        assert trained.norms == pytest.approx([4.0])
        assert trained.weight == pytest.approx(1 - 0.5 * 4 / (4 + 1))


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_are_clipped_to_the_norm_and_the_norm_is_the_one_before(stage: int, crews: dict[int, Crew]) -> None:
    clipped = OptimizerConfig(**{**asdict(PLAIN), "max_grad_norm": 1.0})
    for world, splits in ((1, SPLITS[1]), (2, SPLITS[4])):
        for trained in crews[world].run(train_scale, stage, splits, 7, 1, clipped, "float32"):
            assert trained.norms == pytest.approx([4.0])
            assert trained.weight == pytest.approx(1 - 0.5 * 1 / (1 + 1), rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_updates_too_small_for_bfloat16_add_up(stage: int, two_ranks: Crew) -> None:
    """Below 1 the numbers of bfloat16 are 1/256 apart: without a master copy each of ten steps of .001 would be lost.

    At stage 0 DeepSpeed takes an empty step first, so that Adam's correction of its first averages is one step ahead.
    """
    small = OptimizerConfig(lr=1e-3, schedule="constant", betas=(0.9, 0.95), eps=1e-8, max_grad_norm=0.0)
    splits = [[[1.0]], [[1.0]]]
    [once, _] = two_ranks.run(train_scale, stage, splits, 2, 1, small, "bfloat16")
    [often, _] = two_ranks.run(train_scale, stage, splits, 2, 10, small, "bfloat16")
    assert once.weight == 1.0
    assert often.weight == pytest.approx(0.99, abs=1 / 256)


class Wide(nn.Module):
    """Two layers that are wide enough for oneDNN, of which one reads the other's output behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(NARROWEST, NARROWEST), nn.Linear(NARROWEST, NARROWEST, bias=False)
        self.norm = LlamaRMSNorm(NARROWEST)

    def external_parameters(self) -> list[nn.Parameter]:
        return []

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.norm(self.inner(x).tanh())).square().sum()


def wide_rows() -> list[Tensor]:
    """Four micro-batches, each just large enough."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(SMALLEST // NARROWEST**2, NARROWEST, generator=generator) for _ in range(4)]


def train_wide(rank: Rank, stage: int) -> tuple[float, list[Tensor], set[str]]:
    """The norm of an update's gradient, the weights after it, and the names of all operations."""
    engine = ZeroEngine(network := Wide(), RoleConfig(zero_stage=stage), "float32", rank, join(rank), PLAIN, 1)
    rows = wide_rows()[rank.rank :: rank.world]
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        norm = engine.update(rows, engine.engine, 1000)
    weights = [tensor for _, tensor in engine.full_state(network)]
    return norm, weights, {event.key for event in seen.key_averages()}


@pytest.mark.parametrize("stage", STAGES)
def test_wide_layers_and_norms_are_trained_as_by_pytorch(stage: int, two_ranks: Crew) -> None:
    """Against the same network in plain PyTorch and float64: Adam's step is lr · g / (|g| + 1)."""
    network = Wide().double()
    norm_of = partial(nn.functional.rms_norm, normalized_shape=(NARROWEST,), eps=network.norm.variance_epsilon)
    network.norm.forward = lambda x: norm_of(x, weight=network.norm.weight)
    expected = [p.detach().clone() for p in network.parameters()]
    (sum(network(rows.double()) for rows in wide_rows()) / 1000).backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    for value, gradient in zip(expected, gradients, strict=True):
        value -= PLAIN.lr * gradient / (gradient.abs() + 1)
    for norm, weights, operations in two_ranks.run(train_wide, stage):
        assert {"mkldnn::_linear_pointwise", "_RmsNormBackward"} <= operations
        assert norm == pytest.approx(float(torch.nn.utils.get_total_norm(gradients)), rel=1e-5)
        for found, value in zip(weights, expected, strict=True):
            torch.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e-5)


def norm_of_many(rank: Rank, stage: int, parts: int) -> float:
    """The gradient's norm after 512 ones on each rank, in this many micro-batches, for a network in bfloat16."""
    engine = ZeroEngine(
        Scale().to(torch.bfloat16), RoleConfig(zero_stage=stage), "bfloat16", rank, join(rank), PLAIN, 1
    )
    return engine.update([torch.ones(512 // parts)] * parts, engine.engine, 1)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_of_bfloat16_add_up_in_float32(stage: int, crews: dict[int, Crew]) -> None:
    """In bfloat16 a sum of ones stops at 256, whose next number is 258."""
    for world, crew in crews.items():
        for parts in (1, 512):
            assert crew.run(norm_of_many, stage, parts) == [pytest.approx(512 * world, rel=1e-3)] * world


def test_the_rate_warms_up_and_falls_to_0_at_the_last_update(one_rank: Crew) -> None:
    linear = OptimizerConfig(lr=0.4, schedule="linear", warmup_steps=2)
    [trained] = one_rank.run(train_scale, 1, SPLITS[0], 7, 6, linear, "float32")
    assert trained.rates == pytest.approx([0, 0.2, 0.4, 0.3, 0.2, 0.1])
    assert trained.next_rate == 0


def test_a_constant_rate_warms_up_too(one_rank: Crew) -> None:
    constant = OptimizerConfig(lr=0.4, schedule="constant", warmup_steps=2)
    [trained] = one_rank.run(train_scale, 1, SPLITS[0], 7, 4, constant, "float32")
    assert trained.rates == pytest.approx([0, 0.2, 0.4, 0.4])


def skip_in_the_middle(rank: Rank, stage: int, made: int, skipped: int) -> list[float]:
    """The learning rates before and after skipped updates, and the rate after all updates."""
    linear = OptimizerConfig(lr=0.4, schedule="linear", warmup_steps=2)
    place, network, total = join(rank), Scale(), 2 * made + skipped
    engine = ZeroEngine(network, RoleConfig(zero_stage=stage), "float32", rank, place, linear, total)
    rates = []
    for _ in range(2):
        for _ in range(made):
            engine.update([torch.ones(1)], engine.engine, rank.world)
            rates.append(engine.learning_rate)
        engine.skip_updates(skipped if len(rates) == made else 0)
    return [*rates, engine.engine.get_lr()[0]]


@pytest.mark.parametrize("stage", STAGES)
def test_skipped_updates_count_in_the_schedule(stage: int, crews: dict[int, Crew]) -> None:
    """Of six updates the third and fourth are skipped: the rest have the rates that they would have had anyway."""
    for crew in crews.values():
        for rates in crew.run(skip_in_the_middle, stage, 2, 2):
            assert rates == pytest.approx([0, 0.2, 0.2, 0.1, 0])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_stops_every_rank(stage: int, bad: float, two_ranks: Crew) -> None:
    """Only the second rank's gradient is not finite."""
    with pytest.raises(MachineryError, match="in the gradient: its norm is"):
        two_ranks.run(train_scale, stage, [[[1.0]], [[bad]]], 2, 1, PLAIN, "float32")


def update_with(rank: Rank, numbers: list[float], stage: int) -> tuple[str, float]:
    """The error of an update whose watched tensor holds this rank's number, and the weight after it."""
    engine = ZeroEngine(Scale(), RoleConfig(ranks=2, zero_stage=stage), "float32", rank, join(rank), PLAIN, 1)

    def loss(value: float) -> Tensor:
        engine.finite.watch("values", torch.tensor([value, 1.0]))
        return engine.engine(torch.ones(1))

    with pytest.raises(MachineryError) as error:
        engine.update([numbers[rank.rank]], loss, 2)
    return str(error.value), float(dict(engine.full_state(engine.network))["w"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_watched_number_of_one_rank_stops_every_rank_before_the_step(stage: int, two_ranks: Crew) -> None:
    for message, weight in two_ranks.run(update_with, [0.0, math.nan], stage):
        assert message.endswith("in values: 1 of 4")
        assert weight == 1.0


def update_three_layers(rank: Rank, stage: int, overlaps: bool) -> list[list[float]]:
    """Weights after two updates of two micro-batches, with gradients reduced after or during the backward pass."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf.zero.settings.overlaps_collectives", lambda device: overlaps)
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 1))
        network.external_parameters = list
        role = RoleConfig(ranks=2, zero_stage=stage)
        engine = ZeroEngine(network, role, "float32", rank, join(rank), OptimizerConfig(lr=0.1, schedule="constant"), 2)
    for step in range(2):
        inputs = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(10 * step + rank.rank))
        engine.update(list(inputs), lambda x: engine.engine(x).square().sum(), 16)
    return [tensor.flatten().tolist() for _, tensor in engine.full_state(network)]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_overlapped_reductions_change_no_bit(stage: int, two_ranks: Crew) -> None:
    after, during = (two_ranks.run(update_three_layers, stage, overlaps) for overlaps in (False, True))
    assert during == after


def summed(rank: Rank) -> list[float]:
    """The ranks' numbers, 2^24 + rank, added up: in float32 the one would be lost."""
    engine = ZeroEngine(Scale(), RoleConfig(), "float32", rank, join(rank))
    return engine.all_reduce(torch.tensor([float(rank.rank), 2.0**24 + rank.rank], dtype=torch.float64)).tolist()


def test_sums_are_over_ranks_and_in_float64(crews: dict[int, Crew]) -> None:
    assert crews[1].run(summed) == [[0.0, 2.0**24]]
    assert crews[2].run(summed) == [[1.0, 2.0**25 + 1]] * 2


def shards_in_dirty_memory(rank: Rank) -> dict[str, list[float]]:
    """This rank's shards of parameters of 1, 3 and 4 numbers, where new memory is full of NaN."""
    network = Scale()
    network.three, network.four = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))
    torch.use_deterministic_algorithms(True)  # by torch.utils.deterministic.fill_uninitialized_memory
    try:
        ZeroEngine(network, RoleConfig(zero_stage=3), "float32", rank, join(rank), PLAIN, 1)
    finally:
        torch.use_deterministic_algorithms(False)
    return {name: parameter.ds_tensor.flatten().tolist() for name, parameter in network.named_parameters()}


def test_what_fills_up_a_shard_is_zero(two_ranks: Crew) -> None:
    """DeepSpeed leaves padding uninitialised; it would enter checkpoints and Adam's states."""
    first, second = two_ranks.run(shards_in_dirty_memory)
    assert first == {"w": [1.0], "three": [1.0, 1.0], "four": [1.0, 1.0]}
    assert second == {"w": [0.0], "three": [1.0, 0.0], "four": [1.0, 1.0]}


SEQUENCES = random_sequences((3, 5), (1, 4), (6, 1))


def frozen_logprobs(rank: Rank, stage: int) -> dict[str, Any]:
    """A frozen policy's output, whether its weights require gradients, and the full shapes of its tensors."""
    place = join(rank)
    lm = tiny_model(AutoModelForCausalLM, "qwen2")
    shapes = {name: tuple(tensor.shape) for name, tensor in lm.state_dict().items()}
    engine = ZeroEngine(PolicyNet(lm), RoleConfig(zero_stage=stage), "float32", rank, place)
    (logprobs,) = engine.forward(pack_row(SEQUENCES, [0, 1, 2], place), 0.7)
    named = engine.named_tensors(lm)
    return {
        "logprobs": logprobs.numpy(),
        "trainable": any(parameter.requires_grad for parameter in lm.parameters()) or logprobs.requires_grad,
        "shapes_agree": {name: full_shape(tensor) for name, tensor in named.items()} == shapes,
        "state": {name: tensor.numpy() for name, tensor in engine.full_state(lm)},
        "sharded": any(tensor.numel() < np.prod(shapes[name]) for name, tensor in named.items()),
    }


@pytest.mark.parametrize("stage", STAGES)
def test_a_frozen_network_answers_as_without_deepspeed(stage: int, two_ranks: Crew) -> None:
    lm = tiny_model(AutoModelForCausalLM, "qwen2")
    with torch.no_grad():
        (expected,) = PolicyNet(lm)(pack_row(SEQUENCES, [0, 1, 2], "cpu"), 0.7)
    for answer in two_ranks.run(frozen_logprobs, stage):
        np.testing.assert_allclose(answer["logprobs"], expected.numpy(), rtol=1e-5, atol=1e-5)
        assert not answer["trainable"]


@pytest.mark.parametrize("stage", [0, 3])
def test_all_tensors_come_whole_under_their_names(stage: int, two_ranks: Crew) -> None:
    expected = tiny_model(AutoModelForCausalLM, "qwen2").state_dict()
    assert "lm_head.weight" in expected  # tied, and still under its own name
    for answer in two_ranks.run(frozen_logprobs, stage):
        assert answer["sharded"] is (stage == 3) and answer["shapes_agree"]
        assert answer["state"].keys() == expected.keys()
        for name, tensor in expected.items():
            np.testing.assert_array_equal(answer["state"][name], tensor.numpy(), err_msg=name)
