"""BERTScore by a random encoder, against the definition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from rlhf.errors import UserError
from rlhf.evaluation.bertscore import bert_score


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(words), **shape)).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def states(folder: Path, text: str) -> torch.Tensor:
    """Normalised states of a text's tokens at layer 1, without the marks at both ends."""
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        found = AutoModel.from_pretrained(folder).eval()(**tokens, output_hidden_states=True).hidden_states[1][0]
    return torch.nn.functional.normalize(found, dim=-1)


def test_bert_score_is_greedy_matching_of_one_layers_states(encoder: Path) -> None:
    similar = states(encoder, "a cat sat") @ states(encoder, "the cat").T
    # The library matches all tokens, marks included, and weighs those marks with 0: without idf they have weight 1.
    precision, recall = similar.max(1).values[1:-1].mean(), similar.max(0).values[1:-1].mean()
    expected = float(2 * precision * recall / (precision + recall))
    found = bert_score(["a cat sat", "dog"], [["the cat"], ["bird", "dog"]], model=str(encoder), layers=1)
    assert found[0] == pytest.approx(expected, abs=1e-5)
    assert found[1] == pytest.approx(1.0, abs=1e-5)  # the best reference


@pytest.mark.parametrize(("model", "layers", "device"), [("/none", 1, "cpu"), ("", 99, "cpu"), ("", 1, "gpu9")])
def test_an_encoder_layer_or_device_that_does_not_exist_is_refused(
    encoder: Path, model: str, layers: int, device: str
) -> None:
    with pytest.raises(UserError, match=f"cannot be loaded with layer {layers} on '{device}'"):
        bert_score(["a"], [["a"]], model=model or str(encoder), layers=layers, device=device)
