"""One JSON line for each request. Requests and answers are in it only if ``log_content`` asks for them."""

from __future__ import annotations

import os
import time
from pathlib import Path

from launch.serve.exchange import Exchange
from rlhf.errors import UserError
from rlhf.storage.jsonl import to_line


class RequestLog:
    """Appends to a file, a line with one call. A failed write fails no request."""

    def __init__(self, path: Path, has_content: bool) -> None:
        """Open the file, readable by its owner alone if it is new.

        Raises:
            UserError: it cannot be written.
        """
        self._has_content, self._begin = has_content, b""
        try:
            self._file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
        except OSError as error:
            raise UserError(f"the log {path} cannot be written: {error.strerror}", fix="correct the key log") from error

    def write(self, exchange: Exchange) -> bool:
        """Append a request that is over; returns False if the line could not be written, or not all of it."""
        row = {"time": time.time(), **exchange.facts()}
        if self._has_content:
            row["request"] = exchange.request.decode("utf-8", "replace")
            row["answer"] = exchange.raw.decode("utf-8", "replace")
        line = self._begin + to_line(row).encode()
        try:
            written = os.write(self._file, line)
        except OSError:
            return False
        self._begin = b"" if written == len(line) else b"\n"  # a full disk takes a part: the next line begins anew
        return written == len(line)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
