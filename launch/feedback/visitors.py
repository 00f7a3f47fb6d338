"""Who asks: the signed token of a link, kept in a cookie, and the checks of every form.

A form is accepted only with the cookie, from a page of this origin, and with a token that is bound to the cookie.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.responses import Response

from launch.feedback.errors import PageError
from launch.feedback.responses import set_cookie
from launch.feedback.site import Site, site_of
from rlhf.errors import UserError
from rlhf.feedback.access import Access, AccessRole, verify_token

COOKIE = "rlhf_feedback"
RATERS = (AccessRole.RATER, AccessRole.ADJUDICATOR)


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """Somebody whose token is valid."""

    alias: str
    role: AccessRole
    csrf: str
    """Proves that a form was made for this visitor."""


def enter(request: Request, token: str) -> Access:
    """Check the token of a link.

    Raises:
        PageError: it is not valid any more, or never was.
    """
    site = site_of(request)
    try:
        return verify_token(site.store, token, site.clock())
    except UserError as error:
        raise PageError(401, "error_expired") from error


def keep(request: Request, response: Response, token: str, access: Access) -> None:
    """Keep a token in the cookie until it expires."""
    seconds = int(access.expires - site_of(request).clock())
    set_cookie(request, response, COOKIE, token, seconds)


def rater_of(request: Request) -> Visitor:
    """The rater or adjudicator who asks.

    Raises:
        PageError: there is none, or the rater is suspended or asks too often.
    """
    visitor = _visitor(request, request.cookies.get(COOKIE, ""))
    if visitor.role not in RATERS:
        raise PageError(403, "error_forbidden")
    rater = site_of(request).store.rater(visitor.alias)
    if rater is None or rater.is_suspended:
        raise PageError(403, "error_suspended")
    return visitor


Rater = Annotated[Visitor, Depends(rater_of)]


def admin_of(request: Request) -> Visitor:
    """The administrator who asks, by cookie or, in a program, by a bearer token.

    Raises:
        PageError: there is none.
    """
    visitor = _visitor(request, bearer(request) or request.cookies.get(COOKIE, ""))
    if visitor.role is not AccessRole.ADMIN:
        raise PageError(403, "error_forbidden")
    return visitor


Admin = Annotated[Visitor, Depends(admin_of)]


def service_of(request: Request) -> Visitor:
    """The program that sends thumbs, by a bearer token.

    Raises:
        PageError: there is none.
    """
    visitor = _visitor(request, bearer(request))
    if visitor.role is not AccessRole.SERVICE:
        raise PageError(403, "error_forbidden")
    return visitor


Service = Annotated[Visitor, Depends(service_of)]


def bearer(request: Request) -> str:
    """The token of the header ``Authorization: Bearer``; empty if there is none."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def check_form(request: Request, visitor: Visitor, csrf: str) -> None:
    """Check that a form comes from a page that this server made for this visitor.

    Raises:
        PageError: it does not.
    """
    origin = urlsplit(request.headers.get("origin", ""))
    if (origin.scheme, origin.netloc) != (request.url.scheme, request.url.netloc):
        raise PageError(403, "error_forbidden")
    if not hmac.compare_digest(csrf.encode(errors="replace"), visitor.csrf.encode()):
        raise PageError(403, "error_stale")


def _visitor(request: Request, token: str) -> Visitor:
    site = site_of(request)
    if not token:
        raise PageError(401, "error_sign_in")
    access = enter(request, token)
    if seconds := site.visits.take(access.alias):
        raise PageError(429, "error_too_many", seconds)
    return Visitor(alias=access.alias, role=access.role, csrf=_csrf(site, token))


def _csrf(site: Site, token: str) -> str:
    digest = hmac.digest(site.csrf_key, token.encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode()
