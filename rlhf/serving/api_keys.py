"""API keys of the gateway: 256 random bits each, of which the file holds only SHA-256.

A plain hash is enough for a random key: nobody can guess 256 bits, so that there is nothing for a slow hash to slow.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import UserError
from rlhf.storage.durable import write_atomically
from rlhf.storage.jsonl import given_rows, to_line
from rlhf.storage.locking import sole_writer

PREFIX = "rlhf-"
"""Begins every key, so that scanners for leaked secrets can find it."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,60}")
_HASH = re.compile(r"[0-9a-f]{64}")
MAKE_ONE = "rlhf serve GATEWAY.yaml --new-key NAME"


@dataclass(frozen=True, kw_only=True)
class ApiKeys:
    """Hash of each key, by name."""

    hashes: Mapping[str, str]

    def owner(self, key: str) -> str | None:
        """Name of a key; None if it is unknown. Takes the same time for every key: all hashes are compared."""
        found, given = None, _hash(key)
        for name, known in self.hashes.items():
            if hmac.compare_digest(known, given):
                found = name
        return found


def read_keys(path: Path) -> ApiKeys:
    """Read a file of keys. It may hold none: a gateway whose last key was revoked refuses every request.

    Raises:
        UserError: it is missing or damaged.
    """
    if not path.exists():
        raise UserError(f"{path} has no key", "there is no such file", MAKE_ONE)
    return ApiKeys(hashes=_read(path))


def require_keys(path: Path) -> ApiKeys:
    """Read a file of keys that holds at least one.

    Raises:
        UserError: it is missing, holds no key, or is damaged.
    """
    keys = read_keys(path)
    if not keys.hashes:
        raise UserError(f"{path} has no key", "every request needs one", MAKE_ONE)
    return keys


def add_key(path: Path, name: str) -> str:
    """Make a key, append its hash to the file, and return it: it cannot be read again.

    Raises:
        UserError: the name is malformed or taken.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"--new-key {name!r} is no name", fix="use up to 60 letters, digits, dots, dashes, underscores")
    key = PREFIX + secrets.token_urlsafe(32)
    with _changing(path) as keys:
        if name in keys:
            raise UserError(f"{path} has a key {name}", "a name has one key", f"--revoke-key {name} removes it")
        keys[name] = _hash(key)
    return key


def revoke_key(path: Path, name: str) -> None:
    """Remove a key from the file.

    Raises:
        UserError: there is no such key.
    """
    with _changing(path) as keys:
        if name not in keys:
            raise UserError(f"{path} has no key {name}", fix=f"name one of {', '.join(keys) or 'none'}")
        del keys[name]


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path) -> dict[str, str]:
    keys: dict[str, str] = {}
    for number, row in given_rows(_content(path), path):
        name, known = row.get("name"), row.get("sha256")
        if not isinstance(name, str) or not isinstance(known, str) or not _HASH.fullmatch(known):
            raise UserError(f"{path}:{number} is no key", "a line has name and sha256", "remove the line")
        keys[name] = known
    return keys


def _content(path: Path) -> bytes:
    """Of a file that may be missing: the first key makes it."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", fix="correct the key keys") from error


@contextmanager
def _changing(path: Path) -> Iterator[dict[str, str]]:
    """Context with the keys; what it changes replaces the file, readable by its owner alone.

    Raises:
        UserError: the file is damaged or cannot be written.
    """
    try:
        with sole_writer(path.parent):
            keys = _read(path)
            yield keys
            before = os.umask(0o077)
            try:
                write_atomically(path, "".join(to_line({"name": name, "sha256": keys[name]}) for name in keys))
            finally:
                os.umask(before)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", fix="correct the key keys") from error
