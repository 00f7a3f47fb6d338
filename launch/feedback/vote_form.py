"""The form of a comparison, and the vote that it holds."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated

from fastapi import Form

from launch.feedback.choices import choice_of
from launch.feedback.errors import PageError
from launch.feedback.site import Site
from launch.feedback.tickets import Ticket
from rlhf.feedback.records import Vote

Text = Annotated[str, Form()]

LONGEST_COMMENT = 2000
"""Characters, as in the page's form."""
_VOTE_ID = re.compile(r"[0-9a-f]{32}")


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


def read_vote(site: Site, ticket: Ticket, shown: float, form: VoteForm) -> Vote:
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

    Raises:
        ValueError: the measure is no number.
    """
    seconds = float(measured or elapsed)
    if not math.isfinite(seconds):
        raise ValueError(f"{measured} is no number of seconds")
    return round(min(max(seconds, 0.0), elapsed + 1.0), 1)
