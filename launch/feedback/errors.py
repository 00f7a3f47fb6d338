"""Errors of one request, which a page or a JSON answer explains in the visitor's language."""

from __future__ import annotations


class PageError(Exception):
    """A request that cannot be served.

    Args:
        status: status of HTTP.
        text: name of the text that explains it, see ``texts.py``.
        retry_seconds: after how long the request may be tried again; 0 if it need not wait.
    """

    def __init__(self, status: int, text: str, retry_seconds: float = 0.0) -> None:
        super().__init__(status, text, retry_seconds)
        self.status, self.text, self.retry_seconds = status, text, retry_seconds
