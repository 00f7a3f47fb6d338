"""The judge's client over real sockets: cache, retries, malformed replies, cost, and the key that is never written."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf import http_retries
from rlhf.errors import MachineryError, UserError
from rlhf.evaluation.chat_endpoint import SHOWN, ChatEndpoint, JudgeQuestion
from rlhf.evaluation.reply_cache import ReplyCache
from rlhf.storage.jsonl import read_lines
from tests.rlhf.evaluation.judge_service import Rule, config_of, judging

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
KEY = "sk-3vJq9Zt7LmXw2Bn8"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_retries, "FIRST_WAIT", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "RLHF_JUDGE_KEY"):
        monkeypatch.delenv(name, raising=False)


def question(text: str) -> JudgeQuestion:
    return JudgeQuestion(prompt=text, name="number", schema=SCHEMA)


def length(prompt: str) -> dict[str, int]:
    return {"n": len(prompt)}


def asked(rule: Rule, texts: list[str], cache: Path | None = None) -> tuple[list[object], ChatEndpoint]:
    with judging(rule) as service:
        endpoint = ChatEndpoint(config_of(service), ReplyCache(cache) if cache else None)
        return [reply.content for reply in endpoint.ask([question(text) for text in texts])], endpoint


def test_replies_come_in_order_and_equal_questions_are_asked_once() -> None:
    with judging(length) as service:
        endpoint = ChatEndpoint(config_of(service))
        replies = endpoint.ask([question(text) for text in ("a", "bbb", "a", "cc")])
        assert [reply.content["n"] for reply in replies] == [1, 3, 1, 2]
        assert len(service.asked) == 3
        assert (endpoint.usage.calls, endpoint.usage.prompt_tokens, endpoint.usage.completion_tokens) == (3, 30, 9)
        body = service.asked[0]
        assert (body["model"], body["temperature"]) == ("judge", 0.0)
        assert body["response_format"]["json_schema"]["schema"] == SCHEMA


def test_a_second_run_makes_no_calls(tmp_path: Path) -> None:
    with judging(length) as service:
        first = ChatEndpoint(config_of(service), ReplyCache(tmp_path / "replies.jsonl"))
        before = first.ask([question(str(i)) for i in range(20)])
        assert len(service.asked) == 20
        second = ChatEndpoint(config_of(service), ReplyCache(tmp_path / "replies.jsonl"))
        assert second.ask([question(str(i)) for i in range(20)]) == before
        assert len(service.asked) == 20
        assert (second.usage.calls, second.usage.cached) == (0, 20)
        other = ChatEndpoint(config_of(service, temperature=0.5), ReplyCache(tmp_path / "replies.jsonl"))
        other.ask([question("1")])
        assert len(service.asked) == 21  # other settings are another question


@pytest.mark.parametrize(
    "reply",
    [
        *("no JSON", '{"n": "three"}', '{"m": 3}', '{"n": 3, "more": 1}', "[1]", b"nothing", (200, {}, b"[]")),
        (200, {}, b'{"usage": [], "choices": {}}'),
        (200, {}, b"\xff" * 50),
    ],
)
def test_a_malformed_reply_is_a_counted_failure_and_is_not_cached(reply: object, tmp_path: Path) -> None:
    def rule(prompt: str) -> object:
        return reply if prompt == "bad" else {"n": 1}

    contents, endpoint = asked(rule, ["good", "bad"], tmp_path / "replies.jsonl")
    assert contents == [{"n": 1}, None]
    assert endpoint.usage.failures == 1
    assert len(read_lines(tmp_path / "replies.jsonl")) == len(ReplyCache(tmp_path / "replies.jsonl")) == 1


@pytest.mark.parametrize("usage", [b"[]", b'"many"', b'{"prompt_tokens": 1e999}', b'{"prompt_tokens": [1]}', b"null"])
def test_a_malformed_usage_leaves_the_reply_good(usage: bytes) -> None:
    body = b'{"usage": ' + usage + b', "choices": [{"message": {"content": "{\\"n\\": 1}"}}]}'
    contents, endpoint = asked(lambda prompt: (200, {}, body), ["a"])
    assert (contents, endpoint.usage.failures, endpoint.usage.prompt_tokens) == ([{"n": 1}], 0, 0)


CUT = b'{"choices": [{"finish_reason": "length", "message": {"content": "{\\"n\\": 1"}}]}'


@pytest.mark.parametrize(
    ("reply", "why", "fix"),
    [
        ("no JSON", "JSONDecodeError in the reply", "the service must support response_format json_schema; vLLM does"),
        ((200, {}, CUT), "the reply was cut after 1,024 tokens", "raise judge.max_tokens"),
        ((400, {}, b"at most 4096 tokens"), "HTTP 400: at most 4096 tokens", ""),
    ],
)
def test_a_service_that_answers_nothing_as_asked_is_the_users_error(reply: object, why: str, fix: str) -> None:
    with pytest.raises(UserError, match="answered no request as it was asked to") as caught:
        asked(lambda prompt: reply, ["a", "b"])
    assert (caught.value.why[: len(why)], caught.value.fix) == (why, fix)
    with judging(length, lambda text: []) as service, pytest.raises(UserError, match=r"judge\.embedding_model"):
        ChatEndpoint(config_of(service)).embed(["a"])


@pytest.mark.parametrize("bad", ["no JSON", 503])
def test_a_bad_reply_after_good_ones_ends_nothing(bad: object) -> None:
    with judging(lambda prompt: bad if prompt == "bad" else {"n": 1}, lambda text: []) as service:
        endpoint = ChatEndpoint(config_of(service))
        assert [reply.content for reply in endpoint.ask([question("good")])] == [{"n": 1}]
        assert [reply.content for reply in endpoint.ask([question("bad")])] == [None]
        assert endpoint.usage.failures == 1
        with pytest.raises(UserError, match=r"judge\.embedding_model"):  # another model, which gave nothing yet
            endpoint.embed(["a"])


def test_what_may_pass_is_asked_again() -> None:
    left = [503, 429]

    def rule(prompt: str) -> object:
        return left.pop() if left else {"n": 7}

    contents, endpoint = asked(rule, ["a"])
    assert (contents, left, endpoint.usage.failures) == ([{"n": 7}], [], 0)


def test_one_lasting_failure_is_counted_and_a_service_that_is_down_is_an_error() -> None:
    contents, endpoint = asked(lambda prompt: 500 if prompt == "bad" else {"n": 1}, ["good", "bad"])
    assert (contents, endpoint.usage.failures) == ([{"n": 1}, None], 1)
    with pytest.raises(MachineryError, match="gave no reply; last failure: no reply after 3 attempts: HTTP 503"):
        asked(lambda prompt: 503, ["a", "b"])


def test_a_refused_key_is_the_users_error() -> None:
    with pytest.raises(UserError, match="refuses requests with HTTP 401") as caught:
        asked(lambda prompt: 401, ["a"])
    assert "RLHF_JUDGE_KEY" in caught.value.fix


def test_the_key_is_sent_and_is_in_no_file_and_no_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_JUDGE", KEY)
    with judging(
        lambda prompt: (401, {}, f"bad key {KEY}".encode()) if prompt == "refuse" else length(prompt)
    ) as service:
        endpoint = ChatEndpoint(config_of(service, key_variable="MY_JUDGE"), ReplyCache(tmp_path / "replies.jsonl"))
        endpoint.ask([question("a")])
        assert service.headers[0]["Authorization"] == f"Bearer {KEY}"
        with pytest.raises(UserError) as caught:
            endpoint.ask([question("refuse")])
    assert KEY not in str(caught.value) + caught.value.why + caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["replies.jsonl"]
    assert KEY not in (tmp_path / "replies.jsonl").read_text()


@pytest.mark.parametrize("status", [400, 403])
def test_a_key_at_the_cut_of_a_message_is_hidden_too(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_JUDGE", KEY)
    body = b"x" * (SHOWN - 12) + KEY.encode() + b" is refused"

    def rule(prompt: str) -> object:
        return (status, {}, body) if prompt == "bad" else {"n": 1}

    with judging(rule) as service:
        endpoint = ChatEndpoint(config_of(service, key_variable="MY_JUDGE"))
        if status == 403:
            with pytest.raises(UserError) as caught:
                endpoint.ask([question("bad")])
            shown = str(caught.value)
        else:
            shown = endpoint.ask([question("good"), question("bad")])[1].failure
    assert KEY[:6] not in shown and "***" in shown


def test_embeddings_come_back_as_vectors_and_are_cached(tmp_path: Path) -> None:
    with judging(length, lambda text: [float(len(text)), 1.0]) as service:
        endpoint = ChatEndpoint(config_of(service), ReplyCache(tmp_path / "replies.jsonl"))
        assert [reply.content for reply in endpoint.embed(["a", "bb"])] == [[1.0, 1.0], [2.0, 1.0]]
        endpoint.embed(["bb", "a"])
        assert len(service.asked) == 2
        with pytest.raises(UserError, match="embeddings"):
            ChatEndpoint(config_of(service, embedding_model=None)).embed(["a"])


@pytest.mark.parametrize(
    "bad", [[], [float("nan"), 1.0], [1.0, 2.0, 3.0], ["1", None], ["1", "2"], "12", [True, False]]
)
def test_a_vector_that_cannot_be_compared_is_a_failure(bad: list[float]) -> None:
    with judging(length, lambda text: bad if text == "bad" else [1.0, 2.0]) as service:
        replies = ChatEndpoint(config_of(service)).embed(["a", "bad", "b"])
    assert [reply.content for reply in replies] == [[1.0, 2.0], None, [1.0, 2.0]]
    assert replies[1].failure


def test_a_vector_of_another_size_is_asked_again(tmp_path: Path) -> None:
    sizes = {"a": 2, "b": 2, "odd": 3}
    with judging(length, lambda text: [1.0] * sizes[text]) as service:
        file = tmp_path / "replies.jsonl"
        assert ChatEndpoint(config_of(service), ReplyCache(file)).embed([*sizes])[2].failure
        sizes["odd"] = 2
        assert len(ReplyCache(file)) == 2
        second = ChatEndpoint(config_of(service), ReplyCache(file))
        assert [reply.content for reply in second.embed([*sizes])] == [[1.0, 1.0]] * 3
        assert (len(service.asked), second.usage.cached) == (4, 2)


def test_a_cached_reply_of_another_shape_is_asked_again(tmp_path: Path) -> None:
    with judging(length) as service:
        file = tmp_path / "replies.jsonl"
        ChatEndpoint(config_of(service), ReplyCache(file)).ask([question("a")])
        file.write_text(file.read_text().replace('{"n": 1}', '{"n": "one"}').replace('{"n":1}', '{"n":"one"}'))
        assert "one" in file.read_text()
        assert ChatEndpoint(config_of(service), ReplyCache(file)).ask([question("a")])[0].content == {"n": 1}
        assert len(service.asked) == 2


@pytest.mark.parametrize("name", ["none/replies.jsonl", "."])
def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_asked(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        ReplyCache(tmp_path / name)
