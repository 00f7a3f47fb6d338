"""Win rate of the model after training against the model before, over paired answers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rlhf.evaluation.intervals import Z95, effective_size


@dataclass(frozen=True, kw_only=True)
class WinRate:
    """Result of a paired comparison: the number of prompts that the later model won, lost and tied."""

    wins: int
    losses: int
    ties: int
    low: float
    """Lower end of the 95% interval of ``rate``."""
    high: float
    """Upper end."""

    @property
    def n(self) -> int:
        """Number of prompts."""
        return self.wins + self.losses + self.ties

    @property
    def rate(self) -> float:
        """Fraction of prompts won; a tie counts one half."""
        return (self.wins + self.ties / 2) / self.n


def compare(before: ArrayLike, after: ArrayLike, prompts: ArrayLike | None = None) -> WinRate:
    """Compare scores of two answers to each prompt; equal scores are a tie.

    Args:
        before, after: (n,) finite scores of the same prompts in the same order, n ≥ 1.
        prompts: (n,) the prompts or their ids, if prompts may be repeated: repeated ones reduce the effective size.

    Raises:
        ValueError: the shapes differ or are empty, or a score is not finite.
    """
    old, new = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if old.shape != new.shape or old.ndim != 1 or not len(old):
        raise ValueError(f"a paired comparison needs two equal, non-empty lists, not {old.shape} and {new.shape}")
    if not (np.isfinite(old).all() and np.isfinite(new).all()):
        raise ValueError("a paired comparison needs finite scores")
    wins, losses = int((new > old).sum()), int((new < old).sum())
    n = len(old)
    scale = 1.0 if prompts is None else effective_size(np.sign(new - old), prompts) / n
    low, high = win_rate_interval(wins * scale, losses * scale, n * scale)
    return WinRate(wins=wins, losses=losses, ties=n - wins - losses, low=low, high=high)


def win_rate_interval(wins: float, losses: float, n: float) -> tuple[float, float]:
    """95% interval of the win rate of ``n`` prompts, a tie counting one half; counts may be effective ones.

    The win rate is ½ + ½ · (fraction won − fraction lost), a difference of two paired proportions. Its interval is by
    Bonett and Price (2012, J. Educ. Behav. Stat. 37, 479-488), a Wald interval with one added win and one added loss.
    It keeps its coverage in small samples (Fagerland, Lydersen and Laake 2014, Stat. Med. 33, 2850-2875) and has a
    positive width when every prompt is won or tied. Ties narrow it.
    """
    won, lost = (wins + 1) / (n + 2), (losses + 1) / (n + 2)
    half_width = Z95 * math.sqrt((won + lost - (won - lost) ** 2) / (n + 2))
    low, high = won - lost - half_width, won - lost + half_width
    return max(0.0, (1 + low) / 2), min(1.0, (1 + high) / 2)
