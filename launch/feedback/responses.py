"""Pages and answers in the visitor's language, for browsers with and without scripts."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from launch.feedback.errors import PageError
from launch.feedback.render import render
from launch.feedback.texts import LANGUAGES, TEXTS, Language, choose_language

LANGUAGE_COOKIE = "rlhf_language"
YEAR = 365 * 24 * 3600


def language_of(request: Request) -> Language:
    """The language in which a request is answered."""
    wish, kept = request.query_params.get("lang"), request.cookies.get(LANGUAGE_COOKIE)
    return choose_language(wish, kept, request.headers.get("accept-language"))


def root_of(request: Request) -> str:
    """The path under which a proxy serves the page; empty if none does."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page; a language that its address asks for is kept in a cookie."""
    language = language_of(request)
    response = HTMLResponse(render(template, language, root=root_of(request), **values), status)
    if request.query_params.get("lang") in LANGUAGES:
        set_cookie(request, response, LANGUAGE_COOKIE, language, YEAR)
    return response


def set_cookie(request: Request, response: Response, name: str, value: str, seconds: int) -> None:
    """Set a cookie that scripts cannot read, and that browsers send to this site from itself only."""
    response.set_cookie(
        name,
        value,
        max_age=seconds,
        path=root_of(request) or "/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def go_to(request: Request, path: str) -> Response:
    """Lead the browser to a page of this site: by an answer to the page's script, or by a redirect."""
    address = root_of(request) + path
    return JSONResponse({"next": address}) if wants_json(request) else RedirectResponse(address, 303)


def wants_json(request: Request) -> bool:
    """Whether a program asks, such as the page's script."""
    return "application/json" in request.headers.get("accept", "")


def explain(request: Request, error: PageError) -> Response:
    """The page or the answer that explains an error."""
    headers = {"retry-after": str(int(error.retry_seconds) + 1)} if error.retry_seconds else {}
    message = TEXTS[error.text][language_of(request)]
    if wants_json(request):
        return JSONResponse({"message": message}, error.status, headers)
    if error.status == 401 and request.method == "GET" and request.headers.get("sec-fetch-site") == "cross-site":
        # A browser that comes from another site sends no cookie, although it has one; the page's own reload sends it.
        return page(request, "again")
    response = page(request, "error", error.status, message=message, has_way_back=error.status not in (401, 403))
    response.headers.update(headers)
    return response
