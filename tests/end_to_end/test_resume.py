"""A run that is killed, and stopped, and started again is the same run: weights, optimizer, metrics, prompts, to the
bit."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf.storage.jsonl import read_lines
from tests.end_to_end.faults import FEW, Run, Survived, patient
from tests.end_to_end.small import STEPS, Pipeline

CLOCKS = ("time/", "perf/", "health/", "memory/", "weights/sync_seconds")
"""Beginnings of the metrics that are not about what was learned."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A run that came to its end, in its folder."""

    path: Path

    def rows(self) -> list[dict[str, Any]]:
        """What it recorded of each step, without clocks."""
        rows = read_lines(self.path / "metrics.jsonl")
        return [{name: value for name, value in row.items() if not name.startswith(CLOCKS)} for row in rows]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_lines(self.path / "events.jsonl") if event["kind"] == kind]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything in the last checkpoint that DeepSpeed wrote: weights, moments, counters, schedule."""
        found: dict[str, torch.Tensor] = {}
        for file in sorted((self.path / "checkpoints" / f"step_{STEPS}").glob("*/*.pt")):
            state = torch.load(file, weights_only=False)
            found |= {f"{file.parent.name}/{file.name}{name}": value for name, value in flat(state)}
        return found


def flat(state: Any, name: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested lists and dictionaries that are tensors or numbers."""
    if isinstance(state, dict):
        return [leaf for key, value in state.items() for leaf in flat(value, f"{name}/{key}")]
    if isinstance(state, (list, tuple)):
        return [leaf for i, value in enumerate(state) for leaf in flat(value, f"{name}/{i}")]
    return [(name, state)] if isinstance(state, (torch.Tensor, int, float)) else []


def settings(pipeline: Pipeline) -> list[str]:
    return [*pipeline.settings("broken"), *patient(FEW)]


@pytest.fixture(scope="module")
def whole(pipeline: Pipeline) -> Ended:
    """The run as it is when nothing happens to it."""
    return Ended(path=pipeline.stage("ppo"))


@pytest.fixture(scope="module")
def broken(resumed: Survived) -> Ended:
    """The same run, killed and resumed, some of whose actors were lost."""
    assert resumed.code == 0, resumed.said
    return Ended(path=resumed.path)


@pytest.fixture(scope="module")
def unfinished(broken: Ended) -> Ended:
    """The same run once more before its last step."""
    (broken.path / "done.json").unlink()
    shutil.rmtree(broken.path / "checkpoints" / f"step_{STEPS}")
    return broken


def test_it_went_on_from_the_last_commit(broken: Ended) -> None:
    assert [event["step"] for event in broken.events("resumed")] == [1]
    told = [event["step"] for event in broken.events("checkpoint")]
    assert told in ([1, 2, 3, 4], [2, 3, 4]), "killed as soon as the first step's was there, it may not have told of it"


def test_metrics_are_the_same_to_the_bit(whole: Ended, broken: Ended) -> None:
    assert [row["step"] for row in whole.rows()] == list(range(STEPS))
    assert json.dumps(broken.rows()) == json.dumps(whole.rows())


def test_prompts_answers_and_scores_are_the_same(whole: Ended, broken: Ended) -> None:
    assert read_lines(broken.path / "samples.jsonl") == read_lines(whole.path / "samples.jsonl")
    assert len(read_lines(whole.path / "samples.jsonl")) == 4 * STEPS


def test_weights_moments_and_schedules_are_the_same_to_the_bit(whole: Ended, broken: Ended) -> None:
    one, other = whole.tensors(), broken.tensors()
    assert set(one) == set(other)
    assert any("exp_avg" in name for name in one)
    different = [name for name in one if not torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name]))]
    assert different == []
    model, again = (load_file(run.path / "model" / "model.safetensors") for run in (whole, broken))
    assert all(torch.equal(model[name], again[name]) for name in model)


def test_the_controllers_state_is_the_same(whole: Ended, broken: Ended) -> None:
    """β, the moments of the scores, the place in the data: all but clocks, sizes of files, and the W&B run."""
    states = [
        json.loads((r.path / "checkpoints" / f"step_{STEPS}" / "state.json").read_text()) for r in (whole, broken)
    ]
    for state in states:
        assert state["step"] == STEPS
        for name in ("goodput", "sizes", "wandb_id"):
            assert state.pop(name)
    assert states[0] == states[1]
    assert states[0]["algorithm"]["kl_coef"] != 0.05


def test_it_stays_one_wandb_run(broken: Ended) -> None:
    assert broken.events("wandb_failed") == []
    names = {folder.name.rpartition("-")[2] for folder in (broken.path / "wandb").glob("offline-run-*")}
    assert names == {(broken.path / "wandb_id").read_text().strip()}
    assert len(list((broken.path / "wandb").glob("offline-run-*"))) == 2


def test_the_timeline_holds_all_commands(broken: Ended) -> None:
    events = json.loads((broken.path / "trace.json").read_text())
    rows = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert len(set(rows.values())) == len(rows)
    spans = [
        (rows[event["tid"]], event["name"], event.get("args", {}).get("step")) for event in events if "dur" in event
    ]
    assert sum(row == "controller" and name == "start" for row, name, _ in spans) == 2
    steps = set(range(STEPS))
    assert {step for *span, step in spans if span == ["controller", "step"]} == steps
    for row, name in (("rollout engine 0", "generate"), ("critic rank 0", "update")):  # the kill may have cost step 0's
        assert {step for *span, step in spans if span == [row, name]} >= steps - {0}
    ends = [event["name"] for event in events if event["name"] in ("stopped", "resumed")]
    assert ends == ["resumed"]


