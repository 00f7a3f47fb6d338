"""The whole chain by the command that users type: real Ray, DeepSpeed on 2 ranks, vLLM and W&B (offline)."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from rlhf.metrics import PANELS, unknown_metrics
from rlhf.storage.jsonl import read_lines
from tests.end_to_end.small import RECIPE, STEPS, Pipeline, overrides, rlhf


def test_every_stage_leaves_a_model_and_its_record(pipeline: Pipeline) -> None:
    for stage in ("sft", "reward", "ppo"):
        stage_folder = pipeline.stage(stage)
        assert load_file(stage_folder / "model" / "model.safetensors")
        for name in ("config.yaml", "metrics.jsonl", "summary.json", "done.json", "status.json"):
            assert (stage_folder / name).stat().st_size > 0
        status, first, *others = json.loads((stage_folder / "status.json").read_text()), *pipeline.metrics(stage)
        assert status["steps"] == 1 + len(others)
        assert first["time/start"] > 0 and not any("time/start" in row for row in others)
        assert list((stage_folder / "wandb").rglob("*.wandb")), "W&B recorded nothing"
    assert pipeline.stage("curves.png").stat().st_size > 10_000
    assert len(read_lines(pipeline.stage("evaluation") / "comparisons.jsonl")) == 8


def test_sft_and_reward_model_learn(pipeline: Pipeline) -> None:
    sft, reward = pipeline.metrics("sft"), pipeline.metrics("reward")
    assert sft[-1]["eval/loss"] < 0.8 * sft[0]["train/loss"]
    assert (
        0 < reward[-1]["eval/accuracy_ci_low"] < reward[-1]["eval/accuracy"] < reward[-1]["eval/accuracy_ci_high"] < 1
    )
    config = json.loads((pipeline.stage("reward") / "model" / "config.json").read_text())
    summary = json.loads((pipeline.stage("reward") / "summary.json").read_text())
    assert config["rlhf_reward_shift"] == pytest.approx(-summary["demonstrations' raw score (shifted to 0)"])


def test_canaries_hold_on_every_step(pipeline: Pipeline) -> None:
    steps = pipeline.metrics("ppo")
    assert [step["step"] for step in steps] == list(range(STEPS))
    assert all(step["rollout/logprob_gap_mean"] < 1e-4 for step in steps)
    assert all(abs(step["first_pass/ratio"] - 1) < 1e-4 and step["first_pass/clipfrac"] == 0 for step in steps[1:])
    assert abs(steps[0]["objective/logratio_abs_mean"]) < 1e-4
    assert [step["weights/version"] for step in steps] == [1 + step for step in range(STEPS)]
    assert all(step["rollout/staleness_mean"] == 0 for step in steps)
    assert "first_pass/ratio" not in steps[0], "the policy rests while the critic warms up"


def test_policy_changed_and_its_samples_are_readable(pipeline: Pipeline) -> None:
    before, after = (load_file(pipeline.stage(s) / "model" / "model.safetensors") for s in ("sft", "ppo"))
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)
    samples = read_lines(pipeline.stage("ppo") / "samples.jsonl")
    assert len(samples) == 4 * STEPS
    assert all(sample["prompt"].endswith("Assistant:") and "<eos>" not in sample["response"] for sample in samples)


def test_every_panel_of_the_workspace_shows_what_the_stages_record(pipeline: Pipeline) -> None:
    recorded = {name for stage in ("sft", "reward", "ppo") for row in pipeline.metrics(stage) for name in row}
    asked = {name for panel in PANELS for name in panel.lines}
    of_other_runs = {name for name in asked if name.startswith(("rewards/", "holdout/"))} | {"eval/rewards_margin"}
    assert asked - of_other_runs - recorded == set()
    assert unknown_metrics([dict.fromkeys(recorded)]) == set()


def test_screen_shows_results_and_no_chatter(pipeline: Pipeline) -> None:
    for expected in (
        "held-out accuracy",
        "ceiling by the raters' noise",
        "win rate, 95% interval",
        "before",
        "curves.png",
    ):
        assert expected in pipeline.screen
    for chatter in ("WARNING", "INFO", "it/s]"):
        assert chatter not in pipeline.screen
    assert any((pipeline.stage("ppo") / "logs").glob("rollout-0.log"))


def test_finished_stages_are_skipped(pipeline: Pipeline) -> None:
    again = pipeline.command()
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stdout.count("finished before") == 3


def test_generate_answers_a_file_of_prompts(pipeline: Pipeline) -> None:
    model, out = pipeline.stage("ppo") / "model", pipeline.folder / "answers.jsonl"
    prompts = pipeline.folder / "three.jsonl"
    prompts.write_text("".join((pipeline.folder / "prompts.jsonl").read_text().splitlines(keepends=True)[:3]))
    arguments = [
        "--model",
        str(model),
        "--prompts",
        str(prompts),
        "--out",
        str(out),
        "--n",
        "2",
        *overrides(pipeline.folder, "answers"),
        "rollout.temperature=0.9",
    ]
    done = rlhf("generate", str(RECIPE), *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = read_lines(out)
    asked = [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [prompt for prompt in asked for _ in range(2)]
    assert all(row["response"].strip() for row in rows)
    assert len({row["response"] for row in rows}) == 6  # each answer has a seed of its own
    assert {row["sampling"]["temperature"] for row in rows} == {0.9}
