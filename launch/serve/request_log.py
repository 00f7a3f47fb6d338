"""One JSON line for each request. Requests and answers are in it only if ``log_content`` asks for them."""

from __future__ import annotations

import os
import time
from pathlib import Path

from launch.serve.exchange import Exchange
from rlhf.errors import UserError
from rlhf.storage.jsonl import to_line


class RequestLog:
    """Appends to a file; a failed write is counted, and fails no request."""

    def __init__(self, path: Path, has_content: bool) -> None:
        """Open the file, readable by its owner alone if it is new.

        Raises:
            UserError: it cannot be written.
        """
        self._has_content, self.failed = has_content, 0
        try:
            self._file = os.fdopen(os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600), "a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"the log {path} cannot be written: {error.strerror}", fix="correct the key log") from error

    def write(self, exchange: Exchange) -> None:
        """Append a request that is over."""
        row = {"time": time.time(), **exchange.facts()}
        if self._has_content:
            row["request"] = exchange.request.decode("utf-8", "replace")
            row["answer"] = exchange.raw.decode("utf-8", "replace")
        try:
            self._file.write(to_line(row))
            self._file.flush()
        except OSError:
            self.failed += 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()
