"""The end of a pipeline: the same held-out prompts answered before and after, judged blind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.answering import answer
from actors.session import Session
from rlhf.data import stages
from rlhf.errors import UserError
from rlhf.evaluation.blind import blind
from rlhf.evaluation.intervals import mean_interval
from rlhf.evaluation.scorers import load_scorer
from rlhf.evaluation.win_rate import WinRate, compare


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came out. ``before`` and ``after`` are texts; scores are the judge's, one a prompt."""

    prompts: list[str]
    before: list[str]
    after: list[str]
    before_scores: np.ndarray
    after_scores: np.ndarray
    win_rate: WinRate

    def summary(self, judge: str) -> dict[str, float | str]:
        """For the table at the end."""
        low, high = mean_interval(self.after_scores - self.before_scores)
        return {
            "judge": judge,
            "prompts": float(len(self.prompts)),
            "quality before": float(self.before_scores.mean()),
            "quality after": float(self.after_scores.mean()),
            "difference, 95% interval": f"{low:+.3f} to {high:+.3f}",
            "win rate": self.win_rate.rate,
            "win rate, 95% interval": f"{self.win_rate.low:.3f} to {self.win_rate.high:.3f}",
        }


def compare_models(session: Session, before: Path, after: Path, folder: Path) -> Comparison:
    """Answer held-out prompts with both models, and have the recipe's scorer judge sheets on which no side is named.

    Args:
        folder: where the sheets (``comparisons.jsonl`` and its key) and the engines' logs go.
    """
    config = session.recipe.evaluation
    assert config.scorer is not None
    judge = load_scorer(config.scorer)
    held_out = stages.prompts(session.recipe, session.tokenizer, session.context).held_out[: config.prompts]
    if not held_out:
        raise UserError("no prompt is held out, so nothing can be compared", fix="raise data.held_out_fraction")
    texts = session.tokenizer.batch_decode([prompt.tokens for prompt in held_out], skip_special_tokens=True)
    answers = [answer(session, model, held_out, folder / "logs") for model in (before, after)]
    sheet = blind(texts, *answers, session.recipe.seed)
    sheet.write(folder)
    scores = sheet.unblind(judge(texts, [pair.a for pair in sheet.pairs]), judge(texts, [pair.b for pair in sheet.pairs]))
    return Comparison(
        prompts=texts,
        before=answers[0],
        after=answers[1],
        before_scores=scores[0],
        after_scores=scores[1],
        win_rate=compare(*scores),
    )
