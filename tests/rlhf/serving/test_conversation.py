"""Which conversations a canary gets: the same ones always, a share of the size that was asked for."""

from __future__ import annotations

from rlhf.serving.conversation import conversation_key, is_in_share

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


def test_a_conversation_is_named_by_header_then_user_then_its_beginning() -> None:
    body = {"messages": TURNS, "user": "ann"}
    assert conversation_key("c-1", body) == "header:c-1"
    assert conversation_key("", body) == "user:ann"
    start = conversation_key("", {"messages": TURNS})
    later = [*TURNS, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "More"}]
    assert conversation_key("", {"messages": later, "temperature": 1}) == start
    assert conversation_key("", {"messages": [TURNS[0], {"role": "user", "content": "Ho"}]}) != start


def test_odd_bodies_have_a_key_too() -> None:
    for body in ({}, {"messages": []}, {"messages": ["x", 3]}, {"prompt": [1, 2]}, {"prompt": "\ud800"}, {"user": 3}):
        assert is_in_share("salt", conversation_key("", body), 1.0)
        assert not is_in_share("salt", conversation_key("", body), 0.0)


def test_the_share_is_of_its_size_grows_with_itself_and_depends_on_the_salt() -> None:
    keys = [f"header:{number}" for number in range(20_000)]
    small = {key for key in keys if is_in_share("a", key, 0.05)}
    large = {key for key in keys if is_in_share("a", key, 0.2)}
    other = {key for key in keys if is_in_share("b", key, 0.05)}
    assert 900 <= len(small) <= 1100  # 1,000 ± 3 standard deviations
    assert small < large
    assert len(small & other) < 100
