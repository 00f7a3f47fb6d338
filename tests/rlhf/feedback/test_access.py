"""Tokens: what they say, when they are refused, and how they are revoked."""

from __future__ import annotations

import base64
import hmac
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.feedback.access import Access, AccessRole, TokenError, TokenFault, issue_token, revoke_token, verify_token
from rlhf.feedback.store import Store
from tests.rlhf.feedback.projects import NOW, project


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with project(tmp_path, [], "ann", "ben") as opened:
        opened.add_rater("judge", is_adjudicator=True)
        opened.add_rater("file:1", is_imported=True)
        yield opened


def issued(store: Store, alias: str = "ann", role: AccessRole = AccessRole.RATER) -> str:
    return issue_token(store, alias, role, seconds=60, now=NOW)


def fault(store: Store, token: str, now: float = NOW) -> TokenFault:
    with pytest.raises(TokenError) as caught:
        verify_token(store, token, now)
    return caught.value.fault


def encoded(payload: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(payload).encode()).decode().rstrip("=")


def decoded(token: str) -> dict[str, object]:
    text = token.partition(".")[0]
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def test_a_token_says_who_holds_it_until_it_expires(store: Store) -> None:
    for alias, role in (("ann", AccessRole.RATER), ("judge", AccessRole.ADJUDICATOR), ("boss", AccessRole.ADMIN)):
        token = issued(store, alias, role)
        assert verify_token(store, token, NOW + 59) == Access(alias=alias, role=role, expires=1060)
        assert fault(store, token, NOW + 60) == TokenFault.EXPIRED


def test_the_signature_is_hmac_sha256_of_the_payload(store: Store) -> None:
    text, _, signature = issued(store).partition(".")
    with store.connection() as db:
        key = bytes.fromhex(db.execute("SELECT value FROM meta WHERE key = 'secret'").fetchone()[0])
    assert len(key) == 32
    expected = base64.urlsafe_b64encode(hmac.digest(key, text.encode(), "sha256")).decode().rstrip("=")
    assert signature == expected


def test_a_changed_token_is_refused(store: Store) -> None:
    text, _, signature = issued(store).partition(".")
    payload = decoded(text)
    for change in ({"alias": "ben"}, {"role": "admin"}, {"expires": 99_999}, {"serial": "x"}):
        assert fault(store, f"{encoded({**payload, **change})}.{signature}") == TokenFault.TAMPERED
    assert fault(store, f"{text}.{'A' * 43}") == TokenFault.TAMPERED
    assert fault(store, f"{text}.") == TokenFault.TAMPERED


@pytest.mark.parametrize(
    "token",
    ["", ".", "a.b", "é.é", "e30.AAAA", encoded([1]) + ".AAAA", "A" * 2000 + ".AAAA", encoded({"alias": 1}) + ".A"],
)
def test_a_text_that_is_no_token_is_refused(store: Store, token: str) -> None:
    assert fault(store, token) == TokenFault.MALFORMED


def test_a_payload_with_another_field_or_type_is_refused(store: Store) -> None:
    token = issued(store)
    signature = token.partition(".")[2]
    for change in ({"expires": "9"}, {"expires": True}, {"more": 1}, {"alias": None}):
        assert fault(store, f"{encoded({**decoded(token), **change})}.{signature}") == TokenFault.MALFORMED


def test_another_projects_token_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with project(tmp_path / "other", [], "ann") as other:
        assert fault(store, issued(other)) == TokenFault.OTHER_PROJECT


def test_a_new_token_a_revocation_and_a_deletion_revoke(store: Store) -> None:
    first = issued(store)
    second = issued(store)
    assert fault(store, first) == TokenFault.REVOKED
    assert verify_token(store, second, NOW).alias == "ann"
    assert revoke_token(store, "ann")
    assert not revoke_token(store, "ann")
    assert fault(store, second) == TokenFault.REVOKED
    third = issued(store)
    store.delete_rater("ann")
    assert fault(store, third) == TokenFault.REVOKED
    store.add_rater("ann")
    issued(store)
    assert fault(store, third) == TokenFault.REVOKED


def test_tokens_survive_a_move_and_a_backup(store: Store, tmp_path: Path) -> None:
    token = issued(store)
    store.backup(tmp_path / "copy.db")
    with Store.open(tmp_path / "copy.db") as copy:
        assert verify_token(copy, token, NOW).alias == "ann"


def test_a_token_needs_a_rater_of_its_role(store: Store) -> None:
    for alias, role, message in (
        ("eve", AccessRole.RATER, "no rater 'eve'"),
        ("ann", AccessRole.ADJUDICATOR, "ann is a rater"),
        ("judge", AccessRole.RATER, "judge is an adjudicator"),
        ("file:1", AccessRole.RATER, "file:1 is imported"),
        ("a@b", AccessRole.ADMIN, "no alias"),
    ):
        with pytest.raises(UserError, match=message):
            issued(store, alias, role)


def test_a_refusal_says_what_to_do_and_survives_pickling() -> None:
    error = TokenError(TokenFault.EXPIRED)
    assert "ask for a new link" in str(error)
    assert pickle.loads(pickle.dumps(error)).fault == TokenFault.EXPIRED
