"""The shipped RayJob on hosts without Kubernetes: its pods start, its run ends well, and its hooks stop it in time."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.files import Settings, render
from rlhf.config.load import load_recipe, to_yaml
from rlhf.storage.jsonl import read_lines
from tests.end_to_end.faults import from_nothing
from tests.end_to_end.small import RECIPE, make_data_and_reward
from tests.launch.hosts import why_not
from tests.launch.pods import PROJECT, Pods, make_image, pods

pytestmark = [
    pytest.mark.slow,  # a cluster of three hosts
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
    pytest.mark.timeout(1200),
]
STEPS = 6
KEPT = ("demonstrations.jsonl", "preferences.jsonl", "prompts.jsonl", "meta.json", "reward.py")


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    """The pods of a RayJob whose recipe and data are in the volume of data."""
    folder, made = tmp_path_factory.mktemp("pods"), tmp_path_factory.mktemp("made")
    make_image(folder, ["rlhf-runs", "rlhf-data"])
    data = folder / "volumes" / "rlhf-data"
    make_data_and_reward(made)
    settings = from_nothing(made, "onpods")
    start = next(word.partition("=")[2] for word in settings if word.startswith("ppo.policy_init="))
    for name in KEPT:
        shutil.copy(made / name, data)
    shutil.copytree(start, data / "start")
    text = to_yaml(load_recipe(RECIPE, [*settings, f"ppo.steps={STEPS}", "checkpoint.every=2"]))
    (local := made / "recipe.yaml").write_text(text)  # for the plan, whose machine has the same data elsewhere
    text = text.replace(start, str(PROJECT / "data/start")).replace(f"{made}/runs", "runs")
    (data / "recipe.yaml").write_text(text.replace(str(made), str(PROJECT / "data")))
    size = {"kind": "cpu", "gpus": 0, "cpus": 3, "memory_gib": 32, "workers": 1}
    sized = Settings(recipe=str(local), settings="", **size)  # type: ignore[arg-type]
    job = render("launch/kubernetes/rayjob.yaml", sized)
    with pods(folder, job.replace(str(local), "data/recipe.yaml")) as running:
        yield running


def run_of(there: Pods) -> Path:
    return there.volume("rlhf-runs") / "onpods" / "ppo"


def attempts(there: Pods) -> Path:
    return there.volume("rlhf-runs") / ".attempts" / "rlhf.json"


def wait_for_step(there: Pods, submission: str, step: int) -> None:
    """Wait until the run has recorded a step."""
    end = time.monotonic() + 300
    while len(read_lines(run_of(there) / "metrics.jsonl")) <= step:
        assert time.monotonic() < end and there.status(submission)[0] in ("PENDING", "RUNNING"), there.log(submission)
        time.sleep(0.5)


def test_a_worker_that_leaves_stops_the_run_with_a_checkpoint(there: Pods) -> None:
    """Its hook ends when the driver has, on another pod; both pods' hooks may run at once."""
    there.submit("first")
    wait_for_step(there, "first", 1)
    assert there.leave(there.worker) == (0, "launch.leave: 1 commands were asked to stop\n"), there.log("first")
    assert there.leave(there.head) == (0, "launch.leave: 0 commands were asked to stop\n")
    assert there.wait_for("first") == ("FAILED", 75), there.log("first")  # which KubeRay repeats
    [stopped] = [event for event in read_lines(run_of(there) / "events.jsonl") if event["kind"] == "stopped"]
    assert "SIGUSR1" in stopped["message"] and stopped["requeue"] is True
    assert list((run_of(there) / "checkpoints").glob("step_*/manifest.json"))
    assert json.loads(attempts(there).read_text())["fruitless"] == 0


def test_the_repeated_job_resumes_and_runs_to_its_end(there: Pods) -> None:
    there.submit("second")
    assert there.wait_for("second") == ("SUCCEEDED", 0), there.log("second")
    assert [row["step"] for row in read_lines(run_of(there) / "metrics.jsonl")] == list(range(STEPS))
    assert any(event["kind"] == "resumed" for event in read_lines(run_of(there) / "events.jsonl"))
    assert (run_of(there) / "model" / "model.safetensors").exists()
    assert not attempts(there).exists()


def test_a_wrong_recipe_is_not_repeated(there: Pods) -> None:
    """KubeRay repeats a job that failed, and none that was stopped."""
    submitter = there.submit("third", there.job["spec"]["entrypoint"].strip() + " ppo.stepps=3")
    assert there.wait_for("third")[0] == "STOPPED", there.log("third")
    submitter.wait(timeout=60)  # KubeRay waits for it
    assert "the command ended with exit code 2" in there.job_log("third")
