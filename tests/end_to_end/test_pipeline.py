"""The whole chain by the command that users type: real Ray, DeepSpeed on 2 ranks, vLLM and W&B (offline)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rlhf.metrics import PANELS, unknown_metrics
from rlhf.storage.jsonl import read_lines
from tests.end_to_end.small import RECIPE, ROOT, make_small_data, overrides

UNTIED = "model.scratch.tie_embeddings=false"
"""The other end-to-end test publishes a tied head."""


def rlhf(*arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "launch.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished small pipeline: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("pipeline")
    make_small_data(folder)
    done = rlhf("pipeline", str(RECIPE), *overrides(folder, "small"), UNTIED)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, done.stdout


def metrics(folder: Path, stage: str) -> list[dict]:  # type: ignore[type-arg]
    return read_lines(folder / "runs" / "small" / stage / "metrics.jsonl")


def test_every_stage_leaves_a_model_and_its_record(run: tuple[Path, str]) -> None:
    folder, _ = run
    for stage in ("sft", "reward", "ppo"):
        stage_folder = folder / "runs" / "small" / stage
        assert load_file(stage_folder / "model" / "model.safetensors")
        for name in ("config.yaml", "metrics.jsonl", "summary.json", "done.json", "status.json"):
            assert (stage_folder / name).stat().st_size > 0
        status = json.loads((stage_folder / "status.json").read_text())
        assert status["steps"] == len(metrics(folder, stage))
        assert list((stage_folder / "wandb").rglob("*.wandb")), "W&B recorded nothing"
    assert (folder / "runs" / "small" / "curves.png").stat().st_size > 10_000
    assert len(read_lines(folder / "runs" / "small" / "evaluation" / "comparisons.jsonl")) == 8


def test_sft_and_reward_model_learn(run: tuple[Path, str]) -> None:
    folder, _ = run
    sft, reward = metrics(folder, "sft"), metrics(folder, "reward")
    assert sft[-1]["eval/loss"] < 0.8 * sft[0]["train/loss"]
    assert (
        0 < reward[-1]["eval/accuracy_ci_low"] < reward[-1]["eval/accuracy"] < reward[-1]["eval/accuracy_ci_high"] < 1
    )
    config = json.loads((folder / "runs" / "small" / "reward" / "model" / "config.json").read_text())
    summary = json.loads((folder / "runs" / "small" / "reward" / "summary.json").read_text())
    assert config["rlhf_reward_shift"] == pytest.approx(-summary["demonstrations' raw score (shifted to 0)"])


def test_canaries_hold_on_every_step(run: tuple[Path, str]) -> None:
    folder, _ = run
    steps = metrics(folder, "ppo")
    assert [step["step"] for step in steps] == [0, 1, 2]
    assert all(step["rollout/logprob_gap_mean"] < 1e-4 for step in steps)
    assert all(abs(step["first_pass/ratio"] - 1) < 1e-4 and step["first_pass/clipfrac"] == 0 for step in steps[1:])
    assert abs(steps[0]["objective/logratio_abs_mean"]) < 1e-4
    assert [step["weights/version"] for step in steps] == [1, 2, 3]
    assert all(step["rollout/staleness_mean"] == 0 for step in steps)
    assert "first_pass/ratio" not in steps[0], "the policy rests while the critic warms up"


def test_policy_changed_and_its_samples_are_readable(run: tuple[Path, str]) -> None:
    folder, _ = run
    before, after = (load_file(folder / "runs" / "small" / s / "model" / "model.safetensors") for s in ("sft", "ppo"))
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)
    samples = read_lines(folder / "runs" / "small" / "ppo" / "samples.jsonl")
    assert len(samples) == 3 * 4
    assert all(sample["prompt"].endswith("Assistant:") and "<eos>" not in sample["response"] for sample in samples)


def test_every_panel_of_the_workspace_shows_what_the_stages_record(run: tuple[Path, str]) -> None:
    recorded = {name for stage in ("sft", "reward", "ppo") for row in metrics(run[0], stage) for name in row}
    asked = {name for panel in PANELS for name in panel.lines}
    of_other_runs = {name for name in asked if name.startswith(("rewards/", "holdout/"))} | {"eval/rewards_margin"}
    assert asked - of_other_runs - recorded == set()
    assert unknown_metrics([dict.fromkeys(recorded)]) == set()


def test_screen_shows_results_and_no_chatter(run: tuple[Path, str]) -> None:
    folder, screen = run
    for expected in (
        "held-out accuracy",
        "ceiling by the raters' noise",
        "win rate, 95% interval",
        "before",
        "curves.png",
    ):
        assert expected in screen
    for chatter in ("WARNING", "INFO", "it/s]"):
        assert chatter not in screen
    assert any((folder / "runs" / "small" / "ppo" / "logs").glob("rollout-0.log"))


def test_finished_stages_are_skipped_and_another_configuration_is_refused(run: tuple[Path, str]) -> None:
    folder, _ = run
    again = rlhf("pipeline", str(RECIPE), *overrides(folder, "small"), UNTIED)
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stdout.count("finished before") == 3
    other = rlhf("sft", str(RECIPE), *overrides(folder, "small"), UNTIED, "sft.batch_size=8")
    assert other.returncode == 2
    assert "Traceback" not in other.stderr


def test_generate_answers_a_file_of_prompts(run: tuple[Path, str]) -> None:
    folder, _ = run
    model, out = folder / "runs" / "small" / "ppo" / "model", folder / "answers.jsonl"
    prompts = folder / "three.jsonl"
    prompts.write_text("".join((folder / "prompts.jsonl").read_text().splitlines(keepends=True)[:3]))
    arguments = ["--model", str(model), "--prompts", str(prompts), "--out", str(out), *overrides(folder, "answers")]
    done = rlhf("generate", str(RECIPE), *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = read_lines(out)
    assert [row["prompt"] for row in rows] == [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()]
    assert all(row["response"].strip() for row in rows)
