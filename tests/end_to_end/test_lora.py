"""PPO of adapters through Ray, DeepSpeed and vLLM: the policy is its own reference, and engines hold merged weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from actors.trainer import PPOTrainer
from actors.waiting import PhaseContext
from rlhf.algorithms import canaries
from rlhf.models.load import load_causal
from rlhf.roles.assemble import BatchReport
from rlhf.run_state import RunState
from rlhf.weights.fingerprint import differences, fingerprint
from tests.end_to_end.in_process import small_trainer

pytestmark = pytest.mark.slow  # test_policy_lora.py has the steps, test_publish.py the engine
CONTEXT = PhaseContext(phase="test")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PPOTrainer]:
    """A run on two ZeRO-3 ranks whose model, with a tied head, is random: adapters of all linear layers learn."""
    folder = tmp_path_factory.mktemp("lora")
    settings = [
        "model.lora={rank: 4, alpha: 8}",
        "placement.policy={ranks: 2, zero_stage: 3}",
        "ppo.optimizer={lr: 0.01, schedule: constant}",
        "rollout.temperature=0.7",
    ]
    with small_trainer(folder, settings) as trainer:
        yield trainer


@pytest.fixture(scope="module")
def reports(trainer: PPOTrainer) -> list[BatchReport]:
    """Three steps, each from verified weights to the next verified weights."""
    trainer.actors.publish(0, CONTEXT)
    reports, state = [], RunState.start(trainer.recipe)
    for _ in range(trainer.recipe.ppo.steps):
        report, state, _ = trainer.step(state)
        reports.append(report)
    return reports


def test_there_is_no_reference_beside_the_policy(trainer: PPOTrainer) -> None:
    assert trainer.actors.reference is None
    [scorer] = [scorer for scorer in trainer.actors.scorers if scorer.result_spec.kind == "ref_logprobs"]
    assert (scorer.group, scorer.method) == (trainer.actors.policy, "reference_logprobs")


def test_the_policy_starts_as_its_reference_exactly(reports: list[BatchReport]) -> None:
    assert reports[0].metrics["objective/logratio_abs_mean"] == 0.0
    assert reports[0].metrics["objective/kl"] == 0.0
    assert [report.metrics["objective/logratio_abs_mean"] > 1e-3 for report in reports] == [False, True, True]


def test_every_step_keeps_every_canary(trainer: PPOTrainer, reports: list[BatchReport]) -> None:
    assert len(reports) == 3
    for step, report in enumerate(reports):
        print(
            {
                k: v
                for k, v in report.metrics.items()
                if "gap" in k
                or "logratio" in k
                or "sync" in k
                or k in ("objective/kl", "time/step", "first_pass/ratio", "first_pass/approxkl")
            }
        )
        canaries.check(report.metrics, step, canaries.Limits.of(trainer.recipe.canaries, "float32"))
        assert report.metrics["rollout/logprob_gap_mean"] < 1e-4
        assert report.metrics["first_pass/ratio"] == pytest.approx(1, abs=1e-4)
        assert report.metrics["first_pass/clipfrac"] == 0


def plain(folder: Path) -> dict[str, Tensor]:
    """The tensors of a saved model, its tied head under its own name too."""
    state = load_file(folder / "model.safetensors")
    return {**state, "lm_head.weight": state["model.embed_tokens.weight"]}


def test_saved_model_is_what_the_engine_holds(trainer: PPOTrainer, reports: list[BatchReport], tmp_path: Path) -> None:
    """Merged, and the adapter by itself beside it."""
    trainer.actors.policy.ask("save", tmp_path, context=CONTEXT)
    trainer.actors.publish(9, CONTEXT)
    sent, _ = trainer.actors.policy.ask("publish", 30.0, context=CONTEXT)[0]
    assert differences(sent, fingerprint(plain(tmp_path).items())) == []
    base = Path(trainer.actors.tokenizer_folder)
    changed = differences(fingerprint(plain(base).items()), sent)
    assert changed == ["layers.0", "layers.1"]
    adapted = PeftModel.from_pretrained(load_causal(base, trainer.recipe.model), tmp_path / "adapter")
    merged = adapted.merge_and_unload().state_dict()
    for name, tensor in plain(tmp_path).items():
        assert (merged[name] - tensor).abs().max() < 1e-6, name
