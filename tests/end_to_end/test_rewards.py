"""A reward of four parts through real Ray, vLLM and DeepSpeed.

A function that reads rows, a service that drops some samples, a reward model with its own tokenizer, and an encoder.
Only a run shows that blocks, prompts and rows meet in the actors.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from rlhf.config.schema import ModelConfig, ScratchConfig
from rlhf.models.folder import load_tokenizer
from rlhf.models.load import REWARD_SHIFT, load_classifier
from rlhf.models.scalar import init_reward_head
from rlhf.models.scratch import make_scratch
from rlhf.storage.jsonl import read_lines
from tests.end_to_end.small import RECIPE, ROOT, make_small_data, overrides
from tests.rlhf.service import serve
from tests.rlhf.tiny_classifiers import pair_tokenizer, tiny_classifier

SIZES = ScratchConfig(hidden_size=64, layers=2, heads=2, intermediate_size=128, vocab_size=600, max_length=128)
STEPS, BATCH, SHIFT = 3, 16, 0.5
WEIGHTS = {"bonus": 0.5, "length": -0.25, "judge": 2.0, "encoder": 1.5}
FUNCTION = """
def bonus(prompts, responses, rows):
    return [row["bonus"] + len(response) / 100 for response, row in zip(responses, rows)]
"""


def make_models(folder: Path, texts: list[str]) -> None:
    """A policy, a reward model whose tokenizer was trained on other text, and an encoder with two labels."""
    make_scratch(SIZES, texts, folder / "policy", seed=1)
    make_scratch(SIZES, ["words that no traveller says " * 20], folder / "judge", seed=2)
    classifier = load_classifier(folder / "judge", ModelConfig())
    init_reward_head(classifier, seed=3)
    classifier.config.update({REWARD_SHIFT: SHIFT})
    classifier.save_pretrained(folder / "judge")
    tiny_classifier("bert", labels=2, vocab_size=300, max_position_embeddings=512).save_pretrained(folder / "encoder")
    pair_tokenizer("bert").save_pretrained(folder / "encoder")


def make_rows(folder: Path) -> dict[str, float]:
    """Prompts with a column beside them; returns the column by prompt."""
    make_small_data(folder)
    prompts = [row["prompt"] for row in read_lines(folder / "prompts.jsonl")]
    bonus = {prompt: float(i % 5) for i, prompt in enumerate(prompts)}
    lines = [json.dumps({"prompt": prompt, "bonus": value}) for prompt, value in bonus.items()]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return bonus


def is_dropped(row: dict[str, Any]) -> bool:
    return row["bonus"] == 2.0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """Steps of GRPO, whose rollouts are generated while the step before trains: the stage's folder, and the prompts'
    column."""
    folder = tmp_path_factory.mktemp("rewards")
    bonus = make_rows(folder)
    make_models(folder, list(bonus))
    (folder / "my_reward.py").write_text(FUNCTION)
    with serve(lambda number, asked: 503 if any(map(is_dropped, asked["rows"])) else None) as service:
        endpoint = f"{{url: '{service.url}', batch_size: 1, retries: 1, on_failure: drop}}"
        settings = [
            f"rewards.bonus={{function: '{folder}/my_reward.py:bonus', weight: {WEIGHTS['bonus']}}}",
            f"rewards.length={{endpoint: {endpoint}, weight: {WEIGHTS['length']}}}",
            f"rewards.judge={{model: '{folder}/judge', weight: {WEIGHTS['judge']}}}",
            f"rewards.encoder={{model: '{folder}/encoder', label: LABEL_1, weight: {WEIGHTS['encoder']}}}",
            f"ppo.policy_init={folder}/policy",
            f"ppo.steps={STEPS}",
            "ppo.staleness=1",
            "placement.policy.ranks=1",
            "ppo.samples_per_prompt=2",
            "algorithm.name=grpo",
            "algorithm.epochs=1",  # log π_old is then computed by the update
            "algorithm.minibatches=1",
            "algorithm.critic_warmup_steps=0",
            "algorithm.missing_eos_penalty=null",
            f"tracking.samples_per_step={BATCH}",
            "evaluation.prompts=1",
        ]
        command = [sys.executable, "-m", "launch.cli", "ppo", str(RECIPE), *overrides(folder, "parts"), *settings]
        environment = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "runs" / "parts" / "ppo", bonus


def encoder_score(folder: Path, prompt: str, response: str) -> float:
    """The second label's logit by transformers alone."""
    encoder, own = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return float(encoder(**own([prompt], [response.strip()], return_tensors="pt")).logits[0, 1])


