"""Removes keys and passwords from data that leaves the machine."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

HIDDEN = "***"
_NAME = (
    r"(?:(?:api|access|private|secret|ssh|openai|wandb|hf|aws|judge|batch|engine)[_-]?key"
    r"|authorization|password|passwd|secret|credentials?"
    r"|(?<!eos_)(?<!bos_)(?<!pad_)(?<!unk_)(?<!per_)(?<!next_)(?<!stop_)token)"
)
_SECRET_NAME = re.compile(rf"(^|[_-]){_NAME}$", re.IGNORECASE)
_SECRET_OPTION = re.compile(rf"-{{1,2}}(?:[\w-]*[_-])?{_NAME}", re.IGNORECASE)
"""A command-line option whose value is the next word."""
_VALUE = r"(?:\"[^\"]*\"|'[^']*'|[^\s\"'&,)}\]]{3,})"
_ORDINARY = r"(?:[-+.\d]+(?:e[-+]?\d+)?|none|null|true|false|\*\*\*)(?![^\s,;&)}\]#])"
_SECRET_SETTING = re.compile(  # tracking.api_key=…, --token=…, WANDB_API_KEY=…
    rf"((?:^|(?<=[^\w.-]))(?:[\w.-]*[_.-])?{_NAME}=)(?!{_ORDINARY}){_VALUE}", re.IGNORECASE
)
_SECRET_HEADER = re.compile(  # Authorization: Bearer …, X-API-Key: …, {'api_key': …}
    r"(\bauthorization[\"']?\s*:\s*[\"']?(?:[\w-]+[ \t]+(?=[^\s\"']))?"
    r"|\bbearer\s+(?=\S*(?:[\d_-]|\.\S))(?=\S{8})"
    rf"|(?:^|(?<=[^\w-]))(?:[\w-]*[_-])?{_NAME}[\"']?\s*:\s*[\"']?(?=\S*[\d_-])(?=[^\s\"',]{{6}}))"
    r"[^\s\"'`,;)}]+",
    re.IGNORECASE,
)
_SECRET_IN_URL = re.compile(
    r"(?<=://)[^/?#\s]+(?=@)|(?<=[?&;#])([^=&;#?\s]*(?:key|token|passw(?:or)?d|pwd|secret|sig|signature|credentials?|auth|code)=)"
    r"[^&;#\s]+",
    re.IGNORECASE,
)
_SEARCHED_BEYOND = 4096
"""Bytes after an excerpt that are searched too: a secret at its end is whole."""
_SHORTEST_SECRET = 8  # shorter values of such variables ("1", "none") would be found everywhere


def without_secrets(value: Any) -> Any:
    """A copy of a nested configuration in which every secret is replaced by ``***``.

    Secrets are: text under a key with the name of a secret, also within one text (``--token=…``,
    ``Authorization: Bearer …``); credentials within a URL; and, anywhere, the value of an environment variable with the
    name of a secret.
    """
    known = [text for name, text in os.environ.items() if _SECRET_NAME.search(name) and len(text) >= _SHORTEST_SECRET]
    return _hide(value, known)


def excerpt(body: bytes, longest: int, hide: Callable[[str], str] = without_secrets) -> str:
    """The first ``longest`` characters of a service's answer, for a message.

    Secrets are hidden before it is cut, because a part of one would no longer be recognised. What lies far behind is
    left out before: to search megabytes takes minutes.
    """
    return hide(body[: 4 * longest + _SEARCHED_BEYOND].decode("utf-8", errors="replace"))[:longest]


def _hide(value: Any, known: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if isinstance(item, str) and _SECRET_NAME.search(str(key)) else _hide(item, known)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [
            HIDDEN if isinstance(item, str) and _is_option(before) else _hide(item, known)
            for before, item in zip((None, *value), value)
        ]
    return _hide_in_text(value, known) if isinstance(value, str) else value


def _is_option(word: Any) -> bool:
    return isinstance(word, str) and _SECRET_OPTION.fullmatch(word) is not None


def _hide_in_text(text: str, known: list[str]) -> str:
    for secret in known:
        text = text.replace(secret, HIDDEN)
    for pattern in (_SECRET_IN_URL, _SECRET_SETTING, _SECRET_HEADER):
        text = pattern.sub(lambda match: (match.group(1) or "") + HIDDEN, text)
    return text
