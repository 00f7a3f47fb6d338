"""Access tokens of raters, adjudicators, administrators and services: signed, with an expiry, one for each alias.

A token is ``payload.signature`` in URL-safe base64: a JSON object with project, alias, role, expiry and serial, and its
HMAC-SHA256. The key is in the project's file and not beside it: a project that is moved or restored from its backup
keeps its links, and a person who can write the file needs no token to change votes. Exports hold no key.

The serial is random and stored for each alias, so that a new token, or the rater's deletion, revokes the old one, also
if the alias is used again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import sqlite3
from dataclasses import asdict, dataclass
from enum import StrEnum

from rlhf.errors import UserError
from rlhf.feedback.audit import record
from rlhf.feedback.encoding import canonical
from rlhf.feedback.rater_table import rater_row, require_alias
from rlhf.feedback.store import Store

LONGEST_TOKEN = 1024
"""Longer texts are refused unread."""


class AccessRole(StrEnum):
    """What the holder of a token may do."""

    RATER = "rater"
    """Label items."""
    ADJUDICATOR = "adjudicator"
    """Decide items whose raters disagree."""
    ADMIN = "admin"
    """See progress and quality; labels nothing."""
    SERVICE = "service"
    """A program that sends thumbs from production; sees nothing."""


class TokenFault(StrEnum):
    """Why a token is refused."""

    MALFORMED = "malformed"
    OTHER_PROJECT = "other_project"
    TAMPERED = "tampered"
    EXPIRED = "expired"
    REVOKED = "revoked"


class TokenError(UserError):
    """A token is refused."""

    def __init__(self, fault: TokenFault) -> None:
        super().__init__(*_MESSAGES[fault])
        self.fault = fault

    def __reduce__(self) -> tuple[type[TokenError], tuple[TokenFault]]:
        return TokenError, (self.fault,)


_NEW_LINK = "ask for a new link"
_MESSAGES = {
    TokenFault.MALFORMED: ("the link is incomplete", "it holds no token", "copy the whole link"),
    TokenFault.OTHER_PROJECT: ("the link belongs to another project", "", _NEW_LINK),
    TokenFault.TAMPERED: ("the link was changed", "its signature does not match", "copy the whole link"),
    TokenFault.EXPIRED: ("the link has expired", "", _NEW_LINK),
    TokenFault.REVOKED: ("the link is no longer valid", "a newer one was made, or access was removed", _NEW_LINK),
}


@dataclass(frozen=True, kw_only=True)
class Access:
    """The content of a valid token."""

    alias: str
    role: AccessRole
    expires: int
    """Unix time in seconds."""


@dataclass(frozen=True, kw_only=True)
class _Payload:
    """What a token's signature covers."""

    project: str
    alias: str
    role: str
    expires: int
    serial: str


_TYPES = {"project": str, "alias": str, "role": str, "expires": int, "serial": str}


def issue_token(store: Store, alias: str, role: AccessRole, *, seconds: float, now: float) -> str:
    """Make a token for an alias, valid for ``seconds`` from ``now``; an earlier token of the alias becomes invalid.

    A rater or adjudicator is in the project before; an administrator or a service needs no entry there.

    Raises:
        UserError: there is no such rater, or the rater is imported or has another role; or the alias is malformed.
    """
    with store.writing() as db:
        _require_role(db, alias, role)
        serial = secrets.token_urlsafe(9)
        db.execute("INSERT OR REPLACE INTO access VALUES (?, ?, ?)", (alias, role, serial))
        record(db, store.clock(), "token issued", alias=alias, detail=role)
        meta = _meta(db)
    payload = _Payload(project=meta["project"], alias=alias, role=role, expires=int(now + seconds), serial=serial)
    text = _encode(canonical(asdict(payload)).encode())
    return f"{text}.{_encode(_sign(meta['secret'], text))}"


def revoke_token(store: Store, alias: str) -> bool:
    """Make the token of an alias invalid; False if it has none."""
    with store.writing() as db:
        is_removed = db.execute("DELETE FROM access WHERE alias = ?", (alias,)).rowcount > 0
        if is_removed:
            record(db, store.clock(), "token revoked", alias=alias)
    return is_removed


def verify_token(store: Store, token: str, now: float) -> Access:
    """Check a token and return its content. A suspended rater's token stays valid; voting is refused elsewhere.

    Raises:
        TokenError: the token is malformed, of another project, tampered with, expired or revoked.
    """
    text, payload, signature = _parse(token)
    with store.reading() as db:
        meta = _meta(db)
        row = db.execute("SELECT serial FROM access WHERE alias = ?", (payload.alias,)).fetchone()
    if payload.project != meta["project"]:
        raise TokenError(TokenFault.OTHER_PROJECT)
    if not hmac.compare_digest(_sign(meta["secret"], text), signature):
        raise TokenError(TokenFault.TAMPERED)
    if payload.expires <= now:
        raise TokenError(TokenFault.EXPIRED)
    if row is None or row["serial"] != payload.serial:
        raise TokenError(TokenFault.REVOKED)
    return Access(alias=payload.alias, role=AccessRole(payload.role), expires=payload.expires)


def derive_key(store: Store, use: str) -> bytes:
    """A key of 32 bytes, derived from the project's secret for one use, such as the page's forms."""
    with store.reading() as db:
        secret = _meta(db)["secret"]
    return _sign(secret, f"key for {use}")  # no token's text holds a space


def _require_role(db: sqlite3.Connection, alias: str, role: AccessRole) -> None:
    if role in (AccessRole.ADMIN, AccessRole.SERVICE):
        if db.execute("SELECT 1 FROM raters WHERE alias = ?", (alias,)).fetchone():
            raise UserError(f"{alias} is a rater, and gets no token as {role}", "", "use another alias")
        return require_alias(alias, is_imported=False)
    rater = rater_row(db, alias)
    if rater["is_imported"] or bool(rater["is_adjudicator"]) != (role == AccessRole.ADJUDICATOR):
        kind = "imported" if rater["is_imported"] else "an adjudicator" if rater["is_adjudicator"] else "a rater"
        raise UserError(f"{alias} is {kind}, and gets no token as {role}", "", "use another alias, or the right role")
    return None


def _meta(db: sqlite3.Connection) -> dict[str, str]:
    return {row["key"]: row["value"] for row in db.execute("SELECT key, value FROM meta")}


def _sign(secret: str, text: str) -> bytes:
    return hmac.new(bytes.fromhex(secret), text.encode(), hashlib.sha256).digest()


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _parse(token: str) -> tuple[str, _Payload, bytes]:
    """The signed text, its content, whose types are checked, and the signature."""
    text, _, signature = token.partition(".")
    try:
        payload = json.loads(_decode(text)) if len(token) <= LONGEST_TOKEN else None
        decoded = _decode(signature)
        json.dumps(payload, ensure_ascii=False).encode()  # SQLite takes no half of a surrogate pair
    except (ValueError, binascii.Error, RecursionError) as error:
        raise TokenError(TokenFault.MALFORMED) from error
    if not isinstance(payload, dict) or {key: type(value) for key, value in payload.items()} != _TYPES:
        raise TokenError(TokenFault.MALFORMED)
    return text, _Payload(**payload), decoded
