"""FineGrainedRLHF's preference feedback (Wu et al. 2023): a question, four answers, and six judgements.

``preference`` judges answers 1 and 2, 1 and 3, 1 and 4, 2 and 3, 2 and 4, 3 and 4: 1 or 2 is the better one of the
pair, 0 a tie. The six items of a question are one group. The retrieved passages are kept in ``extra``, not in the
prompt.
"""

from __future__ import annotations

from itertools import combinations

from rlhf.data.read import RawRow
from rlhf.data.turns import RowError
from rlhf.feedback.formats.judged import Judged, digest, imported_item, make_vote, text_at, without
from rlhf.feedback.records import Answer, Choice

ANSWERS = 4
CHOICES = {0: Choice.TIE, 1: Choice.FIRST_SLIGHTLY, 2: Choice.SECOND_SLIGHTLY}
"""Judgement → choice."""


def parse(raw: RawRow, rater: str) -> list[Judged]:
    """The six comparisons of a row. Raises ``RowError``."""
    row, names = raw.columns, [f"prediction {i}" for i in range(1, ANSWERS + 1)]
    question = text_at(row, "question")
    texts = {name: text_at(row, name, is_empty_allowed=True) for name in names}
    pairs, judgements = list(combinations(names, 2)), row.get("preference")
    if not isinstance(judgements, list) or len(judgements) != len(pairs):
        raise RowError(f"not {len(pairs)} judgements: preference is {judgements!r:.40}")
    extra = without(row, "question", "preference", *names)
    group = digest(question)
    found = []
    for (one, other), judgement in zip(pairs, judgements, strict=True):
        answers = Answer(text=texts[one], policy=one), Answer(text=texts[other], policy=other)
        item = imported_item(question, answers, raw.source, group=group, extra=extra)
        choice = CHOICES.get(judgement) if type(judgement) is int else None
        bad = () if choice else (f"not a label: {one} against {other} is {judgement!r:.40}, not 0, 1 or 2",)
        votes = (make_vote(item, rater, choice),) if choice else ()
        found.append(Judged(source=raw.source, item=item, votes=votes, bad_votes=bad))
    return found
