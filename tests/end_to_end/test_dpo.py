"""DPO by the command that users type: real Ray and DeepSpeed on 2 ranks, on the travel example."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.session import Session
from examples.travel.make_data import make_data
from rlhf.config.load import load_recipe
from rlhf.storage.jsonl import read_lines, to_line
from rlhf.tracking.console import Console
from tests.end_to_end.small import DATA_SEED, RECIPE, overrides, rlhf

SETTINGS = ["data.held_out_fraction=0.25", "dpo.optimizer.lr=2e-3", "dpo.optimizer.warmup_steps=0", "dpo.eval_every=10"]
"""A rate that the small model learns from few comparisons at, and enough of them held out to tell accuracies apart."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run's folder after DPO on a model of random weights, and what was printed."""
    folder = tmp_path_factory.mktemp("dpo")
    make_data(folder, seed=DATA_SEED, demonstrations=320, preferences=800, prompts=20)
    settings = [*overrides(folder, "small"), *SETTINGS]
    start = Session(recipe=load_recipe(RECIPE, settings), console=Console(sys.stdout), device="cpu", gpus=0).base
    done = rlhf("dpo", str(RECIPE), *settings, f"dpo.init={start}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "runs" / "small", done.stdout


def metrics(root: Path) -> list[dict[str, float]]:
    return read_lines(root / "dpo" / "metrics.jsonl")


def test_policy_and_reference_are_one_before_the_first_update(run: tuple[Path, str]) -> None:
    first = metrics(run[0])[0]
    assert first["train/loss"] == pytest.approx(0.693147, abs=1e-5)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert first[name] == pytest.approx(0, abs=1e-5), name


def test_it_learns_which_answer_people_prefer(run: tuple[Path, str]) -> None:
    evaluated = [step for step in metrics(run[0]) if "eval/accuracy" in step]
    early, late = evaluated[0], evaluated[-1]
    assert late["step"] == len(metrics(run[0])) - 1
    assert late["eval/accuracy"] > early["eval/accuracy"] + 0.05
    assert 0.5 < late["eval/accuracy_ci_low"] < late["eval/accuracy"] < late["eval/accuracy_ci_high"] < 1
    assert late["eval/loss"] < early["eval/loss"] < 0.693147
    assert late["eval/rewards_margin"] > early["eval/rewards_margin"] > 0


def test_it_leaves_a_model_that_others_load_and_its_record(run: tuple[Path, str]) -> None:
    root, screen = run
    before, after = (load_file(root / stage / "model.safetensors") for stage in ("base", "dpo/model"))
    assert before.keys() <= after.keys()
    assert any(not before[name].equal(after[name]) for name in before)
    tokens = AutoTokenizer.from_pretrained(root / "dpo" / "model")("Where is it?", return_tensors="pt")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(root / "dpo" / "model")
    assert model(tokens).logits.shape == (*tokens.shape, model.config.vocab_size)
    summary = json.loads((root / "dpo" / "summary.json").read_text())
    assert summary["held-out accuracy"] == metrics(root)[-1]["eval/accuracy"]
    for shown in ("held-out accuracy", "held-out reward margin", "ceiling by the raters' noise", "seconds, reference"):
        assert shown in summary and shown in screen
    assert "WARNING" not in screen


UNPAIRED = {"dpo": {"kto"}, "reward": {"pointwise"}}
"""Losses on single answers, by stage."""


def write_single_answers(folder: Path) -> str:
    """The answers of the comparisons one by one, with a label each."""
    pairs = read_lines(folder / "preferences.jsonl")
    rows = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in pairs
        for side in ("chosen", "rejected")
    ]
    (folder / "answers.jsonl").write_text("".join(to_line(row) for row in rows))
    return f"data.preferences={folder / 'answers.jsonl'}"


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "loss"), [("dpo", "ipo"), ("dpo", "orpo"), ("dpo", "kto"), ("reward", "pointwise")])
def test_every_other_loss_learns_from_the_same_people(run: tuple[Path, str], stage: str, loss: str) -> None:
    """Each takes a minute: the losses' values are tested elsewhere; only a run shows that data, reference, evaluation
    and summary of each fit together."""
    folder = run[0].parent.parent
    settings = [*overrides(folder, loss), *SETTINGS, f"{stage}.loss={loss}", f"{stage}.init={run[0] / 'base'}"]
    settings += [] if stage == "dpo" else ["reward.optimizer.lr=2e-3", "reward.eval_every=10"]
    settings += [write_single_answers(folder)] if loss in UNPAIRED[stage] else []
    done = rlhf(stage, str(RECIPE), *settings)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    evaluated = [step for step in read_lines(folder / "runs" / loss / stage / "metrics.jsonl") if "eval/loss" in step]
    assert len(evaluated) > 2
    assert evaluated[-1]["eval/loss"] < evaluated[0]["eval/loss"]
    assert evaluated[-1]["eval/accuracy"] > 0.52
    assert (folder / "runs" / loss / stage / "model" / "config.json").exists()
    assert "held-out accuracy" in done.stdout and "WARNING" not in done.stdout
