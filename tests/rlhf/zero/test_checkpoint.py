"""Training that resumes from a snapshot on real DeepSpeed ranks equals training without interruption."""

from __future__ import annotations

import gc
import json
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from rlhf.config.schema import LoRAConfig, ModelConfig, OptimizerConfig, PlacementConfig, Recipe, RoleConfig
from rlhf.errors import UserError
from rlhf.models.examination import Examination
from rlhf.models.lora import add_adapters
from rlhf.models.packed_row import pack_row
from rlhf.models.policy import PolicyNet
from rlhf.placement.parallelism import ranks_with_shared_files
from rlhf.recovery import leftovers
from rlhf.roles.role import Role
from rlhf.zero import checkpoint
from rlhf.zero.engine import ZeroEngine
from rlhf.zero.file_segments import Files, Segments, write_segments
from rlhf.zero.process_group import Rank, join
from rlhf.zero.settings import deepspeed_config
from tests.rlhf.ranks import Crew
from tests.rlhf.tiny import random_sequences, tiny_model

STAGES = (0, 1, 2, 3)
DTYPES = ("float32", "bfloat16")
TOTAL, K = 8, 2
"""Updates of the schedule, and updates before and after a snapshot."""
ADAM = OptimizerConfig(lr=0.05, schedule="linear", warmup_steps=1, weight_decay=0.1, eps=1e-8)
SAMPLES = 4
"""Sequences per update, over all ranks."""


class Net(nn.Module):
    """Predicts the next of 7 tokens from the last; odd sizes, which do not divide by two ranks, and a tied head."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, width)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, 7, bias=False)
        self.head.weight = self.embed.weight
        self.gain = nn.Parameter(torch.ones(1))

    def external_parameters(self) -> list[nn.Parameter]:
        return [self.gain]

    def forward(self, tokens: Tensor) -> Tensor:
        """The sum of the losses of tokens (T,)."""
        logits = self.head(self.hidden(self.embed(tokens[:-1])).tanh() * self.gain)
        return nn.functional.cross_entropy(logits.float(), tokens[1:], reduction="sum")


class AdapterNet(PolicyNet):
    """A small language model with adapters, and the tokens' total loss."""

    def __init__(self) -> None:
        lm = tiny_model(AutoModelForCausalLM, "qwen2")
        add_adapters(lm, LoRAConfig(rank=2, alpha=4.0), seed=3)
        super().__init__(lm)
        sequences = random_sequences((3, 5), (1, 4), (2, 2))
        self.rows = [pack_row(sequences, [i], "cpu") for i in range(3)]

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        return -super().forward(self.rows[int(tokens[0]) % 3], 1.0)[0].sum()


@dataclass(frozen=True)
class Setup:
    """The arguments of an engine."""

    stage: int = 1
    dtype: str = "float32"
    network: str = "net"
    width: int = 3
    offload: bool = False
    frozen: tuple[str, ...] = ()
    shift: float = 0.0
    """Added to every weight that is trained."""


def build(rank: Rank, setup: Setup) -> ZeroEngine:
    place = join(rank)
    network = AdapterNet() if setup.network == "adapters" else Net(setup.width)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name not in setup.frozen)
            parameter.add_(setup.shift if parameter.requires_grad else 0.0)
    role = RoleConfig(zero_stage=setup.stage, offload=setup.offload)
    gc.freeze()  # DeepSpeed collects garbage as it starts, which takes a second with all that is imported
    try:
        return ZeroEngine(network.to(getattr(torch, setup.dtype)), role, setup.dtype, rank, place, ADAM, TOTAL)
    finally:
        gc.unfreeze()


def train(engine: ZeroEngine, first: int, count: int = K, is_noisy: bool = False) -> list[tuple[float, float]]:
    """Updates from number ``first`` on; returns each one's norm and rate.

    With noise every loss is scaled by a number drawn from torch, one from NumPy and one from Python.
    """
    told = []
    for update in range(first, first + count):
        tokens = torch.tensor(np.random.default_rng(update).integers(0, 7, (SAMPLES, 6)))

        def loss(tokens: Tensor) -> Tensor:
            noise = float(torch.rand(())) + np.random.rand() + random.random() if is_noisy else 0.0
            return engine.engine(tokens) * (1 + noise)

        norm = engine.update(list(tokens[engine.rank :: engine.world]), loss, SAMPLES * 5)
        told.append((norm, engine.learning_rate))
    return told


