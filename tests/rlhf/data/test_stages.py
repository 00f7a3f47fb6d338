from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rlhf.config.schema import (
    DataConfig,
    EarlyStopConfig,
    EndpointConfig,
    ModelConfig,
    Recipe,
    RewardSourceConfig,
    RolloutConfig,
)
from rlhf.data import stages
from rlhf.data.chat import ChatFormat
from rlhf.data.split import split_by_prompt
from rlhf.records import Loaded, Preference, RowLocation
from rlhf.types import ModelFacts, Pair

FACTS = ModelFacts(context=100, embedding_rows=1000, end_tokens=(0,))


@pytest.fixture
def recipe(write_jsonl) -> Recipe:
    """Forty prompts, some too long, with another column."""
    rows = [{"prompt": "x" * 90 if i % 5 == 0 else f"number {i}", "answer": i} for i in range(40)]
    data = DataConfig(path=write_jsonl(*rows), held_out_fraction=0.3, max_prompt_length=20)
    return Recipe(
        name="a",
        data=data,
        rollout=RolloutConfig(max_response_length=10),
        rewards={"correct": RewardSourceConfig(function="m:f")},
    )


def test_a_prompts_id_is_its_row_number_despite_quarantined_rows(recipe, tokenizer) -> None:
    data = stages.prompts(recipe, ChatFormat(tokenizer), FACTS)
    everyone = [*data.train, *data.held_out]
    assert len(everyone) == 32 and len(data.train) > 10 and len(data.held_out) > 3
    assert [prompt.id for prompt in everyone] == list(range(32))
    assert all(prompt.text == f"number {prompt.row['answer']}" for prompt in everyone)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"rewards": {"model": RewardSourceConfig(model="trained")}}, False),
        ({"rewards": {"service": RewardSourceConfig(endpoint=EndpointConfig(url="http://h"))}}, True),
        (
            {
                "rewards": {"model": RewardSourceConfig(model="trained")},
                "early_stop": EarlyStopConfig(scorer=RewardSourceConfig(function="m:f")),
            },
            True,
        ),
    ],
)
def test_rows_are_kept_where_somebody_reads_them(recipe, tokenizer, changes, kept) -> None:
    data = stages.prompts(replace(recipe, **changes), ChatFormat(tokenizer), FACTS)
    assert all(bool(prompt.row) is kept for prompt in (*data.train, *data.held_out))


def test_comparisons_of_a_prompt_are_in_one_update() -> None:
    """Prompts 7, 3, 9 and 4 with 2, 1, 3 and 1 comparisons, two prompts per update, two epochs."""
    token = np.zeros(1, dtype=np.int32)
    ids = [7, 3, 9, 7, 9, 4, 9]
    pairs = [Pair(prompt=token, chosen=token, rejected=token, margin=0.0, prompt_id=i) for i in ids]
    batches = stages.comparison_batches(pairs, prompts=2, epochs=2, seed=0)
    assert len(batches) == 4
    for batch in batches:
        assert len({ids[i] for i in batch}) == 2
        assert all(ids.count(ids[i]) == [ids[j] for j in batch].count(ids[i]) for i in batch)
    assert sorted(batches[0] + batches[1]) == sorted(batches[2] + batches[3]) == list(range(7))


def test_held_out_prompts_are_those_of_the_split_and_no_others(recipe, tokenizer) -> None:
    data = stages.prompts(recipe, ChatFormat(tokenizer), FACTS)
    texts = ["x" * 90 if i % 5 == 0 else f"number {i}" for i in range(40)]
    train, held_out = split_by_prompt(texts, 0.3, recipe.seed)
    assert [prompt.text for prompt in data.held_out] == [texts[i] for i in held_out if i % 5]
    assert [prompt.text for prompt in data.train] == [texts[i] for i in train if i % 5]


def test_a_tie_in_both_orders_is_trained_on_and_never_held_out(recipe, tokenizer) -> None:
    def pair(prompt: str, chosen: str, is_tie: bool) -> Preference:
        other = {"yes": "no", "no": "yes"}[chosen]
        return Preference(prompt, chosen, other, 0.0, RowLocation("votes.db", 1), is_tie=is_tie)

    asked = [f"number {i}" for i in range(40)]
    rows = [pair(prompt, chosen, True) for prompt in asked for chosen in ("yes", "no")]
    rows += [pair(prompt, "yes", False) for prompt in asked]
    data = stages.preferences(recipe, ChatFormat(tokenizer), FACTS, lambda _: Loaded(tuple(rows), ()))
    held_out = len(data.held_out)
    assert 3 < held_out < 30
    assert len(data.train) == 3 * (40 - held_out)
    assert {tokenizer.decode(pair.chosen) for pair in data.held_out} == {"yes<end>"}


def test_unpaired_labels_are_read_and_split_by_prompt(recipe, tokenizer, write_jsonl) -> None:
    rows = [
        {"prompt": f"number {i}", "completion": f" {answer}", "label": answer == "yes"}
        for i in range(20)
        for answer in ("yes", "no")
    ]
    rows += [
        {"prompt": "number 0", "completion": "x" * 300, "label": True},
        {"prompt": "p", "completion": "q", "label": 1},
    ]
    data = stages.labelled(
        replace(recipe, data=replace(recipe.data, path=write_jsonl(*rows))), ChatFormat(tokenizer), FACTS
    )
    everyone = [*data.train, *data.held_out]
    assert len(everyone) == 40 and data.held_out
    assert {tokenizer.decode(each.response): each.is_good for each in everyone} == {
        " yes<end>": True,
        " no<end>": False,
    }
    for side in (data.train, data.held_out):
        assert all(2 * sum(each.prompt_id == other.prompt_id for other in side) == 4 for each in side)
    assert [(bad.source.line, bad.category) for bad in data.bad] == [(42, "not a label")]
    assert "1 × response longer" in data.report


def test_messages_without_a_chat_template_are_said_to_be_a_transcript(recipe, tokenizer, write_jsonl) -> None:
    """Of a pretrained model: one that is made here learns the transcript from the beginning."""
    rows = [{"prompt": [{"role": "user", "content": f"number {i}"}]} for i in range(8)]
    recipe = replace(recipe, data=DataConfig(path=write_jsonl(*rows)))
    pretrained = replace(recipe, model=ModelConfig(path="any"))
    data = stages.prompts(pretrained, ChatFormat(tokenizer), FACTS)
    assert data.conversations == 8 and "8 × messages written as a transcript" in data.report
    assert "model.chat_template" in data.report
    assert "transcript" not in stages.prompts(recipe, ChatFormat(tokenizer), FACTS).report
