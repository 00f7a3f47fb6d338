"""DAPO's rounds of sampling in a real run, and in one that is killed between two rounds."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from rlhf.storage.jsonl import read_lines
from tests.end_to_end.faults import Run, from_nothing
from tests.end_to_end.small import make_small_data
from tests.end_to_end.test_resume import Ended

STEPS, BATCH, ROUNDS = 3, 8, 4
REWARD = """
def score(prompts, responses):
    return [float(response.count("e") % 4 == 0) for response in responses]
"""
"""Right or wrong, and more often wrong: in many groups of two answers both have the same score."""


def settings(folder: Path, name: str) -> list[str]:
    given = [each for each in from_nothing(folder, name) if not each.startswith("ppo.critic_init")]
    return [
        *given,
        "deterministic=true",
        "algorithm={name: dapo, critic_warmup_steps: 0, missing_eos_penalty: null, epochs: 1}",
        f"ppo.steps={STEPS}",
        f"ppo.batch_size={BATCH}",
        "ppo.samples_per_prompt=2",
        f"ppo.sampling_rounds={ROUNDS}",
        "checkpoint.every=1",
    ]


@pytest.mark.slow
def test_rounds_go_on_until_the_update_is_full_and_a_killed_run_makes_the_same(tmp_path: Path) -> None:
    """Two minutes: only a run shows that engines, scoring and the order of prompts stand a second round."""
    make_small_data(tmp_path)
    (tmp_path / "reward.py").write_text(REWARD)
    run = Run(tmp_path, "whole", settings(tmp_path, "whole"))
    assert run.end() == 0, run.said()
    rows = read_lines(run.path / "metrics.jsonl")
    rounds = [int(row["rollout/sampling_rounds"]) for row in rows]
    assert 1 < max(rounds) <= ROUNDS
    assert all(row["rollout/filled_fraction"] == 1 or row["rollout/sampling_rounds"] == ROUNDS for row in rows)
    assert [row["episode"] for row in rows] == [BATCH * sum(rounds[: step + 1]) for step in range(STEPS)]
    state = json.loads((run.path / "checkpoints" / f"step_{STEPS}" / "state.json").read_text())
    assert state["order"] == {"epoch": 0, "position": BATCH // 2 * sum(rounds)}

    killed = Run(tmp_path, "killed", settings(tmp_path, "killed"))
    killed.wait_for(2, "score")
    killed.process.send_signal(signal.SIGKILL)
    killed.end()
    again = Run(tmp_path, "killed", settings(tmp_path, "killed"))
    assert again.end() == 0, again.said()
    assert Ended(path=again.path).events("resumed")
    assert json.dumps(Ended(path=again.path).rows()) == json.dumps(Ended(path=run.path).rows())
