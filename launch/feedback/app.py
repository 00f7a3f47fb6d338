"""Builds the labelling page's application from its parts."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from launch.feedback import guidelines, labelling, practice, status, thumbs, visitors
from launch.feedback.errors import PageError
from launch.feedback.guard import Application, Guard
from launch.feedback.render import FOLDER
from launch.feedback.responses import explain, go_to
from launch.feedback.site import Site
from rlhf.feedback.access import AccessRole

LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")


def create_app(site: Site, hosts: Collection[str] = LOCAL_HOSTS) -> Application:
    """The application of a project.

    Args:
        hosts: names that the header ``Host`` may give.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.site = site
    app.mount("/static", StaticFiles(directory=FOLDER / "static"))
    for room in (labelling, practice, guidelines, status, thumbs):
        app.include_router(room.router)
    app.add_api_route("/enter", enter, response_model=None)
    app.add_exception_handler(PageError, _on_page_error)
    app.add_exception_handler(RequestValidationError, _on_wrong_input)
    app.add_exception_handler(404, _on_unknown_path)
    app.add_exception_handler(405, _on_unknown_path)
    return Guard(cast(Application, app), hosts=hosts)


def enter(request: Request, token: str = "") -> Response:
    """Keep the token of a link in a cookie, and lead on to an address without it."""
    access = visitors.enter(request, token)
    response = go_to(request, "/status" if access.role is AccessRole.ADMIN else "/")
    visitors.keep(request, response, token, access)
    return response


def _on_page_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PageError)
    return explain(request, error)


def _on_wrong_input(request: Request, error: Exception) -> Response:
    """A program learns which fields are wrong; their values, which may be personal, are not repeated."""
    assert isinstance(error, RequestValidationError)
    if not request.headers.get("content-type", "").startswith("application/json"):
        return explain(request, PageError(422, "error_input"))
    fields = [{"field": ".".join(map(str, each["loc"][1:])), "problem": each["msg"]} for each in error.errors()]
    return JSONResponse({"message": "the body is not as expected", "problems": fields}, 422)


def _on_unknown_path(request: Request, error: Exception) -> Response:
    return explain(request, PageError(getattr(error, "status_code", 404), "error_not_found"))
