from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModel

from rlhf.models.attention import use_row_attention
from rlhf.models.packed_row import FILL, Form, fill, hidden_states, pack_row
from rlhf.models.sequence_parallel import read
from rlhf.types import Sequences
from tests.rlhf.tiny import ARCHITECTURES, random_sequences, tiny_model, whole


def test_a_row_by_hand() -> None:
    sequences = Sequences.pack([([1, 2, 3], [4, 5]), ([9], [9, 9]), ([6], [7, 8, 9])])
    row = pack_row(sequences, [2, 0], "cpu")
    assert row.tokens.tolist() == [[6, 7, 8, 9, 1, 2, 3, 4, 5]]
    assert row.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4]]
    assert row.predict_at.tolist() == [0, 1, 2, 6, 7]  # the place before each response token
    assert row.targets.tolist() == [7, 8, 9, 4, 5]
    assert row.last.tolist() == [3, 8]


def test_an_empty_row_is_one_token_that_predicts_nothing() -> None:
    row = pack_row(random_sequences((3, 2)), [], "cpu")
    assert row.tokens.shape == row.positions.shape == (1, 1)
    assert row.predict_at.shape == row.targets.shape == row.last.shape == (0,)


def test_a_row_is_filled_by_a_sequence_that_is_never_read() -> None:
    row = pack_row(Sequences.pack([([1, 2, 3], [4, 5]), ([6], [7, 8, 9])]), [0, 1], "cpu")
    full = fill(row)
    assert full.tokens.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, *[0] * 7]]
    assert full.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, *range(7)]]
    assert full.lengths == (5, 4, 7)
    assert full.predict_at is row.predict_at and full.last is row.last
    assert fill(full) is full
    assert fill(row, 3) is row


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_runs_over_filled_rows_and_reads_the_same_states(architecture: str) -> None:
    backbone, sequences = tiny_model(AutoModel, architecture), random_sequences((3, 4), (5, 2))
    use_row_attention(backbone)
    row, seen = pack_row(sequences, [0, 1], "cpu"), list[torch.Size]()
    backbone.register_forward_pre_hook(lambda module, _, given: seen.append(given["input_ids"].shape), with_kwargs=True)
    with torch.no_grad():
        found = read(backbone, row, row.predict_at, None).hidden
        expected = hidden_states(backbone, row)[row.predict_at]
    assert seen == [(1, FILL), (1, 14)]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["packed", "padded"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_sequence_attends_only_to_itself(architecture: str, form: Form) -> None:
    """Against transformers' own attention, one sequence after another."""
    backbone, sequences = tiny_model(AutoModel, architecture), random_sequences((3, 4), (1, 1), (5, 2), (4, 3))
    with torch.no_grad():
        alone = [backbone(whole(sequences, i)).last_hidden_state[0] for i in range(4)]
        assert use_row_attention(backbone)
        found = hidden_states(backbone, pack_row(sequences, [0, 1, 2, 3], "cpu"), form)
    assert found.shape == (23, 64)
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_backbone_that_caches_by_default_is_run_without_its_cache(architecture: str) -> None:
    backbone, outputs = tiny_model(AutoModel, architecture), []
    use_row_attention(backbone)
    backbone.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    row = pack_row(random_sequences((3, 2), (2, 2)), [0, 1], "cpu")
    with torch.no_grad():
        hidden_states(backbone, row)
        backbone(row.tokens)
    assert outputs[0].past_key_values is None
    assert outputs[1].past_key_values is not None  # the default, so that the line above can fail


def test_with_their_lengths_left_out_the_sequences_do_see_each_other() -> None:
    """The converse of the test above: the comparison is sensitive enough to detect a leak."""
    backbone, sequences = tiny_model(AutoModel, "llama"), random_sequences((3, 4), (5, 2))
    use_row_attention(backbone)
    row = pack_row(sequences, [0, 1], "cpu")
    leaking = replace(row, lengths=(14,))
    with torch.no_grad():
        second = hidden_states(backbone, pack_row(sequences, [1], "cpu"))
        assert (hidden_states(backbone, leaking)[7:] - second).abs().max() > 1e-2
