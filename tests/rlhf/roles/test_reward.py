"""Parts of a reward as their actors build them: a model that reads tokens or text, a function, a service."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.config.schema import EndpointConfig, ModelConfig, PlacementConfig, Recipe, RewardSourceConfig, RoleConfig
from rlhf.errors import UserError
from rlhf.models.load import REWARD_SHIFT, load_classifier
from rlhf.models.scalar import init_reward_head
from rlhf.models.scratch import train_tokenizer
from rlhf.records import Message
from rlhf.roles.block_result import BlockResult, join_samples
from rlhf.roles.reward import make_reward
from rlhf.types import FinishReason, Prompt, RolloutBlock
from rlhf.zero.process_group import Rank
from tests.rlhf.ranks import Crew
from tests.rlhf.roles.test_encoders_retokeniser import rollout
from tests.rlhf.service import serve
from tests.rlhf.tiny import tiny_model
from tests.rlhf.tiny_classifiers import pair_tokenizer, tiny_classifier

SHIFT = 0.25
DAY = date(2026, 11, 28)
POLICY = train_tokenizer(["the inn is open " * 5], 300)
OTHER = train_tokenizer(["where could it be then " * 5], 290)
PROMPTS = (
    Prompt(id=0, tokens=tuple(POLICY.encode("where is it?")), text="where is it?", row={"answer": "here"}),
    Prompt(
        id=1,
        tokens=tuple(POLICY.encode("\n\nHuman: open?\n\nAssistant:")),
        text="\n\nHuman: open?\n\nAssistant:",
        turns=(Message("user", "open?"),),
        row={"answer": "yes"},
    ),
    Prompt(id=2, tokens=tuple(POLICY.encode("and then")), text="and then", row={"answer": "no"}),
)
ANSWERS = [(1, " the inn is", FinishReason.LENGTH), (0, " here", FinishReason.STOP), (2, "", FinishReason.STOP)]
"""Prompt, response and finish reason, in the block's order."""


def sampled(text: str, reason: FinishReason) -> list[int]:
    return POLICY.encode(text) + ([POLICY.eos_token_id] if reason is FinishReason.STOP else [])


def block() -> RolloutBlock:
    return RolloutBlock.pack([rollout(PROMPTS[i], sampled(text, reason), reason) for i, text, reason in ANSWERS])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The policy's folder, and two reward models: one with its tokenizer, one with another."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("policy", "same", "other")}
    for name, tokenizer in (("policy", POLICY), ("same", POLICY), ("other", OTHER)):
        tiny_model(AutoModelForCausalLM, "llama", vocab_size=300).save_pretrained(made[name])
        tokenizer.save_pretrained(made[name])
    for name in ("same", "other"):
        classifier = load_classifier(made[name], ModelConfig())
        init_reward_head(classifier, seed=5)
        classifier.config.update({REWARD_SHIFT: SHIFT})
        classifier.save_pretrained(made[name])
    return made


def recipe(ranks: int = 1) -> Recipe:
    return Recipe(name="test", placement=PlacementConfig(reward=RoleConfig(ranks=ranks, zero_stage=0)))


def scored(rank: Rank, policy: Path, folder: Path) -> BlockResult:
    source = RewardSourceConfig(model=str(folder))
    ranked = recipe(rank.world)
    return make_reward(ranked, source, str(policy), str(folder), PROMPTS, DAY, rank).scores(block())


def plain(folder: Path, samples: list[list[int]]) -> list[float]:
    """The model's raw output at each sample's last token, one sample at a time, plus the shift."""
    classifier = load_classifier(folder, ModelConfig())
    with torch.no_grad():
        return [
            float(classifier.score(classifier.model(torch.tensor([tokens])).last_hidden_state)[0, -1, 0]) + SHIFT
            for tokens in samples
        ]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_model_with_the_policys_tokenizer_reads_its_tokens(ranks: int, folders: Any, crews: dict[int, Crew]) -> None:
    found = join_samples(crews[ranks].run(scored, folders["policy"], folders["same"]), 3)
    tokens = [[*PROMPTS[prompt].tokens, *sampled(text, reason)] for prompt, text, reason in ANSWERS]
    np.testing.assert_allclose(found, plain(folders["same"], tokens), rtol=1e-5)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_model_with_another_tokenizer_reads_the_text(ranks: int, folders: Any, crews: dict[int, Crew]) -> None:
    found = join_samples(crews[ranks].run(scored, folders["policy"], folders["other"]), 3)
    end = OTHER.eos_token_id
    tokens = [
        OTHER.encode("\n\nHuman: open?\n\nAssistant:") + OTHER.encode(" the inn is"),
        [*OTHER.encode("where is it?"), *OTHER.encode(" here"), end],
        [*OTHER.encode("and then"), end],
    ]
    np.testing.assert_allclose(found, plain(folders["other"], tokens), rtol=1e-5)
    as_policy_tokens = [[*PROMPTS[prompt].tokens, *sampled(text, reason)] for prompt, text, reason in ANSWERS]
    assert not np.allclose(found, plain(folders["other"], as_policy_tokens), atol=1e-2)


