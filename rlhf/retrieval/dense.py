"""Ranks passages by the cosine of embeddings: means of an encoder's last hidden states (Reimers and Gurevych 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf.errors import UserError, first_line
from rlhf.retrieval.passages import Passage
from rlhf.types import Float32

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDINGS = "embeddings.npy"
LONGEST = 512
"""Longest text in tokens, if the encoder allows as many; the rest of a longer one is not embedded."""
SAME_COSINE = 0.999
"""Least cosine between two embeddings of one text by one encoder: kernels of other devices differ in the last bits."""


class PassageEncoder:
    """A transformers encoder on this process's CPU or GPU."""

    def __init__(self, folder: str) -> None:
        """Load model and tokenizer.

        Raises:
            UserError: they cannot be loaded.
        """
        from transformers import AutoModel, AutoTokenizer

        from rlhf.device import local_device

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.model: Any = AutoModel.from_pretrained(folder, use_safetensors=True).eval().to(local_device())
        except (OSError, ValueError, KeyError) as error:
            fix = "name a folder or hub name of a transformers encoder with its tokenizer, in safetensors"
            raise UserError(f"retrieval.encoder = {folder!r} cannot be loaded", first_line(error), fix) from error
        self.longest = min(LONGEST, getattr(self.model.config, "max_position_embeddings", LONGEST))

    def embed(self, texts: Iterable[str]) -> Float32:
        """(N, H) unit vectors, in the texts' order.

        Each text is a batch of its own, so that its embedding does not depend on other texts.
        """
        import torch

        with torch.inference_mode():
            return np.stack([self._embed(text).float().cpu().numpy() for text in texts])

    def _embed(self, text: str) -> Tensor:
        """(H,) unit vector."""
        import torch

        tokens = self.tokenizer(text or " ", truncation=True, max_length=self.longest, return_tensors="pt")
        ids = tokens["input_ids"].to(self.model.device)
        mean = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0].mean(dim=0)
        return mean / mean.norm().clamp_min(1e-12)


class DenseRanker:
    """Cosines of all passages for a question."""

    def __init__(self, encoder: PassageEncoder, embeddings: Float32) -> None:
        self._encoder, self._embeddings = encoder, embeddings

    @classmethod
    def build(cls, passages: Sequence[Passage], encoder: PassageEncoder) -> DenseRanker:
        """Embed passages, title and text."""
        return cls(encoder, encoder.embed(map(_text_of, passages)))

    @classmethod
    def load(cls, folder: Path, passages: Sequence[Passage], encoder: PassageEncoder) -> DenseRanker:
        """Read embeddings, without pickle, and embed the first passage again.

        Raises:
            UserError: the embeddings are another encoder's.
        """
        embeddings = np.load(folder / EMBEDDINGS, allow_pickle=False)
        again = encoder.embed([_text_of(passages[0])])[0]
        if again.shape != embeddings[0].shape or float(again @ embeddings[0]) < SAME_COSINE:
            raise UserError(
                f"{folder} was made with another encoder",
                "its embedding of the first passage differs from the one that retrieval.encoder computes",
                "set retrieval.encoder to that encoder, or run `rlhf retrieval index` again",
            )
        return cls(encoder, embeddings)

    def save(self, folder: Path) -> None:
        """Write the embeddings into a folder."""
        np.save(folder / EMBEDDINGS, self._embeddings, allow_pickle=False)

    def scores(self, question: str) -> Float32:
        """(N,) cosine of every passage."""
        return np.asarray(self._embeddings @ self._encoder.embed([question])[0], dtype=np.float32)


def _text_of(passage: Passage) -> str:
    return f"{passage.title}: {passage.text}" if passage.title else passage.text
