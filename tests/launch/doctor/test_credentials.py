"""W&B's key and Ray's token are never shown, and are checked for permissions."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.doctor.credentials import Login, Token, check_login, check_token, gather_login, gather_token
from rlhf.config.schema import TrackingConfig

SECRET = "0123456789abcdef" * 2


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".ray").mkdir()
    return tmp_path


def token_file(home: Path, mode: int, text: str = SECRET) -> Path:
    file = home / ".ray" / "auth_token"
    file.write_text(text)
    file.chmod(mode)
    return file


def test_a_token_that_only_its_owner_reads(home: Path) -> None:
    file = token_file(home, 0o600)
    found = check_token(gather_token({"RAY_AUTH_MODE": "TOKEN"}, home), in_cluster=True)
    assert (found.status, found.found) == ("ok", f"from {file}, mode 0600")


def test_a_token_that_others_may_read(home: Path) -> None:
    facts = gather_token({}, home)
    assert facts == Token(mode="", source="")
    file = token_file(home, 0o644)
    assert gather_token({}, home).permissions == 0o644
    shielded, open_to_all = (
        Token(mode="", source=str(file), permissions=0o644, is_shielded=shielded) for shielded in (True, False)
    )
    assert check_token(shielded, in_cluster=False).status == "warning"
    found = check_token(open_to_all, in_cluster=False)
    assert (found.status, found.fix) == ("failed", f"chmod 600 {file}")


@pytest.mark.parametrize("permissions", [0o640, 0o620, 0o604, 0o666])
def test_a_token_is_for_its_owner_alone(permissions: int) -> None:
    """As ssh demands of a private key: neither its group nor anybody else has any right."""
    token = Token(mode="", source="somewhere/auth_token", permissions=permissions)
    assert check_token(token, in_cluster=False).status == "failed"


def test_a_folder_that_only_its_owner_enters_shields_what_is_in_it(home: Path) -> None:
    token_file(home, 0o644)
    (home / ".ray").chmod(0o700)
    assert gather_token({}, home).is_shielded


def test_the_environment_comes_before_the_file_and_is_never_shown(home: Path) -> None:
    token_file(home, 0o644)
    facts = gather_token({"RAY_AUTH_TOKEN": SECRET}, home)
    assert facts.source == "RAY_AUTH_TOKEN" and SECRET not in repr(facts)
    assert check_token(facts, in_cluster=True).status == "ok"
    path = home / "elsewhere"
    path.write_text("")
    empty = gather_token({"RAY_AUTH_TOKEN_PATH": str(path)}, home)
    assert (empty.source, check_token(empty, in_cluster=True).status) == (str(path), "failed")


@pytest.mark.parametrize(
    ("facts", "in_cluster", "status"),
    [
        (Token(mode="token", source=""), False, "failed"),
        (Token(mode="", source=""), True, "warning"),
        (Token(mode="", source=""), False, "ok"),
        (Token(mode="disabled", source="RAY_AUTH_TOKEN"), True, "warning"),
        (Token(mode="token", source="/a", permissions=0o600, is_own=False), True, "failed"),
    ],
)
def test_modes(facts: Token, in_cluster: bool, status: str) -> None:
    found = check_token(facts, in_cluster)
    assert found.status == status and bool(found.fix) == (status != "ok")


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        (Login(mode="online", has_key=True), "ok"),
        (Login(mode="offline"), "ok"),
        (Login(mode="disabled"), "not applicable"),
        (Login(mode="", problem="W&B is to be online", fix="run `wandb login`"), "failed"),
    ],
)
def test_wandb(facts: Login, status: str) -> None:
    assert check_login(facts).status == status


def test_online_without_a_key_is_refused_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    found = check_login(gather_login(TrackingConfig(wandb="online")))
    assert found.status == "failed" and "wandb login" in found.fix
    assert gather_login(TrackingConfig(wandb="offline")).mode == "offline"
