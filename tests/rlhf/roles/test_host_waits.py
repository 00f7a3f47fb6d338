"""Inside a micro-batch the host never waits for the device: no number is read, and no shape depends on numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from rlhf.config.schema import (
    AlgorithmConfig,
    DPOConfig,
    OptimizerConfig,
    PlacementConfig,
    PPOConfig,
    Recipe,
    RewardConfig,
    RoleConfig,
    SFTConfig,
)
from rlhf.models.scratch import train_tokenizer
from rlhf.roles.critic import CriticRole
from rlhf.roles.dpo import DPORole
from rlhf.roles.kto import KTORole
from rlhf.roles.labelled_reward import LabelledRewardRole
from rlhf.roles.policy import PolicyRole
from rlhf.roles.preference import RewardTrainingRole
from rlhf.roles.sft import SFTRole
from rlhf.roles.supervised_data import ExampleData, LabelledData, PairData
from rlhf.types import Experience, FinishReason, RolloutBlock
from rlhf.zero.process_group import Rank
from tests.rlhf.ranks import Crew
from tests.rlhf.tiny import random_sequences, tiny_model

SEQUENCES = random_sequences((3, 5), (1, 4), (6, 2), (2, 7))
TOKENS = 18
MASK = np.arange(TOKENS) % 5 > 0
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "_unique2")
"""Operations whose result is on the host, or has a shape that only the device knows."""


class Waits(TorchDispatchMode):
    """Notes operations for which the host waits. A CPU's own memory needs no transfers: these are not seen here."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = operation.overloadpacket._qualified_op_name.partition("::")[2]
        self.operations += 1
        if name in WAITS or (name.startswith("index") and _has_mask(arguments)):
            self.found.append(name)
        if name == "repeat_interleave" and not (options or {}).get("output_size"):
            self.found.append(name)
        return operation(*arguments, **(options or {}))


def _has_mask(arguments: Any) -> bool:
    indices = arguments[1] if isinstance(arguments[1], (list, tuple)) else ()
    return any(isinstance(each, Tensor) and each.dtype is torch.bool for each in indices)


