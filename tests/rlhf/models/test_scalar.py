from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rlhf.models.packed_row import PackedRow, hidden_states, pack_row
from rlhf.models.scalar import ScalarNet, init_reward_head, init_value_head
from tests.rlhf.tiny import ARCHITECTURES, VOCABULARY, random_sequences, tiny_model

SEQUENCES = random_sequences((3, 5), (1, 4), (6, 1))
EVERY = [0, 1, 2]


def tiny_classifier(architecture: str = "llama") -> PreTrainedModel:
    return tiny_model(AutoModelForSequenceClassification, architecture, num_labels=1)


def with_other_token(row: PackedRow, place: int) -> PackedRow:
    tokens = row.tokens.clone()
    tokens[0, place] = (tokens[0, place] + 1) % VOCABULARY
    return replace(row, tokens=tokens)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rewards_are_those_of_transformers_own_classifier_on_each_sequence_alone(architecture: str) -> None:
    classifier = tiny_classifier(architecture)
    row = pack_row(SEQUENCES, EVERY, "cpu")
    with torch.no_grad():
        rewards = ScalarNet(classifier)(row, row.last)
        alone = [classifier(pack_row(SEQUENCES, [i], "cpu").tokens).logits[0, 0] for i in EVERY]
    assert rewards.shape == (3,)
    torch.testing.assert_close(rewards, torch.stack(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_reward_is_read_at_the_last_token_of_the_response(architecture: str) -> None:
    net, row = ScalarNet(tiny_classifier(architecture)), pack_row(SEQUENCES, EVERY, "cpu")
    with torch.no_grad():
        rewards = net(row, row.last)
        after = net(with_other_token(row, int(row.last[0]) + 1), row.last)
        itself = net(with_other_token(row, int(row.last[0])), row.last)
    torch.testing.assert_close(after[0], rewards[0], rtol=0, atol=1e-6)
    assert (after[1] - rewards[1]).abs() > 1e-3  # the token after it begins the next sequence
    assert (itself[0] - rewards[0]).abs() > 1e-3
    torch.testing.assert_close(itself[1:], rewards[1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_value_is_of_the_state_before_its_token(architecture: str) -> None:
    """V(s_t) may not see a_t: a change of response token t changes the values after t and no other."""
    net, row = ScalarNet(tiny_classifier(architecture)), pack_row(SEQUENCES, EVERY, "cpu")
    with torch.no_grad():
        values = net(row, row.predict_at)
        for t in range(4):
            place = int(row.predict_at[t]) + 1
            assert row.tokens[0, place] == row.targets[t]
            moved = (net(with_other_token(row, place), row.predict_at) - values).abs()
            assert moved[t + 1 : 5].min() > 1e-4
            assert torch.cat([moved[: t + 1], moved[5:]]).max() < 1e-6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_empty_row_touches_every_parameter_and_contributes_zero(architecture: str) -> None:
    classifier = tiny_classifier(architecture)
    row = pack_row(SEQUENCES, [], "cpu")
    rewards = ScalarNet(classifier)(row, row.last)
    assert rewards.shape == (0,)
    rewards.sum().backward()
    assert not any(parameter.grad.any() for parameter in classifier.parameters())


def test_rewards_of_a_bfloat16_model_stay_apart_where_bfloat16_would_join_them() -> None:
    classifier = tiny_classifier().to(torch.bfloat16)
    sequences = random_sequences(*[(2, 3)] * 60)
    row = pack_row(sequences, range(60), "cpu")
    with torch.no_grad():
        rewards = ScalarNet(classifier)(row, row.last)
        hidden = hidden_states(classifier.base_model, row)[row.last]
    expected = (hidden.double() * classifier.score.weight.double()).sum(dim=1)
    torch.testing.assert_close(rewards, expected.float(), rtol=1e-5, atol=1e-5)
    assert len(rewards.unique()) == 60 > len(rewards.to(torch.bfloat16).unique())


def drawn(classifier: PreTrainedModel, seed: int) -> Tensor:
    init_reward_head(classifier, seed)
    return classifier.score.weight.detach().clone()


def test_the_reward_head_is_drawn_with_deviation_one_over_root_of_width_plus_one() -> None:
    classifier = tiny_classifier()
    draws = torch.cat([drawn(classifier, seed) for seed in range(2000)])
    assert draws.std().item() == pytest.approx(1 / math.sqrt(65), rel=0.005)  # 128,000 draws: 0.2% is one deviation
    assert abs(draws.mean().item()) < 0.005
    assert torch.equal(drawn(classifier, 3), draws[3:4])


def test_a_new_critic_values_everything_at_zero() -> None:
    classifier = tiny_classifier()
    init_value_head(classifier)
    row = pack_row(SEQUENCES, EVERY, "cpu")
    assert not ScalarNet(classifier)(row, row.predict_at).any()
