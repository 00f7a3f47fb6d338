"""OpenAI's published comparisons: summaries (Stiennon et al. 2020), WebGPT (Nakano et al. 2021), best of four.

**openai**, ``comparisons/batch*.json`` of summarize-from-feedback, one comparison a line::

    {"info": {"id", "post", "title", "subreddit"} or {"id", "article", "title", "site"},
     "summaries": [{"text", "policy", "note"}, {...}], "choice": 0 or 1,
     "worker", "batch", "split", "extra": {"confidence": 1..9 or absent}}

``choice`` is the index of the better summary. ``confidence`` is a scale from 1, certainly the first, to 9, certainly
the second; the example in its documentation has choice 1 with confidence 8. The winner is always ``choice``; it wins by
*much* where the confidence is 1, 2, 8 or 9 and on the same side, and *slightly* everywhere else. The workers' notes on
both summaries are the vote's comment.

**webgpt**, ``comparisons.jsonl``: ``question.full_text``, ``answer_0``, ``answer_1``, and scores from -1 to 1 that sum
to 0; two scores of 0 are a tie. The labellers' scale has five points from *much better* to *much worse*, so a score
that is nearer to 1 than to 0.5 is *much*. The quotes are kept in ``extra``; the tokens are not.

**best-of**, of lm-human-preferences (Ziegler et al. 2019): ``query``, ``sample0`` to ``sample3`` and ``best``, the
index of the best. It says that the best beats each other one, and nothing about the others. The published files hold
GPT-2 token ids; decode them to text first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from rlhf.data.read import RawRow
from rlhf.data.turns import RowError
from rlhf.feedback.formats.judged import (
    Judged,
    alias,
    as_text,
    digest,
    imported_item,
    make_vote,
    mapping_at,
    preferred,
    text_at,
    without,
)
from rlhf.feedback.records import Answer, Choice

MIDDLE = 5  # of the nine points of confidence
CERTAIN = 3  # points from the middle, from which the preference is "much"
STRONG = 0.75
"""WebGPT's score from which the preference is "much"."""


def parse_comparison(raw: RawRow, rater: str) -> list[Judged]:
    """The comparison of two summaries. Raises ``RowError``."""
    row, summaries = raw.columns, raw.columns.get("summaries")
    if (
        not isinstance(summaries, list)
        or len(summaries) != 2
        or not all(isinstance(each, Mapping) for each in summaries)
    ):
        raise RowError(f"not two summaries: {summaries!r:.40}")
    first, second = (
        Answer(text=as_text(each.get("text"), "summaries.text"), policy=str(each.get("policy") or ""))
        for each in summaries
    )
    info = mapping_at(row, "info")
    group = str(info.get("id") or "")
    item = imported_item(_post(info), (first, second), raw.source, group=group, extra=_other_fields(row))
    notes = [f"{i}: {note}" for i, each in enumerate(summaries, start=1) if (note := each.get("note"))]
    worker = row.get("worker")
    who = alias("openai", worker) if isinstance(worker, str) and worker else rater
    return [Judged(source=raw.source, item=item, votes=(make_vote(item, who, _choice(row), comment="\n".join(notes)),))]


def _choice(row: Mapping[str, object]) -> Choice:
    choice, extra = row.get("choice"), row.get("extra")
    if type(choice) is not int or choice not in (0, 1):
        raise RowError(f"not a label: choice is {choice!r:.40}, not 0 or 1")
    confidence = extra.get("confidence") if isinstance(extra, Mapping) else None
    points = confidence - MIDDLE if type(confidence) is int else 0
    return preferred(choice == 0, is_strong=points >= CERTAIN if choice == 1 else -points >= CERTAIN)


def _post(info: Mapping[str, object]) -> str:
    """The text that was summarised, below its title."""
    text = as_text(info.get("post") or info.get("article"), "info.post")
    title = info.get("title")
    return f"{title}\n\n{text}" if isinstance(title, str) and title.strip() else text


def _other_fields(row: Mapping[str, object]) -> dict[str, object]:
    info = mapping_at(row, "info")
    return {**without(row, "info", "summaries", "choice", "worker"), "info": without(info, "post", "article", "title")}


def parse_webgpt(raw: RawRow, rater: str) -> list[Judged]:
    """The comparison of two answers of WebGPT. Raises ``RowError``."""
    row = raw.columns
    question = mapping_at(row, "question")
    first, second = (Answer(text=text_at(row, f"answer_{i}")) for i in (0, 1))
    one, other = (_score(row, f"score_{i}") for i in (0, 1))
    if not math.isclose(one, -other, abs_tol=1e-6):
        raise RowError(f"not a label: score_0 is {one:g} and score_1 is {other:g}, which do not sum to 0")
    item = imported_item(
        as_text(question.get("full_text"), "question.full_text"),
        (first, second),
        raw.source,
        group=str(question.get("id") or ""),
        extra={
            "question": without(question, "full_text"),
            **without(row, "question", "answer_0", "answer_1", "tokens_0", "tokens_1"),
        },
    )
    choice = Choice.TIE if one == 0 else preferred(one > 0, is_strong=abs(one) >= STRONG)
    return [Judged(source=raw.source, item=item, votes=(make_vote(item, rater, choice),))]


def _score(row: Mapping[str, object], column: str) -> float:
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1:
        raise RowError(f"not a label: {column} is {value!r:.40}, not a number from -1 to 1")
    return float(value)


def parse_best_of(raw: RawRow, rater: str) -> list[Judged]:
    """The best sample against each other one. Raises ``RowError``."""
    row = raw.columns
    names = sorted(name for name in row if name.startswith("sample") and name.removeprefix("sample").isdecimal())
    if any(isinstance(row[name], list) for name in names):
        raise RowError("token ids: the samples are not text; decode them with GPT-2's tokenizer first")
    best, query = row.get("best"), text_at(row, "query")
    if type(best) is not int or not 0 <= best < len(names) or len(names) < 2:
        raise RowError(f"not a label: best is {best!r:.40}, and there are {len(names)} samples")
    texts = {name: text_at(row, name, is_empty_allowed=True) for name in names}
    found = []
    for other in names:
        if other == names[best]:
            continue
        pair = sorted((names[best], other))
        answers = Answer(text=texts[pair[0]], policy=pair[0]), Answer(text=texts[pair[1]], policy=pair[1])
        item = imported_item(
            query, answers, raw.source, group=digest(query), extra=without(row, "query", "best", *names)
        )
        found.append(
            Judged(source=raw.source, item=item, votes=(make_vote(item, rater, preferred(pair[0] == names[best])),))
        )
    return found
