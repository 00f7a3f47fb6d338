"""The rater's pages: compare, vote, undo, and practise on calibration items."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import Response
from markupsafe import Markup

from launch.feedback.choices import OTHER_KEYS, SCALE_KEYS, button_of, choice_of, reason_keys
from launch.feedback.errors import PageError
from launch.feedback.markdown import to_html
from launch.feedback.responses import go_to, language_of, page
from launch.feedback.site import Site, site_of
from launch.feedback.texts import TEXTS, Language
from launch.feedback.tickets import Ticket
from launch.feedback.visitors import Visitor, check_form, rater_of
from rlhf.errors import UserError
from rlhf.feedback.assign import Assignment, next_item
from rlhf.feedback.records import Choice, Item, Purpose, Vote
from rlhf.feedback.store import Store

router = APIRouter()
Rater = Annotated[Visitor, Depends(rater_of)]
Text = Annotated[str, Form()]

LONGEST_COMMENT = 2000
"""Characters, as in the page's form."""
NOTES = ("undone", "nothing_to_undo", "closed")
"""Texts that a page may show above the comparison."""
_VOTE_ID = re.compile(r"[0-9a-f]{32}")


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


def _comparison(request: Request, rater: Visitor, assignment: Assignment) -> dict[str, Any]:
    """What the page of a comparison shows; nothing of it depends on the item's purpose or policies."""
    site, item, language = site_of(request), assignment.item, language_of(request)
    left, right = shown_answers(item, assignment.is_swapped)
    guideline = site.store.guideline()
    note = request.query_params.get("note", "")
    return {
        "alias": rater.alias,
        "turns": _turns(item, language),
        "left": left,
        "right": right,
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


def shown_answers(item: Item, is_swapped: bool) -> tuple[Markup, Markup]:
    """Answers A and B as the page shows them."""
    first, second = (to_html(answer.text) for answer in item.answers)
    return (second, first) if is_swapped else (first, second)


def _ticket(rater: Visitor, assignment: Assignment) -> Ticket:
    return Ticket(
        item=assignment.item.id,
        rater=rater.alias,
        is_swapped=assignment.is_swapped,
        is_repeat=assignment.is_repeat,
        is_adjudication=assignment.is_adjudication,
    )


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A turn of a prompt as the page shows it."""

    role: str
    """In the visitor's language; empty for a prompt that is plain text."""
    kind: str
    """Class of the style sheet."""
    html: Markup


def _turns(item: Item, language: Language) -> list[Turn]:
    if isinstance(item.prompt, str):
        return [Turn(role="", kind="user", html=to_html(item.prompt))]
    return [_turn(turn.role, turn.content, language) for turn in item.prompt]


def _turn(role: str, content: str, language: Language) -> Turn:
    text = TEXTS.get(f"role_{role}")
    name = text[language] if text else role
    return Turn(role=name, kind="assistant" if role == "assistant" else "user", html=to_html(content))


def _session_seconds(site: Site, alias: str) -> float:
    if not site.times.is_known(alias):
        site.times.learn(alias, (vote.time for vote in site.store.votes(rater=alias)))
    return site.times.see(alias, site.clock())


@dataclass(frozen=True, kw_only=True)
class VoteForm:
    """Fields of the form of a comparison."""

    csrf: str
    ticket: str
    vote: str
    """The vote's id, made with the page: a form that is sent twice is one vote."""
    choice: str
    """Name of the button."""
    comment: str
    seconds: str
    """That the page was visible, as measured by its script; empty without scripts."""
    reasons: tuple[str, ...]


def vote_form(
    csrf: Text,
    ticket: Text,
    vote: Text,
    choice: Text,
    reason: Annotated[list[str], Form(default_factory=list)],
    comment: Text = "",
    seconds: Text = "",
) -> VoteForm:
    """The form that a request holds."""
    plain = comment.replace("\r\n", "\n").strip()
    return VoteForm(
        csrf=csrf, ticket=ticket, vote=vote, choice=choice, comment=plain, seconds=seconds, reasons=tuple(reason)
    )


@router.post("/vote")
def vote(request: Request, rater: Rater, form: Annotated[VoteForm, Depends(vote_form)]) -> Response:
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
        site.store.add_vote(_read_vote(site, ticket, shown, form))
    except UserError:  # others completed the item meanwhile, or another window voted on it
        return go_to(request, "/?note=closed")
    return go_to(request, "/practice" if _is_calibration(site.store, ticket.item) else "/")


def _read_vote(site: Site, ticket: Ticket, shown: float, form: VoteForm) -> Vote:
    """The vote of a form.

    Raises:
        PageError: a field has a value that the page never sends.
    """
    now = site.clock()
    is_sound = _VOTE_ID.fullmatch(form.vote) and len(form.comment) <= LONGEST_COMMENT
    if not is_sound or not set(form.reasons) <= set(site.store.settings.reasons):
        raise PageError(422, "error_input")
    try:
        choice, seconds = choice_of(form.choice, ticket.is_swapped), _seconds(form.seconds, now - shown)
    except ValueError as error:
        raise PageError(422, "error_input") from error
    return Vote(
        id=form.vote,
        item=ticket.item,
        rater=ticket.rater,
        choice=choice,
        is_swapped=ticket.is_swapped,
        reasons=form.reasons,
        comment=form.comment,
        seconds=seconds,
        guideline=site.store.acknowledged(ticket.rater),
        time=now,
        is_repeat=ticket.is_repeat,
        is_adjudication=ticket.is_adjudication,
    )


def _seconds(measured: str, elapsed: float) -> float:
    """The page's own measure, which leaves out the time in the background, within what the server knows.

    A ticket's time is a whole second, so up to one second more than ``elapsed`` may be right.
    """
    most = elapsed + 1.0
    return round(min(max(float(measured), 0.0), most), 1) if measured else round(elapsed, 1)


def _is_calibration(store: Store, item: str) -> bool:
    found = store.item(item)
    return found is not None and found.purpose is Purpose.CALIBRATION


@router.post("/undo")
def undo(request: Request, rater: Rater, csrf: Text) -> Response:
    """Take the newest vote back; its item is shown again."""
    check_form(request, rater, csrf)
    taken = site_of(request).store.undo(rater.alias)
    return go_to(request, "/?note=undone" if taken else "/?note=nothing_to_undo")


@router.get("/practice")
def practice(request: Request, rater: Rater) -> Response:
    """What the guidelines say about the calibration item on which the rater has just voted."""
    store = site_of(request).store
    known = {item.id: item for item in store.items(Purpose.CALIBRATION)}
    votes = store.votes(rater=rater.alias)
    given = [(vote, known[vote.item]) for vote in votes if vote.item in known]
    if not given or votes[-1] is not given[-1][0]:
        return go_to(request, "/")
    return page(request, "practice", **_verdict(*given[-1]), **_score(store, given))


def _verdict(vote: Vote, item: Item) -> dict[str, Any]:
    assert item.gold is not None  # the store refuses calibration items without
    left, right = shown_answers(item, vote.is_swapped)
    return {
        "is_right": agrees(vote.choice, item.gold),
        "given": button_of(vote.choice, vote.is_swapped),
        "gold": button_of(item.gold, vote.is_swapped),
        "explanation": to_html(item.explanation) if item.explanation else "",
        "answer_a": left,
        "answer_b": right,
    }


def _score(store: Store, given: list[tuple[Vote, Item]]) -> dict[str, Any]:
    right = sum(agrees(vote.choice, item.gold) for vote, item in given if item.gold is not None)
    return {"right": right, "total": len(given), "is_over": len(given) >= store.settings.calibration_items}


def agrees(choice: Choice, gold: Choice) -> bool:
    """Whether a choice is right: it prefers the same answer, much or slightly, or is the same tie or refusal."""
    ours, theirs = choice.strength, gold.strength
    return choice is gold or bool(ours and theirs and ours * theirs > 0)
