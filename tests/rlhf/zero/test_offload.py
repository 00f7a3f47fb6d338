"""Training with offloaded state equals training without offloading, on real DeepSpeed ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rlhf.config.schema import RoleConfig
from rlhf.placement.pools import Part
from rlhf.zero import checkpoint, offload
from rlhf.zero.engine import ZeroEngine
from rlhf.zero.offload import Offloader, find_tensors
from rlhf.zero.process_group import Rank, join
from tests.rlhf.ranks import Crew
from tests.rlhf.zero.test_checkpoint import (
    DTYPES,
    STAGES,
    Net,
    Setup,
    assert_same,
    build,
    contents,
    of_all_ranks,
    train,
    weights,
)

ALL: tuple[Part, ...] = ("states", "weights")
WIDE = Setup(width=64)
"""A network whose tensors are large enough to be offloaded."""


def filled(engine: ZeroEngine) -> dict[Part, int]:
    """Bytes of a network on its device, by part."""
    own = engine.offloader
    weights, states = own._storages(own._weights()), own._storages(own._states())
    return {"weights": sum(size for _, size in weights.values()), "states": sum(size for _, size in states.values())}


def rest_between(rank: Rank, setup: Setup) -> None:
    """Two engines make the same updates; one is offloaded before each update and before a snapshot."""
    busy, offloading = build(rank, setup), build(rank, setup)
    tokens = torch.arange(6)
    for update in range(3):
        assert train(busy, update, 1) == train(offloading, update, 1)
        offloading.offload(ALL[:1])
        assert filled(offloading)["states"] == 0 < filled(offloading)["weights"]
        assert torch.equal(busy.forward(tokens), offloading.forward(tokens)) and filled(offloading)["states"] == 0
        offloading.offload(ALL)
        offloading.offload(ALL)  # no effect: it is offloaded already
        assert filled(offloading) == {"weights": 0, "states": 0}
        assert_same(contents(checkpoint.snapshot(offloading)), contents(checkpoint.snapshot(busy)))
        assert filled(offloading) == {"weights": 0, "states": 0}, "a snapshot is taken from the host"
        assert torch.equal(busy.forward(tokens), offloading.forward(tokens)) and filled(offloading)["states"] == 0
        assert busy.frozen_fingerprint == offloading.frozen_fingerprint
    offloading.offload(ALL)
    assert train(busy, 3) == train(offloading, 3)
    offloading.offload(ALL)
    for name, weight in weights(offloading).items():
        np.testing.assert_array_equal(weight, weights(busy)[name], err_msg=name)
    assert filled(offloading)["states"] == 0, "a model is saved without the optimizer"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", STAGES)
def test_training_with_rests_is_training_without_bit_for_bit(stage: int, dtype: str, two_ranks: Crew) -> None:
    two_ranks.run(rest_between, replace(WIDE, stage=stage, dtype=dtype))


@pytest.mark.parametrize(("stage", "dtype"), [(0, "float32"), (1, "bfloat16"), (3, "bfloat16")])
def test_so_it_is_with_adapters(stage: int, dtype: str, two_ranks: Crew) -> None:
    two_ranks.run(rest_between, Setup(stage=stage, dtype=dtype, network="adapters"))


def restore_while_resting(rank: Rank, setup: Setup) -> None:
    """An offloaded engine restores a snapshot taken while it was offloaded, and continues like another engine."""
    engine = build(rank, setup)
    train(engine, 0)
    engine.offload(ALL)
    shards = of_all_ranks(engine)
    told = train(engine, 2)
    ended = contents(checkpoint.snapshot(engine))
    fresh = build(rank, replace(setup, shift=1.0))
    for again in (engine, fresh):
        again.offload(ALL)
        checkpoint.restore(again, shards)
        again.offload(ALL)  # restoring may have replaced tensors
        assert train(again, 2) == told
        assert_same(contents(checkpoint.snapshot(again)), ended)


@pytest.mark.parametrize(("stage", "dtype"), [(0, "bfloat16"), (1, "float32"), (2, "bfloat16"), (3, "float32")])
def test_a_resting_network_is_snapshotted_and_restored(stage: int, dtype: str, two_ranks: Crew) -> None:
    two_ranks.run(restore_while_resting, replace(WIDE, stage=stage, dtype=dtype))


def rest_frozen(rank: Rank, stage: int) -> tuple[bool, list[int], list[bool]]:
    """Whether a frozen network's output survives offloading, its bytes while offloaded, and whether it is copied."""
    network = Net(64)
    engine = ZeroEngine(network, RoleConfig(zero_stage=stage), "float32", rank, join(rank))
    tokens, answers, sizes, copied = torch.arange(6), [], [], []
    for _ in range(3):
        answers.append(engine.forward(tokens))
        for chunk in engine.offloader._buffers["weights"]._chunks:
            chunk.zero_()  # to see whether the weights are copied again
        engine.offload(ALL)
        sizes.append(filled(engine)["weights"])
        copied.append(any(bool(chunk.any()) for chunk in engine.offloader._buffers["weights"]._chunks))
        if not copied[-1]:
            return all(torch.equal(each, answers[0]) for each in answers), sizes, copied
    return False, sizes, copied