def test_time_that_was_lost_is_counted(broken: Ended) -> None:
    last = read_lines(broken.path / "metrics.jsonl")[-1]
    state = json.loads((broken.path / "checkpoints" / f"step_{STEPS}" / "state.json").read_text())
    assert state["goodput"]["lost_by_kind"]["down"] > 0
    assert 0 < last["perf/goodput"] < 1


def test_another_configuration_is_refused_with_the_keys_that_differ(pipeline: Pipeline, broken: Ended) -> None:
    (broken.path / "done.json").unlink()
    run = Run(pipeline.folder, "broken", [*settings(pipeline), "algorithm.kl_coef=0.2", "rollout.temperature=0.9"])
    assert run.end() == 2
    for said in ("algorithm.kl_coef: 0.05 then, 0.2 now", "rollout.temperature: 1.0 then, 0.9 now", "another name"):
        assert said in run.said()
    assert "Traceback" not in run.said()


def test_a_damaged_checkpoint_is_refused_by_file(pipeline: Pipeline, broken: Ended) -> None:
    file = next((broken.path / "checkpoints" / f"step_{STEPS}" / "policy").glob("mp_rank*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    run = Run(pipeline.folder, "broken", settings(pipeline))
    assert run.end() == 2
    assert f"{file.name} has other content than was written" in run.said()
    assert "to resume from step_3" in run.said()
    assert "Traceback" not in run.said()


@pytest.mark.slow  # a whole start; tests/rlhf/recovery/test_stop.py has the limit
def test_a_time_limit_that_is_near_stops_the_run_with_what_it_has(pipeline: Pipeline, unfinished: Ended) -> None:
    """The limit comes while the actors load: nothing is added, and what is there is named."""
    limit = ["checkpoint.time_limit_seconds=303", "checkpoint.before_deadline=300"]
    run = Run(pipeline.folder, "broken", [*settings(pipeline), *limit])
    assert run.end() == 75
    assert "s before the time limit); the last checkpoint is" in run.said() and "step_3" in run.said()
    assert "before the time limit" in unfinished.events("stopped")[-1]["message"]


@pytest.mark.slow  # a whole start; test_canaries.py has the limits, test_publish.py one that is raised
def test_a_step_outside_a_canarys_limits_is_recorded_and_in_no_checkpoint(
    pipeline: Pipeline, unfinished: Ended
) -> None:
    run = Run(pipeline.folder, "broken", [*settings(pipeline), "canaries.logprob_gap_limit=1e-12"])
    assert run.end() == 3
    assert "canary rollout/logprob_gap_mean" in run.said() and "Traceback" not in run.said()
    assert unfinished.events("failed")[-1]["error"] == "CanaryError"
    assert unfinished.rows()[-1]["step"] == 3
    assert not (unfinished.path / "checkpoints" / f"step_{STEPS}").exists()


@pytest.mark.slow  # a whole start; tests/rlhf/zero/test_checkpoint.py has other ranks and stages
def test_it_goes_on_to_its_end_with_other_ranks_and_another_stage(
    pipeline: Pipeline, whole: Ended, unfinished: Ended
) -> None:
    """The same prompts, weights and moments; gradients are added up in another order."""
    other = ["placement.policy.ranks=1", "placement.policy.zero_stage=2", "placement.critic.zero_stage=3"]
    run = Run(pipeline.folder, "broken", [*settings(pipeline), *other])
    assert run.end() == 0, run.said()
    assert [event["step"] for event in unfinished.events("resumed")][-1] == 3
    rows = [
        [row for row in read_lines(r.path / "samples.jsonl") if row["pick"] == "random"] for r in (whole, unfinished)
    ]
    prompts = [[row["prompt"] for row in shown] for shown in rows]  # the best and the worst are so by a hair
    assert prompts[0] == prompts[1]
    for row, expected in zip(unfinished.rows()[3:], whole.rows()[3:], strict=True):
        for name in ("objective/scores", "objective/kl_coef", "lr", "rollout/length_mean"):
            assert row[name] == pytest.approx(expected[name], rel=0.05), name
    model, again = (load_file(each.path / "model" / "model.safetensors") for each in (whole, unfinished))
    assert all(torch.allclose(model[name], again[name], atol=1e-3) for name in model)


@pytest.mark.slow  # two whole starts; tests/rlhf/recovery/test_stop.py has the signals, test_survival.py the snapshots
def test_a_run_that_is_asked_to_stop_commits_what_is_done_and_the_rest_is_the_same(
    pipeline: Pipeline, whole: Ended
) -> None:
    """The step that was underway is not in the checkpoint, the one before is, though none was due."""
    pipeline.copy_models("stopped")
    settings = [*pipeline.settings("stopped"), "checkpoint.every=2"]
    run = Run(pipeline.folder, "stopped", settings)
    run.wait_for(3, "rollout")
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 75
    stopped = Ended(path=run.path)
    [event] = stopped.events("stopped")
    assert "SIGTERM" in event["message"] and "step_3" in event["message"]
    assert Run(pipeline.folder, "stopped", settings).end() == 0
    assert [event["step"] for event in stopped.events("resumed")] == [3]
    assert json.dumps(stopped.rows()) == json.dumps(whole.rows())
    one, other = whole.tensors(), stopped.tensors()
    assert all(torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in one)
