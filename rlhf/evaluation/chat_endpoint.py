"""Client of an OpenAI-compatible service: structured chat replies and embeddings, with a cache on disk.

Failures are results here: a question whose reply could not be had, or is not what the schema asks for, has a reason and
no content, and whoever asked counts it. Only a service that gives nothing useful is an error. Only useful replies are
cached, so that the same command asks failed questions again, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import jsonschema
from tenacity import AsyncRetrying, RetryCallState, RetryError, retry_if_exception_type

from rlhf.config.fields import Count, CountOrZero, Seconds, ServiceUrl, Temperature, VariableName, section
from rlhf.errors import MachineryError, UserError
from rlhf.evaluation.reply_cache import ReplyCache, content_key
from rlhf.http_retries import IDLE_SECONDS, TransientError, bearer, post, seconds_to_wait
from rlhf.secrets import HIDDEN, excerpt, without_secrets

LONGEST_REPLY = 2**22
"""Bytes of the largest reply that is read."""
REFUSED_STATUS = (401, 403, 404)
"""The whole service is meant wrongly: other refusals, such as 400 for a text that is too long, concern one question."""
_MALFORMED = (ValueError, ArithmeticError, RecursionError, LookupError, TypeError, AttributeError)
"""What reading a reply of another shape raises."""
SHOWN = 160
"""Characters of a reply in a reason."""


@section
class ServiceConfig:
    """An OpenAI-compatible service, such as a vLLM server of one's own."""

    url: ServiceUrl
    """Address up to ``/v1``, for example ``http://127.0.0.1:8000/v1``."""
    model: str
    """Name of the model that judges."""
    embedding_model: str | None = None
    """Name of the model that embeds texts, for answer relevancy and answer correctness."""
    key_variable: VariableName = "RLHF_JUDGE_KEY"
    """Environment variable that holds the key, in capitals. The key is sent and never written."""
    temperature: Temperature = 0.0
    """Sampling temperature of the judge."""
    max_tokens: Count = 1024
    """Longest reply, in tokens."""
    connections: Count = 8
    """Number of concurrent requests."""
    timeout_seconds: Seconds = 120.0
    """Timeout of one request."""
    retries: CountOrZero = 4
    """Number of retries of a request that failed or timed out, with exponential backoff."""


@dataclass(frozen=True, kw_only=True)
class JudgeQuestion:
    """A prompt whose reply is a JSON object of a schema."""

    prompt: str
    name: str
    """Of the schema."""
    schema: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A reply, or the reason why there is none."""

    content: Any = None
    """What the schema describes, or a vector; None after a failure."""
    failure: str = ""
    is_answered: bool = False
    """Of a failure: the service did answer, and not as it was asked to."""
    fix: str = ""
    """What the user can do if all replies fail like this one; empty if only the service's own words say it."""


