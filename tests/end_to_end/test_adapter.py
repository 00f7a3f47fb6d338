"""PPO whose engines load the adapter alone: the base is sent once, and A and B are proven on every publish."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from actors.trainer import PPOTrainer
from actors.waiting import PhaseContext
from rlhf.algorithms import canaries
from rlhf.errors import CanaryError, UserError
from rlhf.run_state import RunState
from rlhf.weights.adapter import AdapterWeights
from rlhf.weights.fingerprint import differences
from tests.end_to_end.in_process import ADAPTED_RANKS, held_fingerprint, small_trainer

CONTEXT = PhaseContext(phase="test")


@pytest.fixture(scope="module", params=[pytest.param("null", marks=pytest.mark.slow), "nf4"])
def trainer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PPOTrainer]:
    """A run on two ZeRO-3 ranks whose model, with a tied head, is random. vLLM pads rank 4 to 8."""
    settings = [f"model.lora={{rank: 4, alpha: 8, publish: adapter, quantization: {request.param}}}", *ADAPTED_RANKS]
    with small_trainer(tmp_path_factory.mktemp("adapter"), settings) as trainer:
        yield trainer


def start_gpt2(folder: Path) -> str:
    """The error of an engine that starts with adapters of a GPT-2."""
    from rlhf.config.schema import LoRAConfig, ModelConfig, RolloutConfig
    from rlhf.device import engine_environment

    config = RolloutConfig(enforce_eager=True, memory_gib=0.1)
    os.environ.update(engine_environment("cpu", config, "shared_memory"))
    from rlhf.generation.engine import RolloutEngine
    from tests.rlhf.tiny import tiny_model

    tiny_model(AutoModelForCausalLM, "gpt2").save_pretrained(folder)
    with pytest.raises(UserError) as refused:
        RolloutEngine(folder, ModelConfig(lora=LoRAConfig(publish="adapter")), config, "cpu", 60, [1], "shared_memory")
    return str(refused.value)


@pytest.mark.slow
def test_a_model_of_which_vllm_serves_no_adapters_is_refused(tmp_path: Path) -> None:
    """In a process of its own: vLLM reads its environment when it is imported."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        message = process.submit(start_gpt2, tmp_path).result(timeout=300)
    assert "model.lora.publish = adapter" in message and "model.lora.publish=merged" in message


def test_engines_serve_the_adapter_that_was_trained(trainer: PPOTrainer) -> None:
    trainer.actors.publish(0, CONTEXT)
    first, state = held_fingerprint(trainer), RunState.start(trainer.recipe)
    assert {name for name in first if name.startswith("adapter")} == {"adapter of layers.0", "adapter of layers.1"}
    for step in range(2):
        report, state, _ = trainer.step(state)
        canaries.check(report.metrics, step, canaries.Limits.of(trainer.recipe.canaries, "float32"))
        assert report.metrics["rollout/logprob_gap_mean"] < 1e-4
        assert report.metrics["first_pass/ratio"] == pytest.approx(1, abs=1e-4)
        assert (report.metrics["objective/kl"] == 0.0) is (step == 0)
    last = held_fingerprint(trainer)
    assert {name for name in first if first[name] != last[name]} == {"adapter of layers.0", "adapter of layers.1"}


def test_an_adapter_that_was_changed_on_the_way_stops_the_run(trainer: PPOTrainer) -> None:
    """Another adapter, of one layer."""
    [engine] = trainer.actors.engines.all
    trainer.actors.publish(3, CONTEXT)
    sent, _ = trainer.actors.policy.ask("publish", 30.0, context=CONTEXT)[0]
    assert differences(sent, held_fingerprint(trainer)) == []
    a, b = {"model.layers.0.mlp.down_proj": torch.ones(4, 128)}, {"model.layers.0.mlp.down_proj": torch.ones(64, 4)}
    ray.get(engine.actor.load_adapter.remote(AdapterWeights(a=a, b=b, rank=4, alpha=8.0)))
    trainer.actors.engines.mark_outdated(4)
    with pytest.raises(CanaryError, match="weights/fingerprint") as caught:
        trainer.actors.engines.verify([engine], sent, 4, CONTEXT)
    assert "adapter of layers.0" in str(caught.value)
    with pytest.raises(Exception, match="before its weights were verified"):
        ray.get(next(engine.actor.generate.options(num_returns="streaming").remote([0], [0], [0], 1)))
    trainer.actors.publish(4, CONTEXT)
    assert trainer.actors.engines.serving == [engine]


def test_layers_that_vllm_does_not_adapt_are_named(trainer: PPOTrainer) -> None:
    [engine] = trainer.actors.engines.all
    other = AdapterWeights(a={"model.extra": torch.ones(4, 8)}, b={"model.extra": torch.ones(8, 4)}, rank=4, alpha=8.0)
    with pytest.raises(Exception, match="model.lora.publish = adapter and adapters of extra"):
        ray.get(engine.actor.load_adapter.remote(other))


def test_a_replaced_engine_gets_the_base_again(trainer: PPOTrainer) -> None:
    [engine] = trainer.actors.engines.all
    trainer.actors.publish(5, CONTEXT)
    before = held_fingerprint(trainer)
    trainer.actors.engines.replace([engine])
    trainer.actors.publish(6, CONTEXT)
    assert held_fingerprint(trainer) == before
