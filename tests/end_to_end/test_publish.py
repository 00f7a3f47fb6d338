"""Publishing from ZeRO-3 ranks to a real engine: verified when it is right, stopped when it is sabotaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file

from actors.blocks import make_block
from actors.scoring import Scoring
from actors.trainer import PPOTrainer
from actors.waiting import PhaseContext
from rlhf.algorithms import canaries
from rlhf.errors import CanaryError
from rlhf.roles.assemble import BatchReport
from rlhf.run_state import RunState
from rlhf.weights.fingerprint import differences, fingerprint
from rlhf.weights.memory_file import MemoryFile
from rlhf.weights.shared_memory import write_chunk
from tests.end_to_end.in_process import small_trainer
from tests.end_to_end.sabotage import SabotagedPolicy

CONTEXT = PhaseContext(phase="test")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PPOTrainer]:
    """A GRPO run on two ZeRO-3 ranks with a tied head, started but not stepped."""
    folder = tmp_path_factory.mktemp("publish")
    settings = [
        "placement.policy.zero_stage=3",
        "placement.reference.zero_stage=3",
        "ppo.optimizer.schedule=constant",
        "algorithm.name=grpo",
        "ppo.samples_per_prompt=2",
    ]
    with small_trainer(folder, settings, SabotagedPolicy) as trainer:
        yield trainer


@pytest.fixture(scope="module")
def first_step(trainer: PPOTrainer) -> BatchReport:
    """A whole step, from verified weights to the next verified weights."""
    trainer.actors.publish(0, CONTEXT)
    return trainer.step(RunState.start(trainer.recipe))[0]


def test_a_step_on_zero3_keeps_every_canary(trainer: PPOTrainer, first_step: BatchReport) -> None:
    canaries.check(first_step.metrics, 0, canaries.Limits.of(trainer.recipe.canaries, "float32"))
    assert first_step.metrics["rollout/logprob_gap_mean"] < 1e-4
    assert first_step.metrics["first_pass/ratio"] == pytest.approx(1, abs=1e-4)
    assert first_step.metrics["objective/logratio_abs_mean"] < 1e-4


@pytest.mark.parametrize(
    ("fault", "where"), [("dropped", "layers.1"), ("altered", "layers.0"), ("head", "lm_head.weight")]
)
def test_a_sabotaged_publish_stops_the_run(
    trainer: PPOTrainer, first_step: BatchReport, fault: str, where: str
) -> None:
    trainer.actors.publish(1, CONTEXT)
    trainer.actors.policy.ask("sabotage", fault, context=CONTEXT)
    trainer.actors.update(_experience(trainer, step=1), step=1)
    with pytest.raises(CanaryError, match="weights/fingerprint") as caught:
        trainer.actors.publish(2, CONTEXT)
    assert where in str(caught.value)
    assert "usual causes" in str(caught.value)
    [engine] = trainer.actors.engines.all
    assert trainer.actors.engines.serving == []
    with pytest.raises(Exception, match="before its weights were verified"):
        ray.get(next(engine.actor.generate.options(num_returns="streaming").remote([0], [0], [0], 1)))
    trainer.actors.policy.ask("sabotage", "", context=CONTEXT)
    trainer.actors.publish(1, CONTEXT)


@pytest.mark.parametrize("fault", ["nothing sent", "half a layer sent", "a chunk that does not fit"])
def test_an_update_that_its_sender_left_open_is_closed(
    trainer: PPOTrainer, first_step: BatchReport, fault: str
) -> None:
    engines, [engine], file = trainer.actors.engines, trainer.actors.engines.all, MemoryFile()
    trainer.actors.publish(1, CONTEXT)
    held = ray.get(engine.actor.held_fingerprint.remote())
    for is_abandoned in (True, False):  # the next start closes it as well
        ray.get(engine.actor.start_weight_update.remote())
        if fault != "nothing sent":
            size = 64 if fault == "half a layer sent" else 63  # the queries alone, of three in one matrix
            chunk = write_chunk(file, [("model.layers.0.self_attn.q_proj.weight", torch.ones(size, 64))])
            ref = engine.actor.update_weights.remote(asdict(chunk))
            with pytest.raises(ray.exceptions.RayTaskError) if size == 63 else nullcontext():
                ray.get(ref)
        if is_abandoned:
            engines.abandon(CONTEXT)
            assert ray.get(engine.actor.held_fingerprint.remote()) == held, "as if nothing had been sent"
        trainer.actors.publish(1, CONTEXT)
        assert engines.serving == [engine]


def _experience(trainer: PPOTrainer, step: int) -> ray.ObjectRef:
    """Fresh rollouts, scored and put together, as the loop does it."""
    scoring = Scoring(trainer.actors, CONTEXT, 16)
    for block, answered in trainer.actors.engines.generate([i // 2 for i in range(16)], range(16), CONTEXT):
        scoring.send(make_block(block, answered))
    return trainer.actors.assemble(step, RunState.start(trainer.recipe).algorithm, [scoring.wait_for_results()])[0]


def test_saved_zero3_model_is_what_the_engine_holds(
    trainer: PPOTrainer, first_step: BatchReport, tmp_path: Path
) -> None:
    trainer.actors.policy.ask("save", tmp_path, context=CONTEXT)
    trainer.actors.publish(9, CONTEXT)
    sent, _ = trainer.actors.policy.ask("publish", 30.0, context=CONTEXT)[0]
    saved = load_file(tmp_path / "model.safetensors")
    saved["lm_head.weight"] = saved["model.embed_tokens.weight"]
    assert differences(sent, fingerprint(saved.items())) == []
