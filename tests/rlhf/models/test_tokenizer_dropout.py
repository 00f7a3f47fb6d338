"""A tokenizer that samples among segmentations is made deterministic, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from rlhf.config.schema import ModelConfig
from rlhf.errors import UserError
from rlhf.models.folder import load_tokenizer
from rlhf.models.scratch import train_tokenizer
from rlhf.models.tokenizer_dropout import switch_dropout_off

TEXT = "What does a night at the Amber Inn cost? It costs sixty-five crowns. " * 20


def saved(folder: Path, dropout: float | None) -> Path:
    made = train_tokenizer([TEXT], 400)
    made.save_pretrained(folder)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.model.dropout = dropout
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("dropout", [0.5, 1.0])
def test_bpe_dropout_is_switched_off_with_a_remark(
    tmp_path: Path, dropout: float, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(saved(tmp_path, dropout), ModelConfig())
    assert f"BPE dropout of {dropout:g} in tokenizer.json is switched off" in capsys.readouterr().out
    assert len({tuple(tokenizer(TEXT)["input_ids"]) for _ in range(5)}) == 1
    assert len(tokenizer(TEXT)["input_ids"]) < len(TEXT) / 2
    tokenizer.save_pretrained(tmp_path)
    load_tokenizer(tmp_path, ModelConfig())
    assert capsys.readouterr().out == "", "a saved tokenizer has none"


def test_without_dropout_nothing_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_tokenizer(saved(tmp_path, None), ModelConfig())
    assert capsys.readouterr().out == ""


class Sampling:
    """A tokenizer without a model of ``tokenizers`` that encodes a text in another way each time."""

    calls = 0

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        self.calls += 1
        return {"input_ids": [self.calls]}


def test_a_tokenizer_that_samples_otherwise_is_refused() -> None:
    with pytest.raises(UserError, match="gives the same text other tokens each time") as caught:
        switch_dropout_off(Sampling(), "folder")  # type: ignore[arg-type]
    assert "enable_sampling" in caught.value.fix
