"""The index: passages and their ranking, in memory and as a folder of JSON and NumPy files, without pickle.

A folder is written under another name and renamed, so that it is complete or absent; its manifest lists the digest of
every file, and loading verifies them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from rlhf.config.schema import RetrievalConfig
from rlhf.errors import UserError
from rlhf.retrieval.dense import DenseRanker, PassageEncoder
from rlhf.retrieval.folder import read_folder, written_with_manifest
from rlhf.retrieval.lexical import LexicalRanker
from rlhf.retrieval.passages import Passage, passages_digest
from rlhf.retrieval.template import PromptTemplate, require_template
from rlhf.storage.jsonl import read_lines, to_line
from rlhf.types import Float32

KIND = "index"
PASSAGES = "passages.jsonl"
AGAIN = "run `rlhf retrieval index` again"


class Ranker(Protocol):
    """Scores passages for a question."""

    def scores(self, question: str) -> Float32:
        """(N,) score of every passage; higher is better."""
        ...

    def save(self, folder: Path) -> None:
        """Write the ranker's files into a folder."""
        ...


@dataclass(frozen=True, kw_only=True)
class Index:
    """N passages and what ranks them."""

    passages: tuple[Passage, ...]
    ranker: Ranker

    def search(self, question: str, count: int) -> list[int]:
        """Indices of the ``count`` best passages, or of all if there are fewer, best first."""
        return self.order(question)[:count].tolist()

    def order(self, question: str) -> np.ndarray:
        """(N,) indices of all passages, best first; equal scores in the passages' order."""
        return np.argsort(-self.ranker.scores(question), kind="stable")


def build_index(passages: Sequence[Passage], config: RetrievalConfig) -> Index:
    """Index passages by the recipe's method.

    Raises:
        UserError: the encoder cannot be loaded.
    """
    if config.encoder is None:
        return Index(passages=tuple(passages), ranker=LexicalRanker.build(passages))
    return Index(passages=tuple(passages), ranker=DenseRanker.build(passages, PassageEncoder(config.encoder)))


def save_index(index: Index, config: RetrievalConfig, template: PromptTemplate, folder: Path) -> None:
    """Write an index to a folder, in place of an earlier index.

    Raises:
        UserError: the folder holds something else.
    """
    facts = {
        "template": template.digest,
        "method": config.method,
        "encoder": config.encoder,
        "passages": len(index.passages),
        "passages_digest": passages_digest(index.passages),
    }
    with written_with_manifest(folder, KIND, facts) as place:
        rows = (to_line(asdict(passage)) for passage in index.passages)
        (place / PASSAGES).write_text("".join(rows), encoding="utf-8")
        index.ranker.save(place)


def load_index(config: RetrievalConfig, template: PromptTemplate) -> Index:
    """Read the index of a recipe.

    Raises:
        UserError: there is none, a file is damaged, or it was made with another template, method or encoder.
    """
    folder = Path(config.index).expanduser()
    facts = read_folder(folder, KIND, AGAIN)
    require_template(str(facts.get("template")), template, f"the index {str(folder)!r}")
    if facts.get("method") != config.method:
        raise UserError(
            f"the index {str(folder)!r} was made with the method {facts.get('method')!r}",
            f"retrieval.method is {config.method!r}",
            f"retrieval.method={facts.get('method')}, or {AGAIN}",
        )
    passages = [Passage(**row) for row in read_lines(folder / PASSAGES)]
    return Index(passages=tuple(passages), ranker=_load_ranker(folder, passages, config))


def _load_ranker(folder: Path, passages: Sequence[Passage], config: RetrievalConfig) -> Ranker:
    if config.encoder is None:
        return LexicalRanker.load(folder)
    return DenseRanker.load(folder, passages, PassageEncoder(config.encoder))


def retrieve(index: Index, config: RetrievalConfig, question: str) -> tuple[Passage, ...]:
    """The passages of a prompt that serves a question, best first: as many as in a training prompt."""
    return tuple(index.passages[i] for i in index.search(question, config.distractors + 1))
