"""SFT, reward training and DPO that are killed, stopped, and lose ranks are the same stages, to the bit."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from actors.session import Session
from rlhf.checkpoints.store import committed
from rlhf.config.load import load_recipe
from rlhf.tracking.console import Console
from tests.end_to_end.faults import Fault, Run
from tests.end_to_end.small import RECIPE, Pipeline, make_small_data, overrides, rlhf
from tests.end_to_end.test_resume import Ended

EVERY = 3
KILLS = 10


def weights(run: Ended) -> bytes:
    return (run.path / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def broken(pipeline: Pipeline) -> Ended:
    """The pipeline's SFT once more: killed in the middle, resumed, and a rank killed then."""
    shutil.copytree(pipeline.stage("base"), pipeline.folder / "runs" / "sft" / "base")
    settings = [*pipeline.settings("sft"), f"checkpoint.supervised_every={EVERY}", "recovery.backoff_seconds=0.1"]
    killed = Run(pipeline.folder, "sft", settings, stage="sft")
    killed.wait_for_checkpoint(2 * EVERY)
    killed.process.send_signal(signal.SIGKILL)
    assert killed.end() == -signal.SIGKILL
    run = Run(pipeline.folder, "sft", settings, stage="sft")
    status = run.wait_for(None, "update")
    run.strike(Fault(step=status["step"], phase="update", member="policy rank 1"), status)
    assert run.end() == 0, run.said()
    shown = run.output.read_text()
    lost = re.search(r"^policy rank 1 \(node 127\.0\.0\.1, process \d+\) died during \w+ of step \d+: .+", shown, re.M)
    assert lost is not None, shown
    after = shown[lost.end() :]
    assert re.search(r"^all actors serve again, [\d.]+ s after the loss$", after, re.M), shown
    assert re.search(r"^restored the snapshot after \d+ completed steps?: .+ repeated", after, re.M), shown
    assert "seconds of all commands, update" in shown and "seconds of this command" in shown
    return Ended(path=run.path)


def test_a_stage_that_was_killed_and_lost_a_rank_is_the_same_to_the_bit(pipeline: Pipeline, broken: Ended) -> None:
    whole = Ended(path=pipeline.stage("sft"))
    assert json.dumps(broken.rows()) == json.dumps(whole.rows())
    assert [row["step"] for row in broken.rows()] == list(range(len(broken.rows())))
    assert weights(broken) == weights(whole)


def test_what_happened_is_recorded_with_role_rank_step_and_phase(broken: Ended) -> None:
    [resumed] = broken.events("resumed")
    assert resumed["step"] >= 2 * EVERY and resumed["step"] % EVERY == 0
    [died] = broken.events("actor_died")
    assert (died["role"], died["rank"], died["member"]) == ("policy", 1, "policy rank 1")
    assert died["step"] >= resumed["step"] and died["phase"] in ("update", "evaluate", "snapshot")
    replaced = {event["member"] for event in broken.events("actor_replaced")}
    assert replaced == {"policy rank 0", "policy rank 1"}, "a group is rebuilt whole: its ranks meet again"
    assert broken.rows() and not (broken.path.parent / "sft.interrupted-1").exists()


@pytest.mark.slow  # thirty-nine whole starts
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_ten_kills_at_random_moments_and_a_stop_change_nothing(stage: str, tmp_path: Path) -> None:
    """Every other kill may come before the next checkpoint. SFT is killed within ``rlhf pipeline``."""
    make_small_data(tmp_path)
    start = Session(
        recipe=load_recipe(RECIPE, overrides(tmp_path, "start")), console=Console(sys.stdout), device="cpu", gpus=0
    ).base
    longer = [f"dpo.init={start}", "dpo.batch_size=8", "dpo.optimizer.lr=1e-4", f"{stage}.epochs=12"]
    whole, hit = ([*overrides(tmp_path, name), *longer, "checkpoint.supervised_every=5"] for name in ("whole", "hit"))
    done = rlhf(stage, str(RECIPE), *whole)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    moments, command, committed_steps = random.Random(stage), "pipeline" if stage == "sft" else stage, 0
    for number, sign in enumerate((*[signal.SIGKILL] * KILLS, signal.SIGTERM)):
        run = Run(tmp_path, "hit", hit, stage=stage, command=command)
        run.wait_for(None, "update")
        if number % 2 == 0:
            run.wait_for_checkpoint(committed_steps + 5)
        time.sleep(moments.uniform(0.0, 0.5))
        run.process.send_signal(sign)
        assert run.end() == (75 if sign == signal.SIGTERM else -sign), run.said()
        committed_steps = max(committed(run.path / "checkpoints"))
    assert f"the last checkpoint is {run.path}/checkpoints/step_" in run.said()
    run = Run(tmp_path, "hit", hit, stage=stage)
    assert run.end() == 0, run.said()
    uninterrupted, interrupted = Ended(path=tmp_path / "runs" / "whole" / stage), Ended(path=run.path)
    steps = [event["step"] for event in interrupted.events("resumed")]
    assert len(steps) == KILLS + 1 and steps == sorted(steps) and steps[-1] < len(uninterrupted.rows())
    assert json.dumps(interrupted.rows()) == json.dumps(uninterrupted.rows())
    assert weights(interrupted) == weights(uninterrupted)