def parts_of(sample: dict[str, Any], bonus: float, judge: Any, own: PreTrainedTokenizerBase) -> dict[str, float]:
    """The parts of a sample's score but for the encoder's, each worked out apart from the run."""
    prompt, response = sample["prompt"], sample["response"]
    tokens = own.encode(prompt) + own.encode(response)
    tokens += [own.eos_token_id] if sample["finish_reason"] == "stop" else []
    with torch.no_grad():
        hidden = judge.model(torch.tensor([tokens[-SIZES.max_length :]])).last_hidden_state
        reward = float(judge.score(hidden)[0, -1, 0]) + SHIFT
    return {"bonus": bonus + len(response) / 100, "length": float(len(response)), "judge": reward}


def test_every_score_is_the_weighted_sum_and_dropped_samples_are_left_out(run: tuple[Path, dict[str, float]]) -> None:
    folder, bonus = run
    judge = load_classifier(folder.parents[2] / "judge", ModelConfig())
    own = load_tokenizer(folder.parents[2] / "judge", ModelConfig())
    samples, metrics = read_lines(folder / "samples.jsonl"), read_lines(folder / "metrics.jsonl")
    assert len(metrics) == STEPS
    dropped_in_all = 0
    for step, measured in enumerate(metrics):
        kept = [sample for sample in samples if sample["step"] == step]  # all that have a score are shown
        assert not any(is_dropped({"bonus": bonus[sample["prompt"]]}) for sample in kept)
        assert measured["rollout/dropped"] == BATCH - len(kept)
        dropped_in_all += BATCH - len(kept)
        parts = [
            {
                **parts_of(sample, bonus[sample["prompt"]], judge, own),
                "encoder": encoder_score(folder.parents[2] / "encoder", sample["prompt"].strip(), sample["response"]),
            }
            for sample in kept
        ]
        for sample, part in zip(kept, parts, strict=True):
            total = sum(WEIGHTS[name] * value for name, value in part.items())
            assert sample["score"] == pytest.approx(total, abs=1e-4)
        for name in WEIGHTS:
            mean = sum(part[name] for part in parts) / len(parts)
            assert measured[f"objective/scores/{name}"] == pytest.approx(mean, abs=1e-4)
        total = sum(weight * measured[f"objective/scores/{name}"] for name, weight in WEIGHTS.items())
        assert measured["objective/raw_scores"] == pytest.approx(total, abs=1e-4)
    assert 0 < dropped_in_all < STEPS * BATCH, "the seed has prompts of both kinds"


def test_each_part_says_how_it_works_in_its_own_log(run: tuple[Path, dict[str, float]]) -> None:
    logs = run[0] / "logs"
    judge = (logs / "reward judge-0.log").read_text()
    assert "reads text, because its tokenizer or chat template differs" in judge
    encoder = (logs / "reward encoder-0.log").read_text()
    assert "by its own forward pass, over padded rows" in encoder and "as a pair of texts" in encoder
    assert "texts so far were truncated at the beginning" in judge, "its own tokens are many more than the policy's"
    assert (
        "after 2 attempts; last error: HTTP 503. These samples are dropped."
        in (logs / "reward length-0.log").read_text()
    )


def test_the_policy_is_sound_and_trained(run: tuple[Path, dict[str, float]]) -> None:
    """Only the first rollouts are the policy's own; the importance weights correct for the age of the others."""
    metrics = read_lines(run[0] / "metrics.jsonl")
    assert [step["rollout/staleness_mean"] for step in metrics] == [0.0] + [1.0] * (STEPS - 1)
    assert metrics[0]["rollout/logprob_gap_mean"] < 1e-4
    assert abs(metrics[0]["rollout/importance_weight_mean"] - 1) < 1e-4
    assert metrics[0]["objective/logratio_abs_mean"] < 1e-4
    assert all(step["rollout/logprob_gap_mean"] > 1e-3 for step in metrics[1:])
    assert not any("rollout/logprob_gap_max" in step for step in metrics)  # no scoring pass measures it
    assert all(abs(step["first_pass/ratio"] - 1) < 1e-4 for step in metrics)
    assert all(step["policy/grad_norm"] > 0 for step in metrics)
