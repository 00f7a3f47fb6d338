"""An OpenAI-compatible judge for tests: a real HTTP server that answers by a rule of the test."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rlhf.evaluation.chat_endpoint import ServiceConfig
from tests.rlhf.service import Answer, Service, serve

Rule = Callable[[str], Any]
"""From the prompt to the content of the reply, or to what ``Service`` answers as it is if it is no dictionary."""


def chat(content: Any) -> dict[str, Any]:
    """A chat reply that holds a JSON object."""
    text = content if isinstance(content, str) else json.dumps(content)
    return {
        "choices": [{"message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 3},
    }


def tagged(prompt: str, tag: str) -> str:
    """The text between two tags of a prompt."""
    found = re.search(rf"<{tag}>\n(.*?)\n</{tag}>", prompt, flags=re.DOTALL)
    assert found is not None, (tag, prompt)
    return found[1]


def pick(is_a: bool) -> dict[str, Any]:
    """A judgement of a pair."""
    return {"reason": "so it is", "winner": "a" if is_a else "b"}


@contextmanager
def judging(rule: Rule, embedding: Callable[[str], list[float]] | None = None) -> Iterator[Service]:
    """Have a judge within the block."""

    def behaviour(number: int, asked: dict[str, Any]) -> Answer:
        if "input" in asked:
            assert embedding is not None
            return {"data": [{"embedding": embedding(asked["input"])}]}
        answer = rule(asked["messages"][0]["content"])
        return chat(answer) if isinstance(answer, dict | str) else answer

    with serve(behaviour) as service:
        yield service


def config_of(service: Service, **options: Any) -> ServiceConfig:
    """The settings of a client of the judge."""
    given = {"embedding_model": "embedder", "retries": 2, "timeout_seconds": 20.0, **options}
    return ServiceConfig(url=f"http://127.0.0.1:{service.server_port}/v1", model="judge", **given)
