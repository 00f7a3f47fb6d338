"""A round of feedback by the commands that users type, from the finished pipeline's policy to a new reward model."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.travel.rate import rate
from rlhf.feedback.records import Item
from rlhf.feedback.store import Store
from tests.end_to_end.small import RECIPE, ROOT, Pipeline, rlhf

VOTES, PROMPTS, PAIRS = 40, 16, 44
PATIENCE = 900.0


@dataclass(frozen=True, kw_only=True)
class Voted:
    """A finished round."""

    project: Path
    settings: list[str]
    items: tuple[Item, ...]
    """As they were sampled."""
    stopped: int
    """Exit code of the round's command when it was stopped during the votes."""
    code: int
    """And when it was given again."""
    folder: Path


def start_round(settings: list[str]) -> subprocess.Popen[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "launch.cli", "feedback", "round", str(RECIPE), *settings, "--port", str(port)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.fixture(scope="module")
def voted(pipeline: Pipeline) -> Voted:
    project = pipeline.folder / "votes.db"
    assert rlhf("feedback", "init", str(project), "--overlap", "1").returncode == 0
    plain = ["repeat_fraction=0", "gold_fraction=0"]  # each vote counts, whatever the project's random seed
    assert rlhf("feedback", "settings", str(project), *plain).returncode == 0
    settings = [
        *pipeline.settings("small"),
        f"feedback.project={project}",
        f"feedback.prompts={PROMPTS}",
        "feedback.answers=3",
        f"feedback.pairs={PAIRS}",
        f"feedback.votes={VOTES}",
        "reward.batch_size=4",
        "reward.optimizer.warmup_steps=0",
        "reward.ceiling=null",
    ]
    first = start_round(settings)
    with Store.open(project) as store:
        wait_for(lambda: bool(store.items()), first)
        items = tuple(store.items())
        wait_for(lambda: "served at" in (first.stdout.readline() if first.stdout else ""), first)
        first.send_signal(signal.SIGTERM)
        stopped = first.wait(PATIENCE)
        again = start_round(settings)
        assert rate(store, VOTES, raters=3, seed=0) == VOTES
    code = again.wait(PATIENCE)
    (pipeline.folder / "round").write_text(again.stdout.read() if again.stdout else "")
    return Voted(project=project, settings=settings, items=items, stopped=stopped, code=code, folder=pipeline.folder)


def test_a_round_that_was_stopped_goes_on_with_its_pairs_and_ends_with_a_reward_model(voted: Voted) -> None:
    assert voted.stopped == 75
    assert voted.code == 0, (voted.folder / "round").read_text()[-3000:]
    with Store.open(voted.project) as store:
        assert tuple(store.items()) == voted.items, "the pairs were sampled again"
    assert len(voted.items) == PAIRS
    model = voted.folder / "runs" / "small-round-1" / "reward" / "model"
    assert (model / "model.safetensors").stat().st_size > 0


def test_pairs_are_two_answers_of_the_last_policy_that_differ(voted: Voted) -> None:
    policy = str(voted.folder / "runs" / "small" / "ppo" / "model")
    for item in voted.items:
        first, second = item.answers
        assert first.text.strip() != second.text.strip() and first.seed != second.seed
        assert (first.policy, second.policy, item.round) == (policy, policy, "round-1")
        assert first.sampling == {"temperature": 1.0, "max_response_length": 40}
    assert len({item.prompt for item in voted.items}) == PROMPTS


def test_the_model_was_trained_on_the_votes(voted: Voted) -> None:
    run = voted.folder / "runs" / "small-round-1"
    files = json.loads((run / "reward" / "done.json").read_text())["data"]
    assert [file["rows"] for file in files if file["file"] == str(run / "feedback.db")] == [VOTES]
    screen = (voted.folder / "round").read_text()
    assert f"{VOTES} votes of 3 raters, on {PAIRS} items to label; aggregated by majority" in screen


def test_a_reward_model_is_evaluated_on_the_votes_by_rater_and_version(voted: Voted) -> None:
    model, out = voted.folder / "runs" / "small-round-1" / "reward" / "model", voted.folder / "accuracy.json"
    done = rlhf(
        "evaluate", str(RECIPE), *voted.settings,
        "--reward-model", str(model), "--preferences", str(voted.project), "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert set(found["by_rater"]) == {"Ada-1", "Bo-2", "Cleo-3"} and set(found["by_guideline"]) == {"none"}
    judged = found["overall"]["judgements"]
    assert judged == sum(each["judgements"] for each in found["by_rater"].values())
    assert judged == sum(each["judgements"] for each in found["calibration"]) > 30
    assert found["overall"]["low"] < found["overall"]["accuracy"] < found["overall"]["high"]


def test_the_next_round_asks_what_two_reward_models_disagree_about(voted: Voted) -> None:
    models = [str(voted.folder / "runs" / name / "reward" / "model") for name in ("small", "small-round-1")]
    few = ["feedback.pairs=5", "feedback.prompts=6", "feedback.selection=uncertainty"]
    done = rlhf("feedback", "sample", str(RECIPE), *voted.settings, *few, f"feedback.ensemble={json.dumps(models)}")
    assert done.returncode == 0, done.stderr[-3000:]
    with Store.open(voted.project) as store:
        new = store.items(round="round-2")
    assert len(new) == 5 and not {item.prompt for item in new} & {item.prompt for item in voted.items}
    line = next(line for line in done.stdout.splitlines() if "disagreement, chosen" in line)
    chosen, every = (float(number) for number in line.split("│")[2].split("/"))
    assert chosen > every > 0


@pytest.mark.slow
def test_the_report_trains_on_parts_of_the_labels_and_trains_none_again(voted: Voted) -> None:
    report = ["feedback", "report", str(RECIPE), *voted.settings, f"data.preferences={voted.project}"]
    done = rlhf(*report)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((voted.folder / "runs" / "small" / "feedback_report.json").read_text())
    labels = [point["labels"] for point in found["points"]]
    assert len(labels) == 4 and labels == sorted(labels) and 0 < labels[0] < labels[-1] <= VOTES
    assert all(point["low"] <= point["accuracy"] <= point["high"] for point in found["points"])
    assert found["accuracy_ceiling"] is None, "one vote an item shows no noise"
    assert found["cost"]["minutes"] == pytest.approx(1000 * found["cost"]["seconds_per_vote"] / 60)
    assert (voted.folder / "runs" / "small" / "feedback_report.png").stat().st_size > 10_000
    assert rlhf(*report).stdout.count("reward: finished before") == 4
