"""PPO of adapters on a quantised base, through Ray, DeepSpeed and vLLM: engines hold dequantised, merged weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from actors.trainer import PPOTrainer
from actors.waiting import PhaseContext
from rlhf.algorithms import canaries
from rlhf.models.load import load_policy
from rlhf.models.lora import plain_tensors
from rlhf.models.stored import dequantised
from rlhf.run_state import RunState
from rlhf.weights.fingerprint import differences, fingerprint
from tests.end_to_end.in_process import ADAPTED_RANKS, held_fingerprint, small_trainer

CONTEXT = PhaseContext(phase="test")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PPOTrainer]:
    """A run on two ZeRO-3 ranks whose model, with a tied head, is random; not stepped."""
    settings = ["model.lora={rank: 4, alpha: 8, quantization: nf4}", *ADAPTED_RANKS]
    with small_trainer(tmp_path_factory.mktemp("qlora"), settings) as trainer:
        yield trainer


def with_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tied head under its own name too."""
    return {**state, "lm_head.weight": state["model.embed_tokens.weight"]}


def test_the_engine_holds_the_dequantised_base_from_step_0_and_the_merged_weights_after_it(
    trainer: PPOTrainer, tmp_path: Path
) -> None:
    folder = Path(trainer.actors.tokenizer_folder)
    plain = with_head(load_file(folder / "model.safetensors"))
    quantised = load_policy(folder, trainer.recipe.model, seed=0)
    base = {name: dequantised(tensor) for name, tensor in plain_tensors(quantised).items()}
    assert differences(fingerprint(plain.items()), held_fingerprint(trainer)) == []
    trainer.actors.publish(0, CONTEXT)
    assert differences(fingerprint(base.items()), held_fingerprint(trainer)) == []
    assert differences(fingerprint(plain.items()), held_fingerprint(trainer)) == ["layers.0", "layers.1"]

    state = RunState.start(trainer.recipe)
    for step in range(2):
        report, state, _ = trainer.step(state)
        canaries.check(report.metrics, step, canaries.Limits.of(trainer.recipe.canaries, "float32"))
        assert report.metrics["rollout/logprob_gap_mean"] < 1e-4
        assert report.metrics["first_pass/ratio"] == pytest.approx(1, abs=1e-4)
        assert (report.metrics["objective/kl"] == 0.0) is (step == 0)
        assert (report.metrics["objective/logratio_abs_mean"] == 0.0) is (step == 0)

    trainer.actors.policy.ask("save", tmp_path, context=CONTEXT)
    trainer.actors.publish(9, CONTEXT)
    saved = with_head(load_file(tmp_path / "model.safetensors"))
    assert differences(fingerprint(saved.items()), held_fingerprint(trainer)) == []
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