def joined(content: Segments) -> bytes:
    return b"".join(segment.tobytes() for segment in content)


def contents(files: Files) -> list[Any]:
    """Every tensor and number in the files of a snapshot, in DeepSpeed's own order."""
    found: list[Any] = []
    for name, data in sorted(files.items()):
        if name.endswith(".pt"):
            leaves = tree_leaves(torch.load(BytesIO(joined(data)), weights_only=False))
            found += [each for each in leaves if isinstance(each, (Tensor, np.ndarray, int, float))]
        else:
            found.append(joined(data))
    return found


def assert_same(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other) > 50
    for a, b in zip(one, other):
        assert type(a) is type(b)
        assert (
            np.array_equal(a, b)
            if isinstance(a, np.ndarray)
            else torch.equal(a, b)
            if isinstance(a, Tensor)
            else a == b
        )


def weights(engine: ZeroEngine) -> dict[str, np.ndarray]:
    return {name: tensor.float().numpy().copy() for name, tensor in engine.full_state(engine.network)}


def of_all_ranks(engine: ZeroEngine) -> list[Files]:
    shards: list[Any] = [None] * engine.world
    files = dict(checkpoint.snapshot(engine))
    torch.distributed.all_gather_object(shards, files)
    return shards


def stop_and_go_on(rank: Rank, setup: Setup, before: int) -> None:
    """Take a snapshot and continue; a new engine and the continued one resume from the snapshot identically.

    One of them is given all ranks' files, the other those that it reads.
    """
    engine = build(rank, setup)
    torch.manual_seed(rank.rank)
    np.random.seed(rank.rank)
    random.seed(rank.rank)
    train(engine, 0, before, is_noisy=True)
    shards, rate = of_all_ranks(engine), engine.learning_rate
    told = train(engine, before, is_noisy=True)
    ended, expected = contents(checkpoint.snapshot(engine)), weights(engine)
    parts = [checkpoint.divide(files) for files in shards]
    read = [*(parts[r][1] for r in ranks_with_shared_files(RoleConfig())), parts[rank.rank][0]]
    for again, given in ((build(rank, replace(setup, shift=1.0)), read), (engine, shards)):
        checkpoint.restore(again, given)
        assert again.learning_rate == rate
        assert train(again, before, is_noisy=True) == told
        assert_same(contents(checkpoint.snapshot(again)), ended)
        for name, weight in weights(again).items():
            np.testing.assert_array_equal(weight, expected[name], err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world", [1, 2])
def test_training_goes_on_bit_for_bit(world: int, stage: int, dtype: str, crews: dict[int, Crew]) -> None:
    crews[world].run(stop_and_go_on, Setup(stage=stage, dtype=dtype), K)


def small_buckets(*arguments: Any) -> dict[str, Any]:
    """DeepSpeed's configuration, whose buckets would take gigabytes if they were filled."""
    config = deepspeed_config(*arguments)
    config["zero_optimization"]["reduce_bucket_size"] = 10**6
    return config


def in_dirty_memory(rank: Rank, setup: Setup) -> None:
    """The same while all uninitialised memory is filled with NaN."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf.zero.engine.deepspeed_config", small_buckets)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            stop_and_go_on(rank, setup, K)
        finally:
            torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("stage", [1, 3])
def test_what_memory_held_before_does_not_matter(stage: int, two_ranks: Crew) -> None:
    """DeepSpeed does not fill the padding of ZeRO-3's shards."""
    two_ranks.run(in_dirty_memory, Setup(stage=stage))


@pytest.mark.parametrize("stage", STAGES)
def test_so_does_training_that_has_not_begun(stage: int, two_ranks: Crew) -> None:
    two_ranks.run(stop_and_go_on, Setup(stage=stage), 0)


@pytest.mark.parametrize(("stage", "dtype"), [(0, "bfloat16"), (1, "float32"), (2, "float32"), (3, "bfloat16")])
def test_so_do_adapters(stage: int, dtype: str, two_ranks: Crew) -> None:
    two_ranks.run(stop_and_go_on, Setup(stage=stage, dtype=dtype, network="adapters"), K)


@pytest.mark.parametrize("stage", [2, 3])
def test_so_does_an_offloaded_optimizer(stage: int, two_ranks: Crew) -> None:
    two_ranks.run(stop_and_go_on, Setup(stage=stage, dtype="bfloat16", offload=True), K)


def whole_state(engine: ZeroEngine) -> dict[str, dict[str, np.ndarray]]:
    """Master weights and Adam's averages of every trained parameter, according to DeepSpeed and torch."""
    named = [(name, p) for name, p in engine.network.named_parameters() if p.requires_grad]
    optimizer = engine.engine.optimizer
    if engine.stage:
        return {
            name: {key: safe_get_full_optimizer_state(p, key).numpy().copy() for key in ("exp_avg", "exp_avg_sq")}
            | {"fp32": safe_get_full_fp32_param(p).numpy().copy()}
            for name, p in named
        }
    masters = optimizer.fp32_groups[0] if engine.dtype == "bfloat16" else [p for _, p in named]
    state = optimizer.state
    return {
        name: {key: state[master][key].numpy().copy() for key in ("exp_avg", "exp_avg_sq")}
        | {"fp32": master.detach().numpy().copy()}
        for (name, _), master in zip(named, masters)
    }


@dataclass(frozen=True)
class Told:
    """A rank's results for a snapshot and the updates after it."""

    files: Files
    state: dict[str, dict[str, np.ndarray]]
    rate: float
    updates: list[tuple[float, float]] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)


