"""The administrator's status page, and the same as JSON."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from launch.feedback.responses import page
from launch.feedback.site import site_of
from launch.feedback.status_tables import Table, as_json, read_status
from launch.feedback.visitors import Admin

router = APIRouter()


@router.get("/status")
def status(request: Request, admin: Admin) -> Response:
    """Progress, raters, agreement and flags."""
    return page(request, "status", tables=_tables(request))


@router.get("/status.json")
def status_json(request: Request, admin: Admin) -> Response:
    """The tables of the page, by name."""
    return JSONResponse(as_json(_tables(request)))


def _tables(request: Request) -> list[Table]:
    site = site_of(request)
    return read_status(site.store, site.status_sources)
