"""The guidelines' page and panel, and their acknowledgement."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, Response

from launch.feedback.errors import PageError
from launch.feedback.examples import guidelines_html
from launch.feedback.labelling import must_acknowledge
from launch.feedback.render import render
from launch.feedback.responses import go_to, language_of, page
from launch.feedback.site import site_of
from launch.feedback.visitors import Rater, check_form

router = APIRouter()


@router.get("/guidelines")
def guidelines(request: Request, rater: Rater, panel: bool = False) -> Response:
    """The newest guidelines: as a page, or as a piece of HTML for the panel beside a comparison."""
    newest, language = site_of(request).store.guideline(), language_of(request)
    shown: dict[str, Any] = {"version": None, "html": ""}
    if newest is not None:
        shown = {"version": newest.version, "html": guidelines_html(newest.markdown, language)}
    if panel:
        return HTMLResponse(render("panel", language, **shown))
    is_new = must_acknowledge(site_of(request).store, rater.alias)
    return page(request, "guidelines", csrf=rater.csrf, must_acknowledge=is_new, **shown)


@router.post("/acknowledge")
def acknowledge(
    request: Request, rater: Rater, csrf: Annotated[str, Form()], version: Annotated[int, Form()]
) -> Response:
    """Record that the rater has read a version, which is the newest one."""
    check_form(request, rater, csrf)
    store = site_of(request).store
    newest = store.guideline()
    if newest is None or newest.version != version:  # a newer one came while the page was read
        raise PageError(409, "error_stale")
    store.acknowledge(rater.alias, version)
    return go_to(request, "/")