def leave(rank: Rank, setup: Setup) -> Told:
    """Train, take a snapshot, and continue training."""
    engine = build(rank, setup)
    train(engine, 0)
    files = {name: [segment.copy() for segment in data] for name, data in checkpoint.snapshot(engine).items()}
    state, rate = whole_state(engine), engine.learning_rate
    return Told(files, state, rate, train(engine, K), weights(engine))


def arrive(rank: Rank, setup: Setup, shards: list[Files]) -> Told:
    """Resume from a snapshot."""
    engine = build(rank, replace(setup, shift=1.0))
    checkpoint.restore(engine, shards)
    return Told({}, whole_state(engine), engine.learning_rate, train(engine, K), weights(engine))


MOVES = [
    ((2, 1), (2, 2), "float32"),
    ((2, 1), (2, 3), "float32"),
    ((2, 3), (2, 1), "float32"),
    ((2, 1), (1, 1), "float32"),
    ((1, 1), (2, 1), "bfloat16"),
    ((1, 3), (2, 3), "float32"),
    ((2, 3), (1, 2), "bfloat16"),
    ((2, 0), (1, 0), "float32"),
    ((1, 0), (2, 3), "float32"),
    ((1, 0), (2, 1), "bfloat16"),
    ((2, 3), (1, 0), "float32"),
    ((2, 1), (2, 0), "bfloat16"),
]
"""(ranks, stage) of the snapshot and of the engine that resumes from it, and the dtype of both."""


@pytest.mark.parametrize(("source", "target", "dtype"), MOVES, ids=str)
def test_other_ranks_and_stages_go_on(
    source: tuple[int, int], target: tuple[int, int], dtype: str, crews: dict[int, Crew]
) -> None:
    """In bfloat16 the rounding of gradients depends on the stage: only the loaded state is exact."""
    left = crews[source[0]].run(leave, Setup(stage=source[1], dtype=dtype))
    near = 1e-5 if dtype == "float32" else 1e-2
    for told in crews[target[0]].run(arrive, Setup(stage=target[1], dtype=dtype), [each.files for each in left]):
        assert told.rate == left[0].rate
        assert told.state.keys() == left[0].state.keys()
        for name, parts in left[0].state.items():
            for key, part in parts.items():
                np.testing.assert_array_equal(told.state[name][key], part, err_msg=f"{name} {key}")
        np.testing.assert_allclose(told.updates, left[0].updates, rtol=near)
        for name, weight in told.weights.items():
            np.testing.assert_allclose(weight, left[0].weights[name], atol=near, err_msg=name)


def test_another_stage_goes_on_before_the_first_update(two_ranks: Crew) -> None:
    [expected, _] = two_ranks.run(unbegun, Setup(stage=1), Setup(stage=1))
    for source, target in ((0, 3), (1, 0), (3, 1)):
        for told in two_ranks.run(unbegun, Setup(stage=source), Setup(stage=target)):
            np.testing.assert_allclose(told, expected, rtol=1e-5)


