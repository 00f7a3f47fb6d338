"""API keys of the gateway: 256 random bits each, of which the file holds only SHA-256.

A plain hash is enough for a random key: nobody can guess 256 bits, so that there is nothing for a slow hash to slow.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import UserError
from rlhf.storage.durable import write_atomically
from rlhf.storage.jsonl import read_lines, to_line

PREFIX = "rlhf-"
"""Begins every key, so that scanners for leaked secrets can find it."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,60}")
_HASH = re.compile(r"[0-9a-f]{64}")


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
    """Read a file of keys.

    Raises:
        UserError: it is missing, holds no key, or is damaged.
    """
    keys = _read(path)
    if not keys:
        raise UserError(f"{path} has no key", "every request needs one", "rlhf serve GATEWAY.yaml --new-key NAME")
    return ApiKeys(hashes=keys)


def add_key(path: Path, name: str) -> str:
    """Make a key, append its hash to the file, and return it: it cannot be read again.

    Raises:
        UserError: the name is malformed or taken.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"--new-key {name!r} is no name", fix="use up to 60 letters, digits, dots, dashes, underscores")
    keys = _read(path)
    if name in keys:
        raise UserError(f"{path} has a key {name}", "a name has one key", f"--revoke-key {name} removes it")
    key = PREFIX + secrets.token_urlsafe(32)
    _write(path, {**keys, name: _hash(key)})
    return key


def revoke_key(path: Path, name: str) -> None:
    """Remove a key from the file.

    Raises:
        UserError: there is no such key.
    """
    keys = _read(path)
    if name not in keys:
        raise UserError(f"{path} has no key {name}", fix=f"name one of {', '.join(keys) or 'none'}")
    _write(path, {other: known for other, known in keys.items() if other != name})


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path) -> dict[str, str]:
    keys: dict[str, str] = {}
    for number, row in enumerate(read_lines(path), start=1):
        name, known = row.get("name"), row.get("sha256")
        if not isinstance(name, str) or not isinstance(known, str) or not _HASH.fullmatch(known):
            raise UserError(f"{path}:{number} is no key", "a line has name and sha256", "remove the line")
        keys[name] = known
    return keys


def _write(path: Path, keys: Mapping[str, str]) -> None:
    """Replace the file; readable by its owner alone."""
    before = os.umask(0o077)
    try:
        write_atomically(path, "".join(to_line({"name": name, "sha256": known}) for name, known in keys.items()))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", fix="correct the key keys") from error
    finally:
        os.umask(before)
