"""The examination, on models with known faults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, PreTrainedModel

from rlhf.errors import UserError
from rlhf.models import packed_row
from rlhf.models.examine import FEWEST, TOKENS, distances, random_sequences
from rlhf.models.packed_row import PackedRow
from rlhf.models.policy import PolicyNet
from rlhf.models.scalar import ScalarNet
from tests.architectures import examined, small_config, small_model
from tests.rlhf.tiny import VOCABULARY, tiny_config, tiny_model


def as_made(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """A model with the small initial weights of an architecture, in which little leaks."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(small_config(name)).eval().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["LFM2", "Falcon H1"])
def test_a_leak_is_seen_however_small_the_weights_are(name: str, dtype: torch.dtype) -> None:
    found = examined(PolicyNet(as_made(name, dtype)))
    assert (
        found.form == "padded" and found.neighbours is not None and found.neighbours > 3e-3 * (dtype != torch.float32)
    )
    assert "change each other" in found.notes[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_sees_later_tokens_is_refused(dtype: torch.dtype) -> None:
    """An encoder, which transformers loads as a causal language model without a word."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    bert = AutoModelForCausalLM.from_config(BertConfig(vocab_size=VOCABULARY, **sizes)).eval().to(dtype)
    with pytest.raises(UserError, match="'bert' is not causal"):
        examined(PolicyNet(bert))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_leak(dtype: torch.dtype) -> None:
    found = examined(PolicyNet(as_made("Llama", dtype)))
    assert (found.form, found.neighbours, found.notes) == ("packed", 0.0, ())
    assert found.joined > 10 * found.padded, "what a leak would have changed"


def test_a_leak_is_seen_through_a_head_of_zeros() -> None:
    lm = small_model("LFM2", tie_word_embeddings=False)
    torch.nn.init.zeros_(lm.lm_head.weight)
    found = examined(PolicyNet(lm))
    assert (found.form, found.logprob_gap) == ("padded", 0.0)


def test_a_model_that_rejects_packed_rows_gets_one_row_per_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(row: PackedRow) -> dict[str, Tensor]:
        raise AssertionError("batch size must be that of the cache\nand more")

    monkeypatch.setattr(packed_row, "_packed_inputs", fails)
    found = examined(PolicyNet(small_model("Llama")))
    assert (found.form, found.packed) == ("padded", None)
    assert "cannot compute a packed row (batch size must be that of the cache)" in found.notes[0]


def test_memory_that_runs_out_is_not_taken_for_a_model_that_cannot_be_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(row: PackedRow) -> dict[str, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(packed_row, "_packed_inputs", fails)
    with pytest.raises(torch.OutOfMemoryError):
        examined(PolicyNet(small_model("Llama")))


def test_positions_that_go_on_from_sequence_to_sequence_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are independent of the neighbours: only the comparison with the sequence alone reveals them."""

    def going_on(row: PackedRow) -> dict[str, Tensor]:
        return inputs(replace(row, positions=torch.arange(row.tokens.shape[1])[None]))

    inputs = packed_row._packed_inputs
    monkeypatch.setattr(packed_row, "_packed_inputs", going_on)
    found = examined(PolicyNet(small_model("GPT-2")))
    assert (found.form, found.neighbours) == ("padded", 0.0)
    assert found.packed is not None and found.packed > 0.1


def test_in_bfloat16_a_packed_row_may_differ_by_rounding_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded rows differ by a few thousandths there; a packed one that is off by a fifth is wrong."""
    net = PolicyNet(as_made("Llama", torch.bfloat16))
    right = net.states
    monkeypatch.setattr(net, "states", lambda row, form: right(row, form) * (1.2 if form == "packed" else 1.0))
    found = examined(net)
    assert (found.form, found.neighbours) == ("padded", 0.0)
    assert found.padded < 0.05 < 0.15 < (found.packed or 0.0) < 0.25


def test_logprobs_that_are_not_the_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net = PolicyNet(small_model("Llama"))
    monkeypatch.setattr(net.head, "logits", lambda hidden: 0.5 * net.lm.lm_head(hidden))
    with pytest.raises(UserError, match="'llama' does not compute here what transformers does") as caught:
        examined(net)
    assert "log-probabilities" in caught.value.why and "docs/models.md" in caught.value.fix


def test_weights_that_are_not_finite_are_named() -> None:
    net = PolicyNet(small_model("Llama"))
    with torch.no_grad():
        net.lm.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"numbers in .*layers\.0\.mlp\.up_proj\.weight that are not finite"):
        examined(net)


def test_a_model_that_is_wrong_in_rows_of_its_own_too_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net = PolicyNet(small_model("Llama"))
    right = net.states
    monkeypatch.setattr(net, "states", lambda *arguments: 1.01 * right(*arguments))
    with pytest.raises(UserError, match="does not compute here") as caught:
        examined(net)
    assert "hidden states" in caught.value.why


def test_ranks_cannot_share_rows_of_a_model_that_leaks() -> None:
    net = PolicyNet(small_model("LFM2"))
    net.sequence_group = object()  # type: ignore[assignment]  # it is not asked anything: the model is refused before
    with pytest.raises(UserError, match="sequence_parallel and a model of type 'lfm2'") as caught:
        examined(net)
    assert "change each other" in caught.value.why


def test_a_network_of_scalars_is_examined_by_its_hidden_states() -> None:
    for name, form in (("llama", "packed"), ("gpt2", "packed")):
        net = ScalarNet(tiny_model(AutoModelForSequenceClassification, name, num_labels=1))
        found = examined(net)
        assert (found.form, found.logprob_gap) == (form, None)


def test_afterwards_the_model_attends_as_before() -> None:
    net = PolicyNet(small_model("Llama"))
    before = net.lm.config._attn_implementation
    examined(net)
    assert net.lm.config._attn_implementation == before
    assert "forward" not in vars(net)


def test_the_row_fits_the_models_context_and_the_device() -> None:
    assert examined(PolicyNet(tiny_model(AutoModelForCausalLM, "gpt2"))).tokens == 60  # of its n_positions
    assert examined(PolicyNet(small_model("Llama"))).tokens == TOKENS
    assert examined(PolicyNet(small_model("Llama")), parameters=10**9).tokens == FEWEST


def test_tokens_with_a_meaning_are_not_among_the_random_ones() -> None:
    config: Any = tiny_config("llama", eos_token_id=[1, 2], pad_token_id=60, bos_token_id=0)
    drawn = {int(token) for each in random_sequences(config, (4000, 4000), 0) for token in each}
    assert drawn == set(range(VOCABULARY)) - {0, 1, 2, 60}


def test_the_distance_is_relative_and_by_token() -> None:
    """3-4-5: (3, 4) has distance √2 from (2, 3), over its own norm 5; two zero states have distance 0."""
    found = distances(torch.tensor([[2.0, 3.0], [0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert found.tolist() == pytest.approx([2**0.5 / 5, 0.0])
