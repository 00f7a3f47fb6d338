"""Pairs of answers with the judgements on them, to evaluate a reward model: from a project, or from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rlhf.config.schema import DataConfig
from rlhf.data import formats
from rlhf.data.columns import value_at
from rlhf.data.read import RawRow, read_rows
from rlhf.data.split import canonical_prompt
from rlhf.data.turns import read_variables
from rlhf.errors import UserError
from rlhf.feedback.aggregate import Ties
from rlhf.feedback.project import DEFAULT_RULE, ProjectSnapshot, aggregate, is_project, read_snapshot
from rlhf.feedback.records import Item, Vote
from rlhf.feedback.reward_accuracy import ScoredJudgement
from rlhf.records import Preference, RowLocation


@dataclass(frozen=True, kw_only=True)
class JudgedPair:
    """Two answers, and the votes on them."""

    row: Preference
    """``chosen`` is the first answer, ``rejected`` the second, whoever won."""
    first_wins: bool | None
    """The outcome of all votes together; None for a tie."""
    votes: tuple[Vote, ...] = ()
    """Single votes that prefer one answer; none for files without raters."""
    category: str | None = None

    def outcome(self, difference: float) -> ScoredJudgement | None:
        """The outcome beside the difference of the rewards of first and second answer; None for a tie."""
        if self.first_wins is None:
            return None
        prompt = canonical_prompt(self.row.prompt)
        return ScoredJudgement(difference=difference, first_wins=self.first_wins, prompt=prompt, category=self.category)

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


def load_judged_pairs(config: DataConfig, category: str | None = None) -> tuple[JudgedPair, ...]:
    """Pairs of ``config.preferences``: a project's label items with a vote that prefers an answer, or a file's rows.

    Suspended raters' votes and repeats are left out. Rows that cannot be used are left out too.

    Args:
        category: column, or dotted path into one, with a pair's category; of a project, of its items' further columns.

    Raises:
        UserError: the project or the file cannot be read, no pair has a judgement, or one has no category.
    """
    path = config.preferences or config.path
    if path is None or not is_project(path):
        rows = formats.load_preferences(config).rows
        return _with_categories([JudgedPair(row=row, first_wins=True) for row in rows], category, _columns_of(config))
    snapshot = read_snapshot(path)
    pairs = _pairs_of_project(snapshot, config)
    if not pairs:
        why = "evaluation compares rewards with preferences of people"
        raise UserError(f"'{path}' has no vote that prefers an answer", why, "collect votes by `rlhf feedback serve`")
    return _with_categories(pairs, category, {snapshot.locations[item.id]: item.extra for item in snapshot.labels})


def _columns_of(config: DataConfig) -> Mapping[RowLocation, Mapping[str, object]]:
    """All columns of every row of a file."""
    path = config.preferences or config.path
    assert path is not None  # otherwise the preferences could not be read
    rows = read_rows(path, config.format, config.split, config.max_rows)
    return {raw.source: raw.columns for raw in rows if isinstance(raw, RawRow)}


def _with_categories(
    pairs: Sequence[JudgedPair], column: str | None, columns: Mapping[RowLocation, Mapping[str, object]]
) -> tuple[JudgedPair, ...]:
    if column is None:
        return tuple(pairs)
    found = [value_at(columns[pair.row.source], column) for pair in pairs]
    for pair, value in zip(pairs, found):
        if not isinstance(value, str | int) or value == "":
            has = ", ".join(columns[pair.row.source])
            fix = "name the column that holds a text or a number in every row, or leave --category out"
            raise UserError(f"{pair.row.source} has no category in the column '{column}'", f"it has {has}", fix)
    return tuple(replace(pair, category=str(value)) for pair, value in zip(pairs, found))


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
