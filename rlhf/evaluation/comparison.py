"""Blind comparison of the models before and after training on the same prompts.

Sheets hide the model behind each answer; a separate key file reveals it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from rlhf.evaluation.intervals import mean_interval
from rlhf.evaluation.scorers import Scorer
from rlhf.evaluation.win_rate import WinRate, compare
from rlhf.storage.durable import write_atomically
from rlhf.storage.jsonl import read_lines, to_line
from rlhf.storage.reading import damaged, read_json

ANSWERS = "answers.jsonl"
COLUMNS = ("prompt", "before", "after")
"""Keys of its rows."""


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
        key = [{"id": pair.id, "after": "a" if is_a else "b"} for pair, is_a in zip(self.pairs, self.after_is_a)]
        write_atomically(folder / "comparisons.jsonl", "".join(to_line(asdict(pair)) for pair in self.pairs))
        write_atomically(folder / "comparisons.key.jsonl", "".join(map(to_line, key)))


def blind(prompts: Sequence[str], before: Sequence[str], after: Sequence[str], seed: int) -> BlindSheet:
    """Make a sheet in which ``seed`` decides which of a prompt's two answers is A; the three lists are parallel."""
    after_is_a = tuple(bool(side) for side in np.random.default_rng(seed).integers(2, size=len(prompts)))
    rows = zip(prompts, before, after, after_is_a, strict=True)
    pairs = tuple(
        BlindPair(id=i, prompt=prompt, a=new if is_a else old, b=old if is_a else new)
        for i, (prompt, old, new, is_a) in enumerate(rows)
    )
    return BlindSheet(pairs=pairs, after_is_a=after_is_a)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Result of a comparison: parallel lists of texts and scores, one entry per prompt, and the win rate."""

    prompts: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    before_scores: np.ndarray
    after_scores: np.ndarray
    win_rate: WinRate

    def summary(self) -> dict[str, float | str]:
        """Entries of the run's summary table."""
        low, high = mean_interval(self.after_scores - self.before_scores, self.prompts)
        return {
            "prompts": float(len(self.prompts)),
            "quality before": float(self.before_scores.mean()),
            "quality after": float(self.after_scores.mean()),
            "difference, 95% interval": f"{low:+.3f} to {high:+.3f}",
            "win rate": self.win_rate.rate,
            "win rate, 95% interval": f"{self.win_rate.low:.3f} to {self.win_rate.high:.3f}",
        }


def write_answers(folder: Path, prompts: Sequence[str], before: Sequence[str], after: Sequence[str]) -> None:
    """Write the answers of both models to ``answers.jsonl``, one line per prompt; replaces an existing file."""
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in zip(prompts, before, after, strict=True)]
    write_atomically(folder / ANSWERS, "".join(map(to_line, rows)))


def read_answers(path: Path, fix: str) -> list[str]:
    """Answers in a JSON file that a run wrote.

    Raises:
        UserError: it is damaged.
    """
    answers: list[str] = read_json(path, list, fix)
    if not all(isinstance(answer, str) for answer in answers):
        raise damaged(path, "holds something else than texts", fix)
    return answers


def read_compared(folder: Path) -> tuple[tuple[str, ...], ...]:
    """Prompts, answers before, and answers after, that ``write_answers`` wrote to a folder.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / ANSWERS
    rows = read_lines(path)
    for number, row in enumerate(rows, start=1):
        if not all(isinstance(row.get(column), str) for column in COLUMNS):
            raise damaged(path, f"lacks a text in line {number}", f"delete {folder} to train the stage again")
    return tuple(tuple(row[column] for row in rows) for column in COLUMNS)


def compare_answers(folder: Path, scorer: Scorer, out: Path, seed: int) -> Comparison:
    """Score both models' answers blind; writes the comparison sheet and its key to ``out``.

    Args:
        folder: the folder that ``write_answers`` wrote to.
    """
    prompts, before, after = read_compared(folder)
    sheet = blind(prompts, before, after, seed)
    out.mkdir(parents=True, exist_ok=True)
    sheet.write(out)
    sides = (scorer(prompts, [pair.a for pair in sheet.pairs]), scorer(prompts, [pair.b for pair in sheet.pairs]))
    scores = sheet.unblind(*sides)
    return Comparison(
        prompts=prompts,
        before=before,
        after=after,
        before_scores=scores[0],
        after_scores=scores[1],
        win_rate=compare(*scores, prompts),
    )