def unbegun(rank: Rank, source: Setup, target: Setup) -> list[tuple[float, float]]:
    engine = build(rank, replace(target, shift=1.0))
    checkpoint.restore(engine, of_all_ranks(build(rank, source)))
    return train(engine, 0)


PARTLY = ("embed.weight", "hidden.bias")


def move_partly_frozen(rank: Rank, source: int, target: int) -> tuple[dict[str, np.ndarray], dict[str, int], set[str]]:
    """The weights after a change of stage, the fingerprint of the frozen ones, and the parameters in the files."""
    first = build(rank, Setup(stage=source, frozen=PARTLY))
    train(first, 0)
    shards = of_all_ranks(first)
    engine = build(rank, Setup(stage=target, frozen=PARTLY, shift=1.0))
    checkpoint.restore(engine, shards)
    for name, weight in weights(engine).items():
        np.testing.assert_array_equal(weight, weights(first)[name], err_msg=name)
    model = next(data for name, data in shards[0].items() if "model_states" in name)
    return (
        weights(engine),
        engine.frozen_fingerprint,
        set(torch.load(BytesIO(joined(model)), weights_only=False)["module"]),
    )


def test_frozen_weights_stay_and_are_not_in_the_files(two_ranks: Crew) -> None:
    """The frozen tied head stays in the files under its second name: DeepSpeed excludes parameters by their first."""
    told = [each for stages in ((0, 3), (3, 1), (2, 2)) for each in two_ranks.run(move_partly_frozen, *stages)]
    original = Net().state_dict()
    for state, sums, saved in told:
        assert saved == {"hidden.weight", "head.weight", "gain"}
        assert sums == told[0][1] and sums.keys() == set(PARTLY)
        for name in original:
            is_frozen = name in (*PARTLY, "head.weight")
            assert np.array_equal(state[name], original[name].numpy()) is is_frozen, name


def refused(rank: Rank, source: Setup, target: Setup) -> str:
    """The error of a restore; checks that the target is unchanged."""
    shards = of_all_ranks(build(rank, source))
    engine = build(rank, target)
    before = contents(checkpoint.snapshot(engine))
    with pytest.raises(UserError) as error:
        checkpoint.restore(engine, shards)
    assert_same(contents(checkpoint.snapshot(engine)), before)
    return str(error.value)


def test_a_checkpoint_of_another_model_is_refused_and_nothing_is_changed(two_ranks: Crew) -> None:
    for stages in ((1, 1), (3, 3), (0, 3)):
        source, target = (Setup(stage=stage) for stage in stages)
        for said in two_ranks.run(refused, source, replace(target, width=4)):
            assert "3 of 4 parameters differ" in said
            assert "embed.weight (checkpoint: [7, 3], model: [7, 4]), hidden.bias (checkpoint: [3], model: [4])" in said
        for said in two_ranks.run(refused, source, replace(target, dtype="bfloat16")):
            assert "in float32, for one in bfloat16" in said
        for said in two_ranks.run(refused, source, replace(target, frozen=("gain",))):
            assert "on other frozen weights: gain" in said
    [said, _] = two_ranks.run(refused, Setup(), Setup(network="adapters"))
    assert "gain (checkpoint: [1], model: missing)" in said


def load_from_disk(rank: Rank, setup: Setup, folder: Path) -> None:
    """The files of all ranks in one folder."""
    engine = build(rank, setup)
    train(engine, 0)
    for name, content in checkpoint.snapshot(engine).items():
        write_segments(content, folder / name)
    torch.distributed.barrier()
    expected = train(engine, K), weights(engine)
    again = build(rank, replace(setup, shift=1.0))
    checkpoint.load(again, folder)
    assert train(again, K) == expected[0]
    for name, weight in weights(again).items():
        np.testing.assert_array_equal(weight, expected[1][name])


