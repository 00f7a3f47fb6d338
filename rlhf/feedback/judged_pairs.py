"""Pairs of answers with the judgements on them, to evaluate a reward model: from a project, or from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlhf.config.schema import DataConfig
from rlhf.data import formats
from rlhf.data.split import canonical_prompt
from rlhf.data.turns import read_variables
from rlhf.errors import UserError
from rlhf.feedback.aggregate import Ties
from rlhf.feedback.project import DEFAULT_RULE, ProjectSnapshot, aggregate, is_project, read_snapshot
from rlhf.feedback.records import Item, Vote
from rlhf.feedback.reward_accuracy import ScoredJudgement
from rlhf.records import Preference


@dataclass(frozen=True, kw_only=True)
class JudgedPair:
    """Two answers, and the votes on them."""

    row: Preference
    """``chosen`` is the first answer, ``rejected`` the second, whoever won."""
    first_wins: bool | None
    """The outcome of all votes together; None for a tie."""
    votes: tuple[Vote, ...] = ()
    """Single votes that prefer one answer; none for files without raters."""

    def outcome(self, difference: float) -> ScoredJudgement | None:
        """The outcome beside the difference of the rewards of first and second answer; None for a tie."""
        if self.first_wins is None:
            return None
        prompt = canonical_prompt(self.row.prompt)
        return ScoredJudgement(difference=difference, first_wins=self.first_wins, prompt=prompt)

    def judgements(self, difference: float) -> list[ScoredJudgement]:
        """Each vote beside the difference of the rewards."""
        return [
            ScoredJudgement(
                difference=difference,
                first_wins=bool(vote.choice.strength and vote.choice.strength > 0),
                prompt=canonical_prompt(self.row.prompt),
                rater=vote.rater,
                guideline=vote.guideline,
            )
            for vote in self.votes
        ]


def load_judged_pairs(config: DataConfig) -> tuple[JudgedPair, ...]:
    """Pairs of ``config.preferences``: a project's label items with a vote that prefers an answer, or a file's rows.

    Suspended raters' votes and repeats are left out. Rows that cannot be used are left out too.

    Raises:
        UserError: the project or the file cannot be read, or no pair has a judgement.
    """
    path = config.preferences or config.path
    if path is None or not is_project(path):
        return tuple(JudgedPair(row=row, first_wins=True) for row in formats.load_preferences(config).rows)
    pairs = _pairs_of_project(read_snapshot(path), config)
    if not pairs:
        why = "evaluation compares rewards with preferences of people"
        raise UserError(f"'{path}' has no vote that prefers an answer", why, "collect votes by `rlhf feedback serve`")
    return pairs


def _pairs_of_project(snapshot: ProjectSnapshot, config: DataConfig) -> tuple[JudgedPair, ...]:
    aggregated = aggregate(snapshot, config.aggregation or DEFAULT_RULE, Ties.DROP)
    winners = {outcome.item.id: outcome.first_wins for outcome in aggregated.outcomes}
    votes: dict[str, list[Vote]] = {}
    for vote in snapshot.votes:
        if vote.choice.strength and not (vote.is_suspended or vote.is_repeat):
            votes.setdefault(vote.item, []).append(vote)
    return tuple(_pair(snapshot, item, winners, votes) for item in snapshot.labels if item.id in votes)


def _pair(
    snapshot: ProjectSnapshot, item: Item, winners: Mapping[str, bool], votes: Mapping[str, list[Vote]]
) -> JudgedPair:
    first, second = (answer.text for answer in item.answers)
    where, variables = snapshot.locations[item.id], read_variables(item.extra)
    row = Preference(item.prompt, first, second, 0.0, where, variables)
    return JudgedPair(row=row, first_wins=winners.get(item.id), votes=tuple(votes[item.id]))
