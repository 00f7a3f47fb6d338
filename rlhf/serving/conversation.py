"""Which conversations a canary answers: a share of them, chosen by a hash, so that a conversation keeps its model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_HASHED_BITS = 64


def conversation_key(header: str, body: Mapping[str, Any]) -> str:
    """Identify a conversation: by the header ``X-Conversation-Id``, else the field ``user``, else by its beginning.

    The beginning is everything up to the first user message, which later turns repeat. Different conversations with the
    same beginning share a key, and with it the model.
    """
    if header:
        return f"header:{header}"
    if isinstance(user := body.get("user"), str) and user:
        return f"user:{user}"
    start: Any = body.get("prompt")
    if isinstance(messages := body.get("messages"), list):
        roles = [turn.get("role") if isinstance(turn, Mapping) else None for turn in messages]
        start = messages[: roles.index("user") + 1 if "user" in roles else 1]
    text = json.dumps(start, sort_keys=True, ensure_ascii=True)
    return f"start:{hashlib.sha256(text.encode()).hexdigest()}"


def is_in_share(salt: str, key: str, share: float) -> bool:
    """Whether a conversation belongs to the share.

    Args:
        salt: of one canary; another salt draws other conversations. A larger share contains every smaller one's.
        share: fraction of all conversations, from 0 to 1.
    """
    digest = hashlib.sha256(f"{salt}\0{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[: _HASHED_BITS // 8]) < share * 2**_HASHED_BITS