def test_a_folder_on_the_disk_is_loaded_whatever_its_name(tmp_path: Path, two_ranks: Crew) -> None:
    for stage in (0, 1, 3):
        folder = tmp_path / f"run [{stage}]*"
        folder.mkdir()
        two_ranks.run(load_from_disk, Setup(stage=stage), folder)
        shards = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
        model = "zero_pp_rank_{}_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"
        names = {"topology.json", *(name.format(r) for r in (0, 1) for name in ("rank_{}.pt", model))}
        names |= {shards.format(r) for r in (0, 1)} if stage else set()
        assert {path.name for path in folder.iterdir()} == names


def bad_folder(rank: Rank, folder: Path) -> None:
    checkpoint.load(build(rank, Setup()), folder)


def test_a_folder_without_a_checkpoint_and_another_format_are_refused(tmp_path: Path, one_rank: Crew) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        one_rank.run(bad_folder, tmp_path)
    (tmp_path / "topology.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(UserError, match="a checkpoint of format 2"):
        one_rank.run(bad_folder, tmp_path)


@contextmanager
def own_folders(folder: Path) -> Iterator[None]:
    """Context in which temporary folders are created in this folder, with a subfolder in place of shared memory."""
    kept = leftovers.SHARED_MEMORY, tempfile.tempdir
    leftovers.SHARED_MEMORY, tempfile.tempdir = folder / "shared", str(folder)
    leftovers.SHARED_MEMORY.mkdir(parents=True)
    try:
        yield
    finally:
        leftovers.SHARED_MEMORY, tempfile.tempdir = kept


@contextmanager
def printed_to(path: Path) -> Iterator[None]:
    """Context in which all output of this process goes to the file."""
    kept = os.dup(1), os.dup(2)
    with path.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        yield
        for descriptor in (1, 2):
            os.dup2(kept[descriptor - 1], descriptor)


def leave_nothing(rank: Rank, folder: Path) -> bytes:
    """The output of taking, restoring and reshaping snapshots; no temporary file remains after success or failure."""
    own, printed = folder / str(rank.rank), folder / f"printed_{rank.rank}"
    first, same, other = (build(rank, Setup(stage=stage, dtype="bfloat16")) for stage in (1, 1, 3))
    with own_folders(own):
        with printed_to(printed):
            shards = of_all_ranks(first)
            checkpoint.restore(same, shards)
            checkpoint.restore(other, shards)
        cut = {f"rank_{r}.pt": () for r in (0, 1)}
        with pytest.raises(EOFError):
            checkpoint.restore(same, [*shards, cut])
        assert [path.name for path in own.rglob("*")] == ["shared"]
    return printed.read_bytes()


def test_nothing_is_printed_and_no_file_is_left(tmp_path: Path, two_ranks: Crew) -> None:
    assert two_ranks.run(leave_nothing, tmp_path) == [b"", b""]


def test_files_go_to_shared_memory_if_they_have_room_there(tmp_path: Path) -> None:
    with own_folders(tmp_path):
        with checkpoint.private_folder(1) as folder:
            assert folder.parent == tmp_path / "shared"
        with checkpoint.private_folder(2**60) as folder:
            assert folder.parent == tmp_path


class Bare(Role[Any]):
    """A role whose network is not a language model and is not probed."""

    def _examine(self, is_saved: bool) -> Examination:
        return Examination(form="packed", tokens=0)


def through_a_role(rank: Rank, stages: tuple[int, int], folder: str) -> None:
    roles = []
    for stage in stages:
        config = RoleConfig(ranks=rank.world, zero_stage=stage)
        recipe = Recipe(name="test", model=ModelConfig(), placement=PlacementConfig(policy=config))
        roles.append(Bare(recipe, config, rank, Net, ADAM, TOTAL))
    first, second = roles
    train(first.engine, 0)
    shards: list[Any] = [None] * rank.world
    own, shared = first.snapshot()
    torch.distributed.all_gather_object(shards, {**own, **shared})
    for name, content in shards[rank.rank].items():
        write_segments(content, Path(folder, name))
    torch.distributed.barrier()
    expected = weights(first.engine)
    for go_on in (lambda: second.restore(*shards), lambda: second.load(folder)):
        train(second.engine, K)
        go_on()
        for name, weight in weights(second.engine).items():
            np.testing.assert_array_equal(weight, expected[name])


def test_a_role_goes_on(tmp_path: Path, two_ranks: Crew) -> None:
    two_ranks.run(through_a_role, (1, 1), str(tmp_path))
