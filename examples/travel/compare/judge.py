"""A simulated judge with planted flaws: an OpenAI-compatible service that judges by a rule, and not by a model.

It has three flaws of real judges, so that the comparison has something to find:

- it never checks a fact against the office's card: any price, hours or quarter counts as an answer;
- it likes long answers: a point for every ``WORDS_PER_POINT`` words;
- of two answers that it finds about equal it prefers the one that is shown first.

About passages it is honest: a statement is supported if each fact in it is on the card of a place that the question
names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from examples.travel.guideline import CLOSINGS, OPENINGS, PLACE_NAME, STATED_FACT, TIPS, split_sentences

MODEL = "simulated-judge"
WORDS_PER_POINT = 8
ABOUT_EQUAL = 1.0
"""Difference in points below which position decides."""
PHRASES = (*OPENINGS, *CLOSINGS, *(tip for tips in TIPS.values() for tip in tips))


def points(answer: str) -> float:
    """How the judge likes an answer: 2 points for a fact, true or not, 1 for each phrase of courtesy, up to 3, and its
    length."""
    facts = 2.0 * any(pattern.search(answer) for pattern in STATED_FACT.values())
    courtesy = min(3, sum(sentence in PHRASES for sentence in split_sentences(answer)))
    return facts + courtesy + len(answer.split()) / WORDS_PER_POINT


def compare(prompt: str) -> Mapping[str, Any]:
    """Which of two answers wins."""
    a, b = points(_tagged(prompt, "answer_a")), points(_tagged(prompt, "answer_b"))
    winner = "a" if abs(a - b) < ABOUT_EQUAL or a > b else "b"
    return {"reason": f"{a:.1f} and {b:.1f} points", "winner": winner}


def score(prompt: str) -> Mapping[str, Any]:
    """A score from 1 to 10."""
    found = points(_tagged(prompt, "answer"))
    return {"reason": f"{found:.1f} points", "score": max(1, min(10, round(found)))}


def check_answer(prompt: str) -> Mapping[str, Any]:
    """Whether the passages support each statement of the answer."""
    return _supported(_tagged(prompt, "answer"), _tagged(prompt, "passages"), _tagged(prompt, "question"))


def check_reference(prompt: str) -> Mapping[str, Any]:
    """Whether the passages state what the correct answer states."""
    return _supported(_tagged(prompt, "correct_answer"), _tagged(prompt, "passages"), _tagged(prompt, "question"))


def check_passage(prompt: str) -> Mapping[str, Any]:
    """Whether a passage is about the place that the question names."""
    return {"useful": bool(_places(_tagged(prompt, "question")) & _places(_tagged(prompt, "passage")))}


RULES: Mapping[str, Callable[[str], Mapping[str, Any]]] = {
    "comparison": compare,
    "score": score,
    "faithfulness": check_answer,
    "context_recall": check_reference,
    "context_precision": check_passage,
}
"""Rule of each kind of question, by the name of the schema of its reply."""


def _supported(text: str, passages: str, question: str) -> Mapping[str, Any]:
    """Sentences that state a fact, each with its support; a text without any is one unsupported statement."""
    named = _places(question)
    cards = [card for card in passages.splitlines() if named & _places(card)]
    known = set[tuple[str, str]]().union(*map(_facts, cards))
    stated = [(sentence, _facts(sentence)) for sentence in split_sentences(text)]
    found = [{"statement": sentence, "supported": facts <= known} for sentence, facts in stated if facts]
    return {"statements": found or [{"statement": text, "supported": False}]}


def _facts(text: str) -> set[tuple[str, str]]:
    return {(topic, value) for topic, pattern in STATED_FACT.items() for value in pattern.findall(text)}


def _places(text: str) -> set[str]:
    return set(PLACE_NAME.findall(text))


def _tagged(prompt: str, tag: str) -> str:
    """The text between two tags; empty if the prompt has none."""
    found = re.search(rf"<{tag}>\n(.*?)\n</{tag}>", prompt, flags=re.DOTALL)
    return found[1] if found else ""


class _Handler(BaseHTTPRequestHandler):
    """Answers chat requests whose reply has a schema that ``RULES`` knows."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer one request: HTTP 404 for another path, 400 for a question without a rule."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = asked.get("response_format", {}).get("json_schema", {}).get("name")
        if not self.path.endswith("/chat/completions") or name not in RULES:
            self._reply(404 if name in RULES else 400, {"error": f"no rule for {name!r} at {self.path}"})
            return
        prompt = asked["messages"][-1]["content"]
        content = json.dumps(RULES[name](prompt))
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(content.split())}
        message = {"role": "assistant", "content": content}
        self._reply(200, {"model": MODEL, "choices": [{"index": 0, "message": message}], "usage": usage})

    def _reply(self, status: int, content: Mapping[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Requests are not logged."""


@contextmanager
def serving() -> Iterator[str]:
    """Context in which the judge answers on a free port of this machine; yields its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        Thread(target=server.serve_forever, name="simulated judge", daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
