"""Errors of one request, which a page or a JSON answer explains in the visitor's language."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PageError(Exception):
    """A request that cannot be served."""

    status: int
    """Status of HTTP."""
    text: str
    """Name of the text that explains it, see ``texts.py``."""
    retry_seconds: float = 0.0
    """After how long the request may be tried again; 0 if it need not wait."""
