"""The rater's pages: compare, vote, and undo."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import Response

from launch.feedback.choices import OTHER_KEYS, SCALE_KEYS, reason_keys
from launch.feedback.comparison import comparison_texts
from launch.feedback.errors import PageError
from launch.feedback.responses import go_to, language_of, page
from launch.feedback.site import Site, site_of
from launch.feedback.texts import TEXTS
from launch.feedback.tickets import Ticket
from launch.feedback.visitors import Rater, Visitor, check_form
from launch.feedback.vote_form import VoteForm, read_vote, vote_form
from rlhf.errors import UserError
from rlhf.feedback.assign import AssignedItem, next_item
from rlhf.feedback.records import Purpose
from rlhf.feedback.store import Store

router = APIRouter()
Text = Annotated[str, Form()]

NOTES = ("undone", "nothing_to_undo", "closed")
"""Texts that a page may show above the comparison."""


@router.get("/")
def compare(request: Request, rater: Rater) -> Response:
    """The item that the rater holds or gets next, or the guidelines if they are to be read first."""
    site = site_of(request)
    if must_acknowledge(site.store, rater.alias):
        return go_to(request, "/guidelines")
    assignment = next_item(site.store, rater.alias, site.clock())
    shared = _shared(site, rater)
    if assignment is None:
        return page(request, "finished", **shared)
    return page(request, "compare", **shared, **_comparison(request, rater, assignment))


def must_acknowledge(store: Store, alias: str) -> bool:
    """Whether the newest guidelines have not been acknowledged by a rater."""
    newest = store.guideline()
    return newest is not None and store.acknowledged(alias) != newest.version


def _shared(site: Site, rater: Visitor) -> dict[str, Any]:
    """What the page of a comparison and that of the end have in common."""
    known = site.store.rater(rater.alias)
    done = known.votes if known else 0
    return {"csrf": rater.csrf, "can_undo": done > 0, "progress_done": done}


def _comparison(request: Request, rater: Visitor, assignment: AssignedItem) -> dict[str, Any]:
    """What the page of a comparison shows; nothing of it depends on the item's purpose or policies."""
    site, item, language = site_of(request), assignment.item, language_of(request)
    guideline = site.store.guideline()
    note = request.query_params.get("note", "")
    return {
        "alias": rater.alias,
        **comparison_texts(item, assignment.is_swapped, language),
        "ticket": site.tickets.seal(_ticket(rater, assignment)),
        "vote_id": uuid.uuid4().hex,
        "scale": SCALE_KEYS.items(),
        "others": OTHER_KEYS.items(),
        "reasons": reason_keys(site.store.settings.reasons),
        "guideline_version": guideline.version if guideline else None,
        "is_adjudication": assignment.is_adjudication,
        "note": TEXTS[note][language] if note in NOTES else "",
        "session_seconds": int(_session_seconds(site, rater.alias)),
        "project_percent": site.progress.percent(site.store, site.clock()),
    }


def _ticket(rater: Visitor, assignment: AssignedItem) -> Ticket:
    return Ticket(
        item=assignment.item.id,
        rater=rater.alias,
        is_swapped=assignment.is_swapped,
        is_repeat=assignment.is_repeat,
        is_adjudication=assignment.is_adjudication,
    )


def _session_seconds(site: Site, alias: str) -> float:
    if not site.times.is_known(alias):
        site.times.learn(alias, (vote.time for vote in site.store.votes(rater=alias)))
    return site.times.see(alias, site.clock())


@router.post("/vote")
def cast_vote(request: Request, rater: Rater, form: Annotated[VoteForm, Depends(vote_form)]) -> Response:
    """Store a vote and lead to the next item, or to the explanation of a calibration item."""
    check_form(request, rater, form.csrf)
    site = site_of(request)
    try:
        ticket, shown = site.tickets.open(form.ticket)
    except ValueError as error:
        raise PageError(400, "error_stale") from error
    if ticket.rater != rater.alias:
        raise PageError(403, "error_forbidden")
    site.times.see(rater.alias, site.clock())
    try:
        site.store.add_vote(read_vote(site, ticket, shown, form))
    except UserError:  # others completed the item meanwhile, or another window voted on it
        return go_to(request, "/?note=closed")
    return go_to(request, "/practice" if _is_calibration(site.store, ticket.item) else "/")


def _is_calibration(store: Store, item: str) -> bool:
    found = store.item(item)
    return found is not None and found.purpose is Purpose.CALIBRATION


@router.post("/undo")
def undo(request: Request, rater: Rater, csrf: Text) -> Response:
    """Take the newest vote back; its item is shown again."""
    check_form(request, rater, csrf)
    taken = site_of(request).store.undo(rater.alias)
    return go_to(request, "/?note=undone" if taken else "/?note=nothing_to_undo")