@dataclass(kw_only=True)
class Usage:
    """What questions have cost."""

    calls: int = 0
    """Requests that the service answered."""
    cached: int = 0
    """Replies from the cache."""
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatEndpoint:
    """Asks questions over several connections; replies come back in the order of the questions."""

    def __init__(self, config: ServiceConfig, cache: ReplyCache | None = None) -> None:
        """Prepare the client; no connection is opened yet.

        Raises:
            UserError: url, proxy settings or key cannot be used.
        """
        self.config, self.usage, self._cache = config, Usage(), cache
        self._useful_paths = set[str]()
        self.name = f"judge {without_secrets(config.url)}"
        self._loop = asyncio.Runner()
        headers = {"Content-Type": "application/json", **bearer(config.key_variable)}
        self._key = headers.get("Authorization", "").removeprefix("Bearer ")
        limits = httpx.Limits(max_connections=config.connections, keepalive_expiry=IDLE_SECONDS)
        try:
            self._client = httpx.AsyncClient(limits=limits, headers=headers, timeout=None, follow_redirects=False)
        except (ValueError, OSError, httpx.InvalidURL) as error:
            fix = "correct the url, or HTTP_PROXY and similar variables"
            raise UserError(f"{self.name} cannot be used", self._hide(str(error)), fix) from None

    def ask(self, questions: Sequence[JudgeQuestion]) -> list[Reply]:
        """Reply to each question; equal questions are asked once.

        Raises:
            UserError: the service refuses the key, the model or the address, or has answered nothing as it is asked to.
            MachineryError: no question has got a reply so far.
        """
        return self._run("chat/completions", [self._chat_body(q) for q in questions], [q.schema for q in questions])

    def embed(self, texts: Sequence[str]) -> list[Reply]:
        """The embedding of each text, a list of numbers. Raises as ``ask``.

        Raises:
            UserError: no embedding model is named.
        """
        if self.config.embedding_model is None:
            what = "answer relevancy and answer correctness compare embeddings"
            raise UserError(what, "no model is named that makes them", "set judge.embedding_model")
        bodies = [{"model": self.config.embedding_model, "input": text} for text in texts]
        found = _of_one_size(self._run("embeddings", bodies, [None] * len(texts)))
        for body, reply in zip(bodies, found):
            if reply.failure and self._cache is not None:
                self._cache.forget(self._hash("embeddings", body))
        return found

    def _chat_body(self, question: JudgeQuestion) -> dict[str, Any]:
        shape = {"name": question.name, "strict": True, "schema": dict(question.schema)}
        return {
            "model": self.config.model,
            "messages": [{"role": "user", "content": question.prompt}],
            "temperature": self.config.temperature,
            "max_tokens": self.config.max_tokens,
            "response_format": {"type": "json_schema", "json_schema": shape},
        }

    def _run(
        self, path: str, bodies: Sequence[dict[str, Any]], schemas: Sequence[Mapping[str, Any] | None]
    ) -> list[Reply]:
        keys = [self._hash(path, body) for body in bodies]
        found = {key: reply for key, schema in zip(keys, schemas) if (reply := self._cached(key, schema)) is not None}
        self.usage.cached += len(found)
        asked = {key: (body, schema) for key, body, schema in zip(keys, bodies, schemas) if key not in found}
        new = self._loop.run(self._request_all(path, asked))
        self.usage.failures += sum(bool(reply.failure) for reply in new.values())
        replies = found | new
        if not all(reply.failure for reply in replies.values()):
            self._useful_paths.add(path)
        if new and path not in self._useful_paths:
            raise self._nothing_useful([*new.values()])
        return [replies[key] for key in keys]

    def _nothing_useful(self, replies: Sequence[Reply]) -> UserError | MachineryError:
        """The error of a service that gave failures only."""
        if all(reply.is_answered for reply in replies):
            last = replies[-1]
            return UserError(f"{self.name} answered no request as it was asked to", last.failure, last.fix)
        reply = "useful reply" if any(reply.is_answered for reply in replies) else "reply"
        return MachineryError(f"{self.name} gave no {reply}; last failure: {replies[-1].failure}")

    def _hash(self, path: str, body: Mapping[str, Any]) -> str:
        return content_key([without_secrets(self.config.url), path, body])

    def _cached(self, key: str, schema: Mapping[str, Any] | None) -> Reply | None:
        """The reply of the cache; None if it has none, or one of another shape."""
        content = None if self._cache is None else self._cache.get(key)
        try:
            return None if content is None else Reply(content=_checked(content, schema))
        except (*_MALFORMED, jsonschema.ValidationError):
            return None

    async def _request_all(self, path: str, asked: Mapping[str, tuple[dict[str, Any], Any]]) -> dict[str, Reply]:
        slots = asyncio.Semaphore(self.config.connections)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    key: group.create_task(self._request(key, path, body, schema, slots))
                    for key, (body, schema) in asked.items()
                }
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return {key: task.result() for key, task in tasks.items()}

    async def _request(
        self, key: str, path: str, body: dict[str, Any], schema: Mapping[str, Any] | None, slots: asyncio.Semaphore
    ) -> Reply:
        def stop(state: RetryCallState) -> bool:
            return state.attempt_number > self.config.retries

        retrying = AsyncRetrying(stop=stop, wait=seconds_to_wait, retry=retry_if_exception_type(TransientError))
        try:
            reply = self._parse(await retrying(self._attempt, path, body, slots), schema)
        except RetryError as error:
            why = f"no reply after {error.last_attempt.attempt_number} attempts: {error.last_attempt.exception()}"
            return Reply(failure=self._hide(why))
        if self._cache is not None and not reply.failure:
            self._cache.put(key, reply.content)
        return reply

    async def _attempt(self, path: str, body: dict[str, Any], slots: asyncio.Semaphore) -> tuple[int, bytes]:
        url = httpx.URL(self.config.url)
        url = url.copy_with(path=f"{url.path.rstrip('/')}/{path}")
        async with slots:
            try:
                async with asyncio.timeout(self.config.timeout_seconds):
                    return await self._post(url, json.dumps(body).encode())
            except TimeoutError:
                raise TransientError(f"no answer within {self.config.timeout_seconds:g} s") from None
            except (httpx.TransportError, httpx.DecodingError) as error:
                raise TransientError(f"{type(error).__name__}: {error}") from None

    async def _post(self, url: httpx.URL, content: bytes) -> tuple[int, bytes]:
        status, body = await post(self._client, url, content, LONGEST_REPLY)
        return (413, b"the reply is too long") if body is None else (status, body)

    def _parse(self, answer: tuple[int, bytes], schema: Mapping[str, Any] | None) -> Reply:
        status, body = answer
        shown = partial(excerpt, body, SHOWN, self._hide)
        self.usage.calls += 1
        if status in REFUSED_STATUS or status // 100 == 3:
            fix = f"correct url or model, or put a valid key into the variable {self.config.key_variable}"
            raise UserError(f"{self.name} refuses requests with HTTP {status}", shown(), fix)
        if status // 100 != 2:
            return Reply(failure=f"HTTP {status}: {shown()}", is_answered=True)
        read: Any = None
        try:
            read = json.loads(body)
            return Reply(content=self._content(read, schema))
        except (*_MALFORMED, jsonschema.ValidationError) as error:
            failure = f"{type(error).__name__} in the reply {shown()!r}"
        fix = "the service must support response_format json_schema; vLLM does"
        if schema is None:
            fix = "name a model of embeddings in judge.embedding_model"
        elif _is_cut(read):
            failure = f"the reply was cut after {self.config.max_tokens:,} tokens"
            fix = "raise judge.max_tokens"
        return Reply(failure=failure, is_answered=True, fix=fix)

    def _content(self, answer: Any, schema: Mapping[str, Any] | None) -> Any:
        """What a reply holds, checked; whatever is not as it should be raises."""
        with suppress(*_MALFORMED):  # a good reply is good without its price
            self.usage.prompt_tokens += int(answer["usage"]["prompt_tokens"])
            self.usage.completion_tokens += int(answer["usage"]["completion_tokens"])
        if schema is None:
            return _checked(answer["data"][0]["embedding"], schema)
        return _checked(json.loads(answer["choices"][0]["message"]["content"]), schema)

    def _hide(self, text: str) -> str:
        """A text without the key, which a service may quote in its messages."""
        return without_secrets(text.replace(self._key, HIDDEN) if self._key else text)


def _is_cut(answer: Any) -> bool:
    """Whether a chat reply ends where it was as long as allowed."""
    with suppress(*_MALFORMED):
        return bool(answer["choices"][0]["finish_reason"] == "length")
    return False


def _of_one_size(vectors: list[Reply]) -> list[Reply]:
    """Embeddings, of which those of another size than most have failed: they cannot be compared."""
    sizes = Counter(len(reply.content) for reply in vectors if not reply.failure)
    if len(sizes) < 2:
        return vectors
    usual = sizes.most_common(1)[0][0]
    failed = Reply(failure=f"a vector of another size than {usual}", is_answered=True)
    return [reply if reply.failure or len(reply.content) == usual else failed for reply in vectors]


def _checked(content: Any, schema: Mapping[str, Any] | None) -> Any:
    """What a schema describes, or without one a vector of finite numbers; anything else raises."""
    if schema is not None:
        jsonschema.Draft202012Validator(dict(schema)).validate(content)
        return content
    if not isinstance(content, list) or not all(type(value) in (int, float) for value in content):
        raise TypeError("no list of numbers")
    vector = [float(value) for value in content]
    if not vector or not all(map(math.isfinite, vector)):
        raise ValueError("no finite numbers")
    return vector
