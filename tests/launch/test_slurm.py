"""``launch/slurm.sh`` under a real SLURM of two hosts: a complete run, and one that is preempted and resumes."""

from __future__ import annotations

import re
import stat
import time
from collections.abc import Iterator

import pytest

from rlhf.storage.jsonl import read_lines
from tests.end_to_end.faults import from_nothing
from tests.end_to_end.small import make_data_and_reward, overrides
from tests.launch.slurm import Slurm, slurm, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
RECIPE = "recipes/quickstart.yaml"
STEPS = 4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm(tmp_path_factory.mktemp("slurm")) as made:
        make_data_and_reward(made.folder)
        yield made


@pytest.mark.slow  # a whole stage; test_slurm_script.py has the script
def test_a_run_over_two_nodes_ends_well(cluster: Slurm) -> None:
    number = cluster.submit(
        "--nodes=2", "--time=30", "launch/slurm.sh", "sft", RECIPE, *overrides(cluster.folder, "plain")
    )
    token = cluster.project / ".slurm" / str(number) / "token"
    cluster.wait_for(number, token)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    secret = token.read_text()
    assert len(secret) == 64
    job = cluster.wait(number)
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), cluster.output(number)
    assert (cluster.folder / "runs/plain/sft/model/model.safetensors").exists()
    assert not token.exists()
    assert secret not in cluster.output(number)
    [end] = re.findall(
        "sft on 2 nodes, n1 n2; the head is 10.77.0.1; SLURM's end of the job: (\\d+)", cluster.output(number)
    )
    assert 0 < int(end) - time.time() < 1800, "the run knows its time limit"


@pytest.mark.slow  # test_slurm_script.py preempts a stand-in
def test_a_preempted_run_resumes_from_its_checkpoint(cluster: Slurm) -> None:
    settings = from_nothing(cluster.folder, "preempted")
    run = cluster.folder / "runs/preempted/ppo"
    more = [f"ppo.steps={STEPS}", "checkpoint.every=1"]
    number = cluster.submit("--nodes=2", "launch/slurm.sh", "ppo", RECIPE, *settings, *more)
    cluster.wait_for(number, run / "checkpoints" / "step_2")
    urgent = cluster.submit("--partition=high", "--nodes=2", "--exclusive", "--wrap", "true")
    assert cluster.wait(urgent)["JobState"] == "COMPLETED"
    job = cluster.wait(number)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), cluster.output(number)
    events = read_lines(run / "events.jsonl")
    [stopped] = [event for event in events if event["kind"] == "stopped"]
    [resumed] = [event for event in events if event["kind"] == "resumed"]
    assert "SIGTERM" in stopped["message"]
    assert 2 <= resumed["step"] < STEPS
    assert [row["step"] for row in read_lines(run / "metrics.jsonl")] == list(range(STEPS))
