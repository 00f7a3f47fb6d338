"""Blind comparison of the models before and after training on the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf.evaluation.blind import blind
from rlhf.evaluation.intervals import mean_interval
from rlhf.evaluation.scorers import Scorer
from rlhf.evaluation.win_rate import WinRate, compare
from rlhf.storage.durable import write_atomically
from rlhf.storage.jsonl import read_lines, to_line

ANSWERS = "answers.jsonl"


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
    rows = [{"prompt": p, "before": old, "after": new} for p, old, new in zip(prompts, before, after, strict=True)]
    write_atomically(folder / ANSWERS, "".join(map(to_line, rows)))


def compare_answers(folder: Path, scorer: Scorer, out: Path, seed: int) -> Comparison:
    """Score both models' answers blind; writes the comparison sheet and its key to ``out``.

    Args:
        folder: the folder that ``write_answers`` wrote to.
    """
    rows = read_lines(folder / ANSWERS)
    prompts, before, after = (tuple(row[key] for row in rows) for key in ("prompt", "before", "after"))
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
