"""Checks of credentials, W&B's key and Ray's token: their presence and permissions, never their content."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.doctor.findings import Finding, failed, not_applicable, ok, warning
from rlhf.config.schema import TrackingConfig
from rlhf.errors import UserError
from rlhf.tracking.wandb_run import key_is_configured, resolve_mode

NEW_TOKEN = (
    "`umask 077; ray get-auth-token --generate > /dev/null`, then copy ~/.ray/auth_token to every node, mode 0600"
)


@dataclass(frozen=True, kw_only=True)
class Login:
    """W&B's mode and key on this machine."""

    mode: str
    """``online``, ``offline`` or ``disabled``; empty if the recipe's setting is impossible here."""
    has_key: bool = False
    problem: str = ""
    fix: str = ""


def gather_login(config: TrackingConfig) -> Login:
    """Resolve ``tracking.wandb`` without contacting a server."""
    try:
        return Login(mode=resolve_mode(config), has_key=key_is_configured())
    except UserError as error:
        return Login(mode="", problem=error.what, fix=error.fix)


def check_login(facts: Login) -> Finding:
    """Check that W&B supports the recipe's setting."""
    key = "a key is configured" if facts.has_key else "no key is configured"
    if facts.problem:
        return failed(facts.problem, facts.fix)
    if facts.mode == "disabled":
        return not_applicable("tracking.wandb is disabled")
    if facts.mode == "offline":
        return ok(f"offline, {key}; `wandb sync` uploads a run later")
    return ok(f"online, {key}")


@dataclass(frozen=True, kw_only=True)
class Token:
    """Ray's token authentication, as a process on this machine would find it."""

    mode: str
    """``RAY_AUTH_MODE`` in lower case; empty if unset."""
    source: str
    """``RAY_AUTH_TOKEN``, or the path of the file; empty without a token."""
    permissions: int | None = None
    """Permission bits of the file."""
    is_own: bool = True
    """Whether the file belongs to this user."""
    is_empty: bool = False
    is_shielded: bool = False
    """Whether the file is in a folder that only its owner can enter."""


def gather_token(environment: Mapping[str, str] = os.environ, home: Path | None = None) -> Token:
    """Find Ray's token in the order in which Ray searches it."""
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    if environment.get("RAY_AUTH_TOKEN"):
        return Token(mode=mode, source="RAY_AUTH_TOKEN")
    given = environment.get("RAY_AUTH_TOKEN_PATH")
    file = Path(given).expanduser() if given else (home or Path.home()) / ".ray" / "auth_token"
    try:
        found = file.stat()
    except FileNotFoundError:
        return Token(mode=mode, source="")
    return Token(
        mode=mode,
        source=str(file),
        permissions=stat.S_IMODE(found.st_mode),
        is_own=found.st_uid == os.getuid(),
        is_empty=not found.st_size,
        is_shielded=any(not folder.stat().st_mode & 0o011 for folder in file.absolute().parents),
    )


def check_token(facts: Token, in_cluster: bool) -> Finding:
    """Check that Ray requires a token, that it exists, and that others cannot read it.

    Args:
        in_cluster: whether this node is part of a running cluster; otherwise Ray listens on 127.0.0.1 only.
    """
    if facts.mode == "disabled":
        found = "RAY_AUTH_MODE=disabled: everyone who reaches a port of Ray can run code as you"
        return warning(found, "unset it, or RAY_AUTH_MODE=token, on every node before Ray starts")
    if not facts.source:
        return _no_token_finding(facts.mode, in_cluster)
    if facts.is_empty:
        return failed(f"{facts.source} is empty", NEW_TOKEN)
    if not facts.is_own:
        return failed(f"{facts.source} belongs to another user", "chown it to the user that runs Ray")
    if facts.permissions is not None and facts.permissions & 0o077:
        found = f"{facts.source} has mode {facts.permissions:04o}"
        if facts.is_shielded:
            return warning(f"{found}, in a folder that only its owner can enter", f"chmod 600 {facts.source}")
        return failed(f"{found}: others on this machine can read it", f"chmod 600 {facts.source}")
    return ok(f"from {facts.source}" + ("" if facts.permissions is None else f", mode {facts.permissions:04o}"))


def _no_token_finding(mode: str, in_cluster: bool) -> Finding:
    if mode == "token":
        return failed("RAY_AUTH_MODE=token, and there is no token", NEW_TOKEN)
    if in_cluster:
        found = "no token: everyone who reaches a port of Ray can run code as you"
        return warning(found, f"RAY_AUTH_MODE=token on every node before Ray starts; {NEW_TOKEN}")
    return ok("none yet; a run on this machine alone creates one, mode 0600")
