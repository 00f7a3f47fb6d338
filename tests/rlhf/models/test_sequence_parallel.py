"""Rows split over two ranks, against transformers on single sequences in one process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedConfig, PreTrainedModel, Qwen2MoeConfig

from rlhf.errors import UserError
from rlhf.models.packed_row import pack_row
from rlhf.models.policy import PolicyNet
from rlhf.models.sequence_parallel import check_model
from rlhf.placement.parallelism import sequence_parallel_problems
from rlhf.zero.process_group import Rank, join
from tests.rlhf.ranks import Crew
from tests.rlhf.tiny import ARCHITECTURES, VOCABULARY, random_sequences, tiny_model, whole

TEMPERATURE = 0.7
ODD = ((3, 5), (1, 4), (6, 1), (2, 7))
"""29 tokens: 15 on the first rank, 14 and one of padding on the second; the border is inside a response."""
SIZES = {"odd": ODD, "even": (*ODD, (4, 3)), "one sequence": ((2, 8),), "all on one rank": ((12, 2),)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and the way in which it runs."""

    architecture: str = "llama"
    changes: dict[str, Any] = field(default_factory=dict)
    sizes: tuple[tuple[int, int], ...] = ODD
    checkpointing: bool = False


class Mistral:
    """Builds a Mistral of the sizes of the requested Llama."""

    @staticmethod
    def from_config(llama: PreTrainedConfig, attn_implementation: str) -> PreTrainedModel:
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        sizes = {name: getattr(llama, name) for name in (*names, "num_key_value_heads", "sliding_window")}
        config = MistralConfig(vocab_size=VOCABULARY, **sizes)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation)


def model(case: Case) -> PreTrainedModel:
    if case.architecture != "mistral":
        return tiny_model(AutoModelForCausalLM, case.architecture, **case.changes)
    return tiny_model(Mistral, "llama", **case.changes)


def weighted(logprobs: Tensor, entropy: Tensor) -> Tensor:
    """A loss in which every token has its own weight."""
    weights = torch.linspace(-1, 2, len(logprobs))
    return (weights * (logprobs + 0.3 * entropy)).sum()


@dataclass(frozen=True)
class Answer:
    """Log-probabilities, entropies, and the gradient of each parameter."""

    logprobs: np.ndarray
    entropy: np.ndarray
    gradients: dict[str, np.ndarray]


def answer(lm: PreTrainedModel, logprobs: Tensor, entropy: Tensor) -> Answer:
    weighted(logprobs, entropy).backward()
    gradients = {name: p.grad.numpy() for name, p in lm.named_parameters()}
    return Answer(logprobs.detach().numpy(), entropy.detach().numpy(), gradients)


def alone(case: Case) -> Answer:
    """Every sequence separately, by transformers alone."""
    lm, sequences = model(case), random_sequences(*case.sizes)
    rows, entropies = [], []
    for i in range(len(sequences)):
        tokens, begin = whole(sequences, i), int(sequences.prompt_lengths[i])
        every = (lm(tokens).logits[0, begin - 1 : -1] / TEMPERATURE).log_softmax(-1)
        rows.append(every[torch.arange(len(every)), tokens[0, begin:]])
        entropies.append(-(every.exp() * every).sum(-1))
    return answer(lm, torch.cat(rows), torch.cat(entropies))


def shared(rank: Rank, case: Case) -> Answer:
    """One packed row on all ranks together; each rank's own part of the gradient."""
    place = join(rank)
    net, sequences = PolicyNet(model(case)), random_sequences(*case.sizes)
    if case.checkpointing:
        net.lm.gradient_checkpointing_enable({"use_reentrant": False})
        net.train()
    net.enable_sequence_parallelism(rank.rank, rank.world, rank.world, rank.timeout_seconds)
    return answer(net.lm, *net(pack_row(sequences, range(len(sequences)), place), TEMPERATURE, "trained"))


CASES = {
    **{name: Case(architecture=name) for name in ARCHITECTURES},
    **{name: Case(sizes=sizes) for name, sizes in SIZES.items()},
    "as many heads of keys": Case(changes={"num_key_value_heads": 2}),
    "wide heads": Case(changes={"head_dim": 48}),
    "checkpointing": Case(checkpointing=True),
    "sliding window": Case(architecture="mistral", changes={"sliding_window": 4}),
    "window, as many heads": Case(architecture="mistral", changes={"sliding_window": 4, "num_key_value_heads": 2}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_shared_row_has_the_numbers_and_the_gradient_of_each_sequence_alone(name: str, two_ranks: Crew) -> None:
    expected, answers = alone(CASES[name]), two_ranks.run(shared, CASES[name])
    for found in answers:
        np.testing.assert_allclose(found.logprobs, expected.logprobs, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.entropy, expected.entropy, rtol=0, atol=1e-5)
    for name, gradient in expected.gradients.items():
        added, scale = sum(found.gradients[name] for found in answers), np.abs(gradient).max()
        np.testing.assert_allclose(added / scale, gradient / scale, rtol=0, atol=1e-5, err_msg=name)


def test_the_sliding_window_makes_a_difference_that_would_be_seen() -> None:
    narrow = alone(CASES["sliding window"]).logprobs
    wide = alone(Case(architecture="mistral", changes={"sliding_window": None})).logprobs
    assert np.abs(narrow - wide).max() > 1e-3


def empty(rank: Rank) -> tuple[int, float]:
    """A row without samples: the number of its outputs, and the largest gradient."""
    place = join(rank)
    net = PolicyNet(model(Case()))
    net.enable_sequence_parallelism(rank.rank, rank.world, rank.world, rank.timeout_seconds)
    (logprobs,) = net(pack_row(random_sequences((1, 1)), [], place), TEMPERATURE)
    logprobs.sum().backward()
    return len(logprobs), max(float(p.grad.abs().max()) for p in net.lm.model.parameters())


def test_a_row_without_samples_goes_forth_and_back_and_adds_nothing(two_ranks: Crew) -> None:
    assert two_ranks.run(empty) == [(0, 0.0)] * 2


def test_models_in_which_tokens_may_meet_elsewhere_are_refused() -> None:
    class Named:
        config = Qwen2MoeConfig()

    with pytest.raises(UserError, match="a model of type 'qwen2_moe'"):
        check_model(Named(), 2)  # type: ignore[arg-type]


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="sequence_parallel = 3 and its llama model has 2 heads, 1 of keys and values"):
        check_model(model(Case()), 3)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "ranks", "fix"),
    [(32, 8, 8, None), (32, 8, 16, None), (32, 8, 6, "=4; possible are 1, 2, 4, 8, 16, 32"), (6, 4, 3, "=2; possible")],
)
def test_which_heads_divide(heads: int, kv_heads: int, ranks: int, fix: str | None) -> None:
    """32 query heads on 16 ranks are two each, with a copy of one of 8 key heads; 6 on 3 ranks would share 4."""
    found = list(sequence_parallel_problems("policy", "a model", heads, kv_heads, ranks))
    assert [error.fix is not None and fix is not None and fix in error.fix for error in found] == [True] * bool(fix)
