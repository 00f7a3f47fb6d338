"""``POST /feedback`` of the gateway: a thumb on one of its answers goes to the feedback project of the next round."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from launch.serve.exchange import Exchange
from launch.serve.http import RefusedRequest
from rlhf.errors import MachineryError, UserError
from rlhf.feedback.records import Answer, Thumb
from rlhf.feedback.store import Store
from rlhf.serving.completions import MALFORMED, answer_id, parse_answer, prompt_of
from rlhf.serving.gateway_config import ThumbsConfig
from rlhf.serving.recent_answers import RecentAnswer, RecentAnswers


def _require_unicode(text: str) -> str:
    text.encode()  # a lone surrogate is a ValueError, which pydantic reports
    return text


class ThumbBody(BaseModel):
    """Body of ``POST /feedback``."""

    model_config = ConfigDict(extra="forbid")
    id: str = Field(min_length=1, max_length=200)
    """Id of the answer."""
    thumb: Literal["up", "down"]
    comment: Annotated[str, AfterValidator(_require_unicode)] = Field(default="", max_length=10_000)
    index: int = Field(default=0, ge=0)
    """Which choice, for a request of several."""


@dataclass(frozen=True, kw_only=True)
class StoredThumb:
    """What became of a thumb."""

    is_new: bool
    version: str
    is_down: bool


class Thumbs:
    """The answers that may be judged, and the project."""

    def __init__(self, config: ThumbsConfig, has_changes: bool = False) -> None:
        """Open the project.

        Args:
            has_changes: see ``RecentAnswers``.

        Raises:
            UserError: it is no feedback project.
        """
        self._store = Store.open(Path(config.project))
        self.answers = RecentAnswers(config.remember_bytes, config.remember_seconds, time.monotonic, has_changes)

    def remember(self, exchange: Exchange) -> None:
        """Keep an answer that was sent whole."""
        if not exchange.has_all:
            return
        raw = exchange.raw
        answer = RecentAnswer(
            request=exchange.request,
            raw=raw,
            is_stream=exchange.is_stream,
            version=exchange.version,
            owner=exchange.owner,
        )
        self.answers.add(answer_id(raw), answer)

    def store(self, body: bytes, owner: str) -> StoredThumb:
        """Store a thumb; blocks while the disk writes.

        Raises:
            RefusedRequest: the body is malformed, the answer is unknown or was judged otherwise, or is not text.
        """
        try:
            given = ThumbBody.model_validate_json(body)
        except ValidationError as error:
            fields = ", ".join(".".join(map(str, each["loc"])) or "the body" for each in error.errors())
            raise RefusedRequest(422, "invalid_feedback", f"wrong: {fields}") from None
        answer = self.answers.get(given.id)
        if answer is None or answer.owner != owner:
            raise RefusedRequest(404, "answer_not_found", "no answer with this id is remembered for this key")
        thumb = _thumb(given, answer)
        try:
            is_new = self._store.add_thumb(thumb)
        except MachineryError:
            why = "the feedback project cannot be written now; try again later"
            raise RefusedRequest(503, "feedback_unavailable", why, {"retry-after": "5"}) from None
        except UserError:
            raise RefusedRequest(409, "judged_before", "this answer has another thumb or comment") from None
        return StoredThumb(is_new=is_new, version=answer.version, is_down=given.thumb == "down")

    def close(self) -> None:
        """Close the project."""
        self._store.close()


def _thumb(given: ThumbBody, answer: RecentAnswer) -> Thumb:
    try:
        prompt, texts = prompt_of(json.loads(answer.request)), parse_answer(answer.raw, answer.is_stream).texts
        text = texts[given.index]
    except MALFORMED:
        why = "the project stores texts: this request or its answer is none, or has no such choice"
        raise RefusedRequest(422, "no_text", why) from None
    return Thumb(
        id=f"{given.id}:{given.index}" if given.index else given.id,
        prompt=prompt,
        answer=Answer(text=text, policy=answer.version),
        is_good=given.thumb == "up",
        comment=given.comment,
        time=time.time(),
    )
