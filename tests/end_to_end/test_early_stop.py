"""A reward that can be gamed, and a judge that sees it: the run stops early, and its model is the best policy."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from actors.session import Session
from launch.cli import main
from rlhf.config.load import load_recipe
from rlhf.storage.jsonl import read_lines
from rlhf.tracking.console import Console
from rlhf.tracking.quiet import quiet_framework_logs
from rlhf.tracking.run_folder import RunFolder
from tests.end_to_end.small import RECIPE, make_small_data, overrides

pytestmark = pytest.mark.slow  # tests/actors/test_early_stop.py and test_checkpoint_manager.py have the parts
STEPS, EVERY, ENOUGH = 18, 3, 0.15
SCORERS = f"""
def reward(prompts, responses):
    return [response.count("e") / max(1, len(response)) for response in responses]

def judge(prompts, responses):
    # what the reward stands for is reached at {ENOUGH}, and beyond it every further letter does harm
    return [min(share, 2 * {ENOUGH} - share) for share in reward(prompts, responses)]
"""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that is over: its folder, its exit code, what it printed, and a copy of every best model when it was."""

    run: Path
    code: int
    screen: str
    best: Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """PPO's loop without a critic, from a model of random weights, on one rank."""
    folder = tmp_path_factory.mktemp("early-stop")
    make_small_data(folder)
    (folder / "scorers.py").write_text(SCORERS)
    settings = [*overrides(folder, "gamed"), *_settings(folder)]
    start = Session(recipe=load_recipe(RECIPE, settings), console=Console(sys.stdout), device="cpu", gpus=0).base
    with pytest.MonkeyPatch.context() as patch, quiet_framework_logs(folder / "screen"):
        patch.setattr(RunFolder, "writing_best", _copying(folder / "best"))
        code = main(["ppo", str(RECIPE), *settings, f"ppo.policy_init={start}"])
    return Finished(
        run=folder / "runs" / "gamed" / "ppo",
        code=code,
        screen=(folder / "screen").read_text(),
        best=folder / "best",
    )


def _settings(folder: Path) -> list[str]:
    return [
        f"rewards={{e: {{function: '{folder}/scorers.py:reward'}}}}",
        f"early_stop={{scorer: {{function: '{folder}/scorers.py:judge'}}, every: {EVERY}, prompts: 30, patience: 2}}",
        "data.held_out_fraction=0.25",
        "algorithm.name=reinforce++",
        "algorithm.kl_coef=0",
        "algorithm.critic_warmup_steps=0",
        "algorithm.missing_eos_penalty=null",
        f"ppo.steps={STEPS}",
        "ppo.batch_size=32",
        "ppo.optimizer={lr: 1.0e-2, schedule: constant}",
        "rollout.max_response_length=16",
        "evaluation.prompts=16",
        "placement.policy.ranks=1",
        "canaries.max_kl=null",
    ]


def _copying(copies: Path):
    """``writing_best`` as it is, and a copy of what was saved then."""
    original = RunFolder.writing_best

    @contextmanager
    def writing_best(self: RunFolder, step: int) -> Iterator[Path]:
        with original(self, step) as partial:
            yield partial
        shutil.copytree(self.best / f"step_{step}", copies / f"step_{step}")

    return writing_best


def judged(finished: Finished) -> list[dict[str, float]]:
    return [row for row in read_lines(finished.run / "metrics.jsonl") if "holdout/score" in row]


def test_the_run_stops_before_its_last_step_and_that_is_no_failure(finished: Finished) -> None:
    assert finished.code == 0
    rows = read_lines(finished.run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert EVERY <= len(rows) < STEPS and len(rows) % EVERY == 0
    assert [row["step"] + 1 for row in judged(finished)] == list(range(EVERY, len(rows) + 1, EVERY))
    assert rows[-1]["objective/scores"] > ENOUGH > rows[0]["objective/scores"]


def test_the_held_out_score_rose_and_fell(finished: Finished) -> None:
    rows = judged(finished)
    first = read_lines(finished.run / "metrics.jsonl")[0]["holdout/start_score"]
    best = max(rows, key=lambda row: row["holdout/score"])
    last = rows[-1]
    assert best["holdout/score"] > first and best["holdout/score"] > last["holdout/score"]
    assert last["holdout/best_step"] == best["step"] + 1 < last["step"] + 1
    assert last["holdout/score_ci_low"] < last["holdout/score"] < last["holdout/score_ci_high"]
    fell = [event for event in read_lines(finished.run / "events.jsonl") if event["kind"] == "held_out_score_fell"]
    assert [(event["step"], event["over_optimised"]) for event in fell[-2:]] == [
        (last["step"] + 1 - EVERY, True),
        (last["step"] + 1, True),
    ], "patience is 2"


def test_the_model_on_disk_is_the_best_policys(finished: Finished) -> None:
    step = int(judged(finished)[-1]["holdout/best_step"])
    saved = {path.name: load_file(path / "model.safetensors") for path in finished.best.iterdir()}
    model = load_file(finished.run / "model" / "model.safetensors")
    assert "step_0" in saved and len(saved) > 1
    for name, weights in saved.items():
        same = all(model[key].equal(weights[key]) for key in model.keys() | weights.keys())
        assert same == (name == f"step_{step}")
    assert (finished.run / "model" / "tokenizer.json").exists()
    assert not (finished.run / "best").exists()


def test_the_answers_compared_are_the_best_policys(finished: Finished) -> None:
    """They are as full of the letter as the best policy's, far less than the last one's."""
    scorers: dict[str, Callable[[list[str], list[str]], list[float]]] = {}
    exec(SCORERS, scorers)
    answers = read_lines(finished.run / "answers.jsonl")
    shares = scorers["reward"]([], [row["after"] for row in answers])
    rewards = [row["objective/scores"] for row in read_lines(finished.run / "metrics.jsonl")]
    best = rewards[int(judged(finished)[-1]["holdout/best_step"])]  # of the step whose answers that policy wrote
    assert len(answers) == 16
    assert abs(sum(shares) / 16 - best) < abs(sum(shares) / 16 - rewards[-1])


def test_people_are_told(finished: Finished) -> None:
    last = judged(finished)[-1]
    screen = " ".join(finished.screen.split())
    assert f"PPO stopped early, after step {last['step'] + 1} of {STEPS}: the held-out score fell from " in screen
    assert f"The model is the policy after step {last['holdout/best_step']:g}." in screen
    for expected in ("best held-out score, 95% interval", "last held-out score, 95% interval", "early, after step"):
        assert expected in screen
    assert (finished.run / "overoptimisation.png").stat().st_size > 10_000