def scored_by_pair(rank: Rank, policy: Path, folder: Path, stage: int) -> BlockResult:
    source = RewardSourceConfig(model=str(folder), label="good", max_length=24)
    role = RoleConfig(ranks=rank.world, zero_stage=stage)
    ranked = Recipe(name="test", placement=PlacementConfig(reward=role))
    return make_reward(ranked, source, str(policy), str(folder), PROMPTS, DAY, rank).scores(block())


@pytest.mark.parametrize(
    ("name", "ranks", "stage"), [("bert", 1, 0), ("roberta", 1, 0), ("bart", 1, 0), ("deberta_v2", 2, 3)]
)
def test_an_encoder_scores_prompt_and_response_as_a_pair(
    name: str, ranks: int, stage: int, folders: Any, crews: dict[int, Crew], tmp_path: Path
) -> None:
    """Reference scores by transformers: the tokenizer's pair, token types included, and the model's forward pass."""
    labels = {"labels": 2, "id2label": {0: "bad", 1: "good"}, "vocab_size": 300}
    classifier, own = (
        tiny_classifier(name, **labels),
        pair_tokenizer("roberta" if name in ("roberta", "bart") else "bert"),
    )
    classifier.config.update({REWARD_SHIFT: SHIFT})
    classifier.save_pretrained(tmp_path)
    own.save_pretrained(tmp_path)
    found = join_samples(crews[ranks].run(scored_by_pair, folders["policy"], tmp_path, stage), 3)
    pairs = [("open?", "the inn is"), ("where is it?", "here"), ("and then", "")]
    with torch.no_grad():
        encoded = [own([prompt], [answer], return_tensors="pt") for prompt, answer in pairs]
        logits = [classifier(**pair).logits[0, 1].item() for pair in encoded]
    np.testing.assert_allclose(found, np.array(logits) + SHIFT, rtol=1e-4, atol=1e-5)


def alone(source: RewardSourceConfig, policy: Path) -> BlockResult:
    """Scores by a part that is not a model."""
    rank = Rank(rank=0, world=1, rendezvous="", device="cpu", threads=1, timeout_seconds=60.0)
    return make_reward(recipe(), source, str(policy), None, PROMPTS, DAY, rank).scores(block())


def test_a_function_is_given_text_and_rows_in_the_blocks_order(folders: Any, tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(
        "import json, pathlib\n"
        "def score(prompts, responses, rows):\n"
        "    seen = [prompts, responses, rows]\n"
        "    pathlib.Path(__file__).with_name('seen.json').write_text(json.dumps(seen))\n"
        "    return [float(row['answer'] in response) for response, row in zip(responses, rows)]\n"
    )
    share = alone(RewardSourceConfig(function=f"{tmp_path}/judge.py:score"), folders["policy"])
    assert share.samples.tolist() == [0, 1, 2]
    assert share.values.tolist() == [0.0, 1.0, 0.0] and share.values.dtype == np.float32
    prompts, responses, rows = json.loads((tmp_path / "seen.json").read_text())
    assert prompts == ["\n\nHuman: open?\n\nAssistant:", "where is it?", "and then"]
    assert responses == [" the inn is", " here", ""]
    assert rows == [{"answer": "yes"}, {"answer": "here"}, {"answer": "no"}]


def test_a_function_that_raises_stops_with_the_sample_and_its_row(folders: Any, tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(
        "def score(prompts, responses, rows):\n    return [len(row['x']) for row in rows]\n"
    )
    with pytest.raises(UserError, match=r"failed on sample 0, prompt .*Human: open.*row \{'answer': 'yes'\}"):
        alone(RewardSourceConfig(function=f"{tmp_path}/judge.py:score"), folders["policy"])


def test_a_service_is_sent_the_same_and_may_drop(folders: Any) -> None:
    with serve(lambda number, asked: 503 if "where is it?" in asked["prompts"] else None) as service:
        endpoint = EndpointConfig(url=service.url, batch_size=1, retries=0, on_failure="drop")
        share = alone(RewardSourceConfig(endpoint=endpoint), folders["policy"])
        asked = {tuple(request["prompts"]): request for request in service.asked}
    assert share.values[[0, 2]].tolist() == [11.0, 0.0] and np.isnan(share.values[1])
    assert asked["\n\nHuman: open?\n\nAssistant:",]["responses"] == [" the inn is"]
    assert asked["and then",]["rows"] == [{"answer": "no"}]