def watched(role: Any, update: Callable[[], object]) -> tuple[list[str], int]:
    """Waits of the losses and backward passes of an update, and the number of its micro-batches.

    It is the second: in the first, ZeRO-3 compares the order of modules between ranks.
    """
    update()
    waits, engine, plain = Waits(), role.engine, role.engine.update
    backward, count = engine.engine.backward, 0

    def under_watch(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with waits:
                return function(*arguments)

        return call

    def updated(micro_batches: Any, loss: Any, divisor: int) -> float:
        nonlocal count
        count += len(micro_batches)
        return plain(micro_batches, under_watch(loss), divisor)

    engine.update, engine.engine.backward = updated, under_watch(backward)
    update()
    assert waits.operations > 100 * count
    return waits.found, count


def experience() -> Experience:
    def numbers() -> np.ndarray:
        return np.linspace(-1, 0, TOKENS, dtype=np.float32)

    rollouts = RolloutBlock(
        sequences=SEQUENCES,
        logprobs=numbers(),
        response_mask=MASK,
        prompt_ids=np.arange(4),
        weight_versions=np.zeros(4, dtype=np.int64),
        finish_reasons=np.full(4, FinishReason.STOP, dtype=np.int32),
        seeds=np.arange(4),
        cached_tokens=np.zeros(4, dtype=np.int32),
    )
    return Experience(
        rollouts=rollouts,
        scores=np.zeros(4, dtype=np.float32),
        response_mask=MASK,
        old_logprobs=numbers(),
        ref_logprobs=numbers(),
        advantages=numbers(),
        importance_weights=numbers(),
        kl_coef=0.1,
        values=numbers(),
        returns=numbers(),
    )


def recipe(stage: int, name: Any = "ppo", loss: Any = "dpo") -> Recipe:
    optimizer, role = OptimizerConfig(schedule="constant"), RoleConfig(zero_stage=stage, micro_batch_tokens=12)
    return Recipe(
        name="test",
        algorithm=AlgorithmConfig(name=name, kl_in="loss", entropy_coef=0.1, epochs=1, minibatches=1),
        ppo=PPOConfig(steps=1, optimizer=optimizer, critic_optimizer=optimizer),
        sft=SFTConfig(optimizer=optimizer),
        dpo=DPOConfig(loss=loss, optimizer=optimizer),
        reward=RewardConfig(optimizer=optimizer),
        placement=PlacementConfig(policy=role, critic=role, reward=role),
    )


def ppo(kind: Any, rank: Rank, folder: Path, recipe: Recipe) -> tuple[list[str], int]:
    role = kind(recipe, str(folder), rank)
    return watched(role, lambda: role.update(experience(), step=0))


def sft(kind: Any, rank: Rank, folder: Path, recipe: Recipe) -> tuple[list[str], int]:
    role = kind(recipe, str(folder), 1, rank)
    data = ExampleData(sequences=SEQUENCES, mask=MASK)
    role.set_data(data, data)
    return watched(role, lambda: role.update(range(4)))


def dpo(kind: Any, rank: Rank, folder: Path, recipe: Recipe) -> tuple[list[str], int]:
    role = kind(recipe, str(folder), 1, rank)
    role.set_data(SEQUENCES, np.zeros(4, dtype=np.float32))
    role.engine.engine.global_steps = 1  # no first update, whose reference would have to be the policy
    if kind is KTORole:
        role.set_labels(np.array([True, False]))
    return watched(role, lambda: role.update([0, 1]))


def reward(kind: Any, rank: Rank, folder: Path, recipe: Recipe) -> tuple[list[str], int]:
    role = kind(recipe, str(folder), 1, rank)
    if kind is LabelledRewardRole:
        ids = np.arange(4)
        role.set_labelled(LabelledData(sequences=SEQUENCES, is_good=ids % 2 == 0, prompt_ids=ids))
        return watched(role, lambda: role.update(range(4)))
    role.set_data(PairData(sequences=SEQUENCES, margins=np.zeros(2, np.float32), prompt_ids=np.arange(2)))
    return watched(role, lambda: role.update([0, 1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with a padding token, so that a classifier looks for each sequence's end."""
    path = tmp_path_factory.mktemp("waits")
    tiny_model(AutoModelForCausalLM, "llama", pad_token_id=0).save_pretrained(path)
    train_tokenizer([], 258).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("run", "kind", "stage"),
    [
        *((ppo, PolicyRole, stage) for stage in range(4)),
        (ppo, CriticRole, 1),
        (sft, SFTRole, 1),
        (dpo, DPORole, 1),
        (dpo, KTORole, 1),
        (reward, RewardTrainingRole, 1),
        (reward, LabelledRewardRole, 1),
    ],
)
def test_no_micro_batch_waits_for_the_device(run: Any, kind: Any, stage: int, folder: Path, one_rank: Crew) -> None:
    [(found, count)] = one_rank.run(run_in_rank, run, kind, folder, recipe(stage))
    assert found == []
    assert count > 1


@pytest.mark.parametrize(
    ("run", "kind", "options"),
    [
        (ppo, PolicyRole, {"name": "gspo"}),
        (dpo, DPORole, {"loss": "orpo"}),
    ],
)
def test_no_loss_of_another_algorithm_waits_for_the_device(
    run: Any, kind: Any, options: dict[str, str], folder: Path, one_rank: Crew
) -> None:
    [(found, count)] = one_rank.run(run_in_rank, run, kind, folder, recipe(1, **options))
    assert found == []
    assert count > 1


def run_in_rank(rank: Rank, run: Any, kind: Any, folder: Path, recipe: Recipe) -> tuple[list[str], int]:
    return run(kind, rank, folder, recipe)


def test_waits_are_seen() -> None:
    numbers, mask = torch.arange(3), torch.tensor([True, False, True])
    waits = Waits()
    with waits:
        numbers.sum().item()
        _ = numbers[mask]
        numbers[mask] = 0
        mask.nonzero()
        numbers.repeat_interleave(numbers)
        numbers.repeat_interleave(numbers, output_size=1)  # [0, 1, 0]
        _ = numbers[numbers]
    assert waits.found == ["_local_scalar_dense", "index", "index_put_", "nonzero", "repeat_interleave"]
