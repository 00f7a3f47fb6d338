"""``ppo.staleness: 1``: while a step trains, the next one's rollouts are generated; and nothing is lost of them."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actors.blocks import read_block
from rlhf.storage.jsonl import read_lines
from tests.end_to_end.faults import Fault, Run, from_nothing
from tests.end_to_end.small import make_data_and_reward
from tests.end_to_end.test_resume import Ended

pytestmark = pytest.mark.slow  # test_rewards.py trains on rollouts of the version before
STEPS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("staleness")
    make_data_and_reward(folder)
    return folder


def ahead(folder: Path, name: str) -> list[str]:
    return [
        *from_nothing(folder, name),
        "deterministic=true",
        f"ppo.steps={STEPS}",
        "ppo.staleness=1",
        "checkpoint.every=2",
        "algorithm.adaptive_kl={target: 1.0, horizon: 100}",
        "algorithm.reward_scale=running_std",
        "placement.policy.ranks=1",
    ]


@pytest.fixture(scope="module")
def whole(folder: Path) -> Ended:
    run = Run(folder, "whole", ahead(folder, "whole"))
    assert run.end() == 0, run.said()
    return Ended(path=run.path)


@pytest.fixture(scope="module")
def broken(folder: Path) -> Ended:
    """The same, killed while a step trains and the engines answer the next one's prompts."""
    run = Run(folder, "broken", ahead(folder, "broken"))
    run.wait_for_checkpoint(2, seconds=400)
    run.wait_for(None, "update")
    run.process.send_signal(signal.SIGKILL)
    assert run.end() == -signal.SIGKILL
    run = Run(folder, "broken", ahead(folder, "broken"))
    assert run.end() == 0, run.said()
    return Ended(path=run.path)


@pytest.fixture(scope="module")
def lost(folder: Path) -> Ended:
    """One whose only engine is killed while it answers prompts of the next step."""
    run = Run(folder, "lost", [*ahead(folder, "lost"), "deterministic=false"])
    run.do(Fault(step=1, phase="score", member="rollout engine 0", delay=0.0))
    assert run.end() == 0, run.said()
    return Ended(path=run.path)


def test_rollouts_are_one_version_old_but_the_first_ones(whole: Ended) -> None:
    rows = whole.rows()
    assert [row["rollout/staleness_mean"] for row in rows] == [0.0] + [1.0] * (STEPS - 1)
    assert abs(rows[0]["rollout/importance_weight_mean"] - 1) < 1e-5
    assert all(abs(row["rollout/importance_weight_max"] - 1) > 1e-3 for row in rows[1:])
    assert all(abs(row["first_pass/ratio"] - 1) < 1e-5 for row in rows), "π_old is the policy's own all the same"


def test_a_checkpoint_holds_the_rollouts_of_the_next_step(whole: Ended) -> None:
    files = (whole.path / "checkpoints" / "step_4" / "rollouts").glob("*.npz")
    versions = np.concatenate([read_block(file)[0].weight_versions for file in files])
    assert versions.tolist() == [3] * 32
    assert not (whole.path / "checkpoints" / f"step_{STEPS}" / "rollouts").exists(), "there is no step after the last"


def test_the_resumed_run_is_the_run_to_the_bit(whole: Ended, broken: Ended) -> None:
    [resumed] = broken.events("resumed")
    assert resumed["step"] in (2, 4)
    assert json.dumps(broken.rows()) == json.dumps(whole.rows())
    assert read_lines(broken.path / "samples.jsonl") == read_lines(whole.path / "samples.jsonl")
    model, again = (load_file(run.path / "model" / "model.safetensors") for run in (whole, broken))
    assert model.keys() == again.keys() and all(torch.equal(model[name], again[name]) for name in model)


def test_what_a_lost_engine_had_not_answered_is_answered_by_newer_weights(lost: Ended) -> None:
    [died] = lost.events("actor_died")
    assert died["member"] == "rollout engine 0" and died["samples_redone"] > 0
    rows = lost.rows()
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert [row["episode"] for row in rows] == [32.0 * (step + 1) for step in range(STEPS)]
    assert 0 <= rows[2]["rollout/staleness_mean"] < 1
    assert [row["rollout/staleness_mean"] for row in rows[:2] + rows[3:]] == [0, 1, 1, 1]
