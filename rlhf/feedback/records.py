"""Items that people compare, their votes, and the words of both.

A vote is kept in the item's own order of answers (``Choice.FIRST_*`` prefers ``item.answers[0]``), whichever side the
rater saw that answer on; ``Vote.is_swapped`` records the sides. Every statistic therefore reads votes without
knowing the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from rlhf.records import Messages


class Choice(StrEnum):
    """A rater's judgement of two answers, in the item's order of answers."""

    FIRST_MUCH = "first_much"
    FIRST_SLIGHTLY = "first_slightly"
    TIE = "tie"
    SECOND_SLIGHTLY = "second_slightly"
    SECOND_MUCH = "second_much"
    BOTH_BAD = "both_bad"
    """Neither answer is acceptable; says nothing of which one is better."""
    SKIP = "skip"
    """The rater does not judge this item; no statistic counts it as a judgement."""

    @property
    def strength(self) -> int | None:
        """How much the first answer is preferred: 2, 1, 0, -1, -2; a tie and both bad are 0, a skip is None."""
        return _STRENGTH[self]

    @property
    def swapped(self) -> Choice:
        """The same judgement if the two answers are swapped."""
        return _SWAPPED.get(self, self)


_STRENGTH: Mapping[Choice, int | None] = {
    Choice.FIRST_MUCH: 2,
    Choice.FIRST_SLIGHTLY: 1,
    Choice.TIE: 0,
    Choice.SECOND_SLIGHTLY: -1,
    Choice.SECOND_MUCH: -2,
    Choice.BOTH_BAD: 0,
    Choice.SKIP: None,
}
_SWAPPED: Mapping[Choice, Choice] = {
    Choice.FIRST_MUCH: Choice.SECOND_MUCH,
    Choice.FIRST_SLIGHTLY: Choice.SECOND_SLIGHTLY,
    Choice.SECOND_SLIGHTLY: Choice.FIRST_SLIGHTLY,
    Choice.SECOND_MUCH: Choice.FIRST_MUCH,
}


class Purpose(StrEnum):
    """Why an item is shown."""

    LABEL = "label"
    """To learn which answer is better; only these items become training data."""
    GOLD = "gold"
    """To check raters silently against a known choice."""
    CALIBRATION = "calibration"
    """To train raters before they label: the known choice and its explanation are shown after the vote."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer and where it came from. Raters see the text alone."""

    text: str
    policy: str = ""
    """Model or checkpoint that wrote it, or the name under which a file knows it; empty if unknown."""
    seed: int | None = None
    sampling: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Sampling parameters: temperature, top_p, ..."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """Two answers to one prompt, to be compared."""

    id: str
    """Digest of prompt, answers and purpose (``items.item_id``): the same comparison is added only once."""
    prompt: Messages | str
    answers: tuple[Answer, Answer]
    purpose: Purpose = Purpose.LABEL
    gold: Choice | None = None
    """The known choice of a gold or calibration item, in the item's order; None for others."""
    explanation: str = ""
    """Why ``gold`` is right; shown after the vote on a calibration item."""
    round: str = ""
    """Name of the round that sampled the item; empty for imported ones."""
    source: str = ""
    """File and row that the item was imported from; empty for sampled ones."""
    group: str = ""
    """Items of one group share a prompt, or a question; intervals are clustered by it. Empty: the prompt decides."""
    extra: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Other fields of an imported row, kept for export; JSON values."""


@dataclass(frozen=True, kw_only=True)
class Vote:
    """One rater's judgement of one item."""

    id: str
    """Made by the client; a vote that is sent twice is stored once."""
    item: str
    rater: str
    """Alias; never a person's name or address."""
    choice: Choice
    is_swapped: bool = False
    """Whether the second answer was shown on the left (on top, on a phone)."""
    reasons: tuple[str, ...] = ()
    comment: str = ""
    seconds: float | None = None
    """Seconds for which the page was visible; None if unknown, as for imported votes."""
    guideline: int | None = None
    """Version of the guidelines that the rater had acknowledged; None if the project has none."""
    time: float = 0.0
    """Unix time in seconds; 0 if unknown."""
    is_repeat: bool = False
    """A second vote of the same rater on an item, to measure self-consistency; no statistic but that one counts it."""
    is_adjudication: bool = False
    """An adjudicator's decision about an item whose raters disagree: it overrides their votes in training data."""
    is_suspended: bool = False
    """Its rater is suspended: the vote is kept and exported with this mark, and left out of training data."""


@dataclass(frozen=True, kw_only=True)
class Thumb:
    """A user's reaction in production to one answer: an unpaired label."""

    id: str
    prompt: Messages | str
    answer: Answer
    is_good: bool
    comment: str = ""
    time: float = 0.0
    """Unix time in seconds."""