@pytest.mark.parametrize("stage", [0, 3])
def test_frozen_weights_are_copied_to_the_host_once(stage: int, two_ranks: Crew) -> None:
    for is_same, sizes, copied in two_ranks.run(rest_frozen, stage):
        assert is_same
        assert sizes == [0, 0] and copied == [True, False]


def test_views_of_one_storage_come_back_as_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage over several chunks, seen by three tensors; a small one stays, as flags do."""
    monkeypatch.setattr(offload, "CHUNK", 1024)
    network = torch.nn.Linear(40, 30, bias=False)
    flat, flag = torch.arange(3000.0), torch.ones(2)
    holder = torch.optim.SGD([torch.nn.Parameter(flat[100:200])], lr=1.0)
    holder.views, holder.flag = [flat, flat[5:2005].view(50, 40).t()], flag  # type: ignore[attr-defined]
    own = Offloader(network, torch.device("cpu"), holder)
    own.offload("states")
    assert flat.untyped_storage().nbytes() == 0 and network.weight.untyped_storage().nbytes() > 0
    assert torch.equal(flag, torch.ones(2))
    with own.on_host():
        assert torch.equal(holder.views[0], torch.arange(3000.0))  # type: ignore[attr-defined]
        assert torch.equal(holder.views[1][3], torch.arange(8.0, 2005, 40))  # type: ignore[attr-defined]
        assert holder.param_groups[0]["params"][0].tolist() == list(range(100, 200))
    assert holder.views[0] is flat and flat.untyped_storage().nbytes() == 0  # type: ignore[attr-defined]
    own.reload("states")
    assert torch.equal(flat, torch.arange(3000.0))
    flat[5] = -1.0
    assert holder.views[1][0, 0] == -1.0, "it is one storage still"  # type: ignore[attr-defined]


def test_scales_of_quantised_weights_are_weights() -> None:
    """bitsandbytes keeps them in an attribute of the parameter; every forward pass multiplies by them."""
    network, scales = torch.nn.Linear(40, 30, bias=False), torch.arange(400.0)
    network.weight.quant_state = {"absmax": scales}  # type: ignore[assignment]
    own = Offloader(network, torch.device("cpu"), torch.optim.SGD(network.parameters(), lr=1.0))
    sizes: list[int] = []  # a message of a failed assertion would read the tensor, whose memory may be gone
    for what in ("states", "weights"):
        own.offload(what)
        sizes.append(scales.untyped_storage().nbytes())
    assert sizes == [4 * 400, 0], "left where a forward pass finds them, until the weights rest too"
    own.reload("weights")
    assert torch.equal(scales, torch.arange(400.0))


def test_tensors_are_found_behind_objects_of_the_libraries_alone() -> None:
    """Searches lists, dictionary keys, gradients and attributes, but not other objects; cycles end."""
    parameter = torch.nn.Parameter(torch.ones(1))
    parameter.grad, parameter.shard = torch.ones(2)[:1], torch.ones(3)  # type: ignore[attr-defined]
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    optimizer.state[parameter]["average"] = torch.ones(4)
    optimizer.itself, optimizer.foreign = [optimizer], offload.HostBuffer(torch.device("cpu"), changes=True)  # type: ignore[attr-defined]
    optimizer.foreign._chunks.append(torch.ones(5))  # type: ignore[attr-defined]
    assert sorted(each.untyped_storage().nbytes() // 4 for each in find_tensors(optimizer)) == [1, 2, 3, 4]
