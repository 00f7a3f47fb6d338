"""Replies on disk by a hash of what was asked: a second run asks nothing, and gives the same numbers."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from rlhf.errors import UserError
from rlhf.storage.jsonl import append_line, read_lines


class ReplyCache:
    """An append-only file of JSON lines ``{"key", "content"}``. It holds replies, and no question, address or key.

    Processes may share it: what one keeps, others read when they start. The last line of a key is the valid one.
    """

    def __init__(self, path: Path) -> None:
        """Read the cache; the file need not exist.

        Raises:
            UserError: the file is damaged, or cannot be written.
        """
        is_other = path.exists() and not path.is_file()
        if is_other or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            fix = "name a file in an existing folder"
            raise UserError(f"cache: '{path}' cannot be written", "replies that are paid for would be lost", fix)
        self._path = path
        replies = {str(row.get("key")): row.get("content") for row in read_lines(path)}
        self._replies: dict[str, Any] = {key: content for key, content in replies.items() if content is not None}

    def __len__(self) -> int:
        """Number of replies."""
        return len(self._replies)

    def get(self, key: str) -> Any:
        """The reply to a question; None if it is unknown."""
        return self._replies.get(key)

    def put(self, key: str, content: Any) -> None:
        """Keep a reply; it is in the file on return."""
        append_line(self._path, {"key": key, "content": content}, is_shared=True)
        self._replies[key] = content

    def forget(self, key: str) -> None:
        """Have a question asked again, if its reply is known: a line without content is appended."""
        if key in self._replies:
            append_line(self._path, {"key": key, "content": None}, is_shared=True)
            del self._replies[key]


def content_key(asked: Any) -> str:
    """SHA-256 of JSON values, in hexadecimal; the order of keys does not count."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
