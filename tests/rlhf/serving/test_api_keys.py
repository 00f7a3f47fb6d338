"""API keys: only a hash is stored, names are unique, a revoked key is gone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.serving.api_keys import add_key, read_keys, require_keys, revoke_key


def test_a_key_is_known_by_its_hash_and_stored_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    first, second = add_key(file, "app"), add_key(file, "other")
    keys = read_keys(file)
    assert (keys.owner(first), keys.owner(second), keys.owner(first + "x"), keys.owner("")) == (
        "app",
        "other",
        None,
        None,
    )
    assert keys.owner("\ud800") is None
    assert len(first) > 40
    text = file.read_text()
    assert first not in text
    assert first.removeprefix("rlhf-") not in text
    assert file.stat().st_mode & 0o777 == 0o600
    revoke_key(file, "app")
    assert (read_keys(file).owner(first), read_keys(file).owner(second)) == (None, "other")


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    with pytest.raises(UserError, match="has no key"):
        read_keys(file)
    add_key(file, "app")
    for name in ("app", "", "a b", "x" * 61):
        with pytest.raises(UserError):
            add_key(file, name)
    with pytest.raises(UserError, match="has no key other"):
        revoke_key(file, "other")
    file.write_text('{"name": "app", "sha256": "secret"}\n')
    with pytest.raises(UserError, match="keys.jsonl:1 is no key"):
        read_keys(file)
    with pytest.raises(UserError, match="cannot be written"):
        add_key(tmp_path / "none" / "keys.jsonl", "app")


def test_a_file_without_keys_is_read_and_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    key = add_key(file, "app")
    revoke_key(file, "app")
    assert read_keys(file).owner(key) is None
    with pytest.raises(UserError, match="has no key"):
        require_keys(file)


def test_a_last_line_without_a_line_break_is_a_key_too(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    key = add_key(file, "app")
    file.write_text(file.read_text().rstrip("\n"))
    assert read_keys(file).owner(key) == "app"
    add_key(file, "other")
    assert read_keys(file).owner(key) == "app"


def test_commands_at_the_same_time_lose_no_key(tmp_path: Path) -> None:
    file, names = tmp_path / "keys.jsonl", [f"app-{number}" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda name: add_key(file, name), names))
    assert [read_keys(file).owner(key) for key in keys] == names
