"""Blind comparison sheets, which hide the model behind each answer; a separate key file reveals it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, kw_only=True)
class BlindPair:
    """A prompt and its two answers in random order."""

    id: int
    prompt: str
    a: str
    b: str


@dataclass(frozen=True, kw_only=True)
class BlindSheet:
    """The pairs of a blind comparison and their key."""

    pairs: tuple[BlindPair, ...]
    """Shown to the scorer."""
    after_is_a: tuple[bool, ...]
    """The key, hidden from the scorer: whether answer A of each pair is by the model after training."""

    def unblind(self, scores_a: ArrayLike, scores_b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Convert scores of the sides A and B, (n,) each, to scores of the models before and after training."""
        after = np.where(self.after_is_a, scores_a, scores_b)
        before = np.where(self.after_is_a, scores_b, scores_a)
        return before, after

    def write(self, folder: Path) -> None:
        """Write ``comparisons.jsonl`` (id, prompt, a, b) and the key ``comparisons.key.jsonl`` (id, after)."""
        key = zip(self.pairs, self.after_is_a, strict=True)
        _write_jsonl(folder / "comparisons.jsonl", [asdict(pair) for pair in self.pairs])
        _write_jsonl(
            folder / "comparisons.key.jsonl", [{"id": pair.id, "after": "a" if is_a else "b"} for pair, is_a in key]
        )


def blind(prompts: Sequence[str], before: Sequence[str], after: Sequence[str], seed: int) -> BlindSheet:
    """Make a sheet in which ``seed`` decides which of a prompt's two answers is A; the three lists are parallel."""
    after_is_a = tuple(bool(side) for side in np.random.default_rng(seed).integers(2, size=len(prompts)))
    rows = zip(prompts, before, after, after_is_a, strict=True)
    pairs = tuple(
        BlindPair(id=i, prompt=prompt, a=new if is_a else old, b=old if is_a else new)
        for i, (prompt, old, new, is_a) in enumerate(rows)
    )
    return BlindSheet(pairs=pairs, after_is_a=after_is_a)


def _write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
