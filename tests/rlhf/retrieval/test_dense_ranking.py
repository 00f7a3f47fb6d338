"""Dense ranking by a tiny BERT with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from rlhf.config.schema import RetrievalConfig
from rlhf.errors import UserError
from rlhf.retrieval.dense import PassageEncoder
from rlhf.retrieval.index import build_index, load_index, save_index
from rlhf.retrieval.template import PromptTemplate
from tests.rlhf.retrieval.corpora import texts

WORDS = ("[UNK]", "[PAD]", "red", "blue", "hat", "shoe", "old", "new")
PASSAGES = texts("red hat", "blue hat old", "new shoe", "blue shoe red old new hat")
BUILT_IN = PromptTemplate.of(RetrievalConfig())


def make_encoder(folder: Path, seed: int) -> str:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=8, **shape)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_encoder(tmp_path_factory.mktemp("encoder"), seed=0)


def test_scores_are_cosines_of_mean_hidden_states(encoder: str) -> None:
    index = build_index(PASSAGES, RetrievalConfig(method="dense", encoder=encoder))
    model, tokenizer = AutoModel.from_pretrained(encoder).eval(), AutoTokenizer.from_pretrained(encoder)

    def mean(text: str) -> torch.Tensor:
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(dim=1)[0]

    expected = [torch.cosine_similarity(mean("old hat"), mean(each.text), dim=0).item() for each in PASSAGES]
    np.testing.assert_allclose(index.ranker.scores("old hat"), expected, atol=1e-6)
    assert index.search("old hat", 4) == np.argsort(expected)[::-1].tolist()


def test_an_embedding_does_not_depend_on_other_texts_and_long_texts_are_cut(encoder: str) -> None:
    embedded = PassageEncoder(encoder).embed(["red hat", "old " * 8, "old " * 30])
    np.testing.assert_array_equal(embedded[0], PassageEncoder(encoder).embed(["red hat"])[0])
    np.testing.assert_array_equal(embedded[1], embedded[2])
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1.0, atol=1e-6)


def test_a_saved_index_finds_the_same_and_another_encoder_is_refused(encoder: str, tmp_path: Path) -> None:
    config = RetrievalConfig(method="dense", encoder=encoder, index=str(tmp_path / "index"))
    made = build_index(PASSAGES, config)
    save_index(made, config, BUILT_IN, tmp_path / "index")
    np.testing.assert_array_equal(load_index(config, BUILT_IN).ranker.scores("new hat"), made.ranker.scores("new hat"))
    other = make_encoder(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="another encoder"):
        load_index(RetrievalConfig(method="dense", encoder=other, index=config.index), BUILT_IN)


def test_an_encoder_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"retrieval\.encoder = .* cannot be loaded"):
        build_index(PASSAGES, RetrievalConfig(method="dense", encoder=str(tmp_path / "empty")))
