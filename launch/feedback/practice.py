"""Practice: what the guidelines say about a calibration item, right after the rater's vote on it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from launch.feedback.choices import button_of
from launch.feedback.comparison import comparison_texts
from launch.feedback.markdown import to_html
from launch.feedback.responses import go_to, language_of, page
from launch.feedback.site import site_of
from launch.feedback.visitors import Rater
from rlhf.feedback.records import Choice, Item, Purpose, Vote
from rlhf.feedback.store import Store

router = APIRouter()


@router.get("/practice")
def practice(request: Request, rater: Rater) -> Response:
    """What the guidelines say about the calibration item on which the rater has just voted."""
    store, language = site_of(request).store, language_of(request)
    known = {item.id: item for item in store.items(Purpose.CALIBRATION)}
    votes = store.votes(rater=rater.alias)
    given = [(vote, known[vote.item]) for vote in votes if vote.item in known]
    if not given or votes[-1] is not given[-1][0]:
        return go_to(request, "/")
    vote, item = given[-1]
    texts = comparison_texts(item, vote.is_swapped, language)
    return page(request, "practice", **texts, **_verdict(vote, item), **_score(store, given))


def _verdict(vote: Vote, item: Item) -> dict[str, Any]:
    assert item.gold is not None  # the store refuses calibration items without
    return {
        "is_right": agrees(vote.choice, item.gold),
        "given": button_of(vote.choice, vote.is_swapped),
        "gold": button_of(item.gold, vote.is_swapped),
        "explanation": to_html(item.explanation) if item.explanation else "",
    }


def _score(store: Store, given: list[tuple[Vote, Item]]) -> dict[str, Any]:
    right = sum(agrees(vote.choice, item.gold) for vote, item in given if item.gold is not None)
    return {"right_count": right, "total": len(given), "is_over": len(given) >= store.settings.calibration_items}


def agrees(choice: Choice, gold: Choice) -> bool:
    """Whether a choice is right: it prefers the same answer, much or slightly, or is the same tie or refusal."""
    ours, theirs = choice.strength, gold.strength
    return choice is gold or bool(ours and theirs and ours * theirs > 0)
