"""Thumbs from production: a program sends a user's reaction to one answer."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from launch.feedback.site import site_of
from launch.feedback.visitors import Service
from rlhf.errors import UserError
from rlhf.feedback.records import Answer, Thumb
from rlhf.records import Message, Messages

router = APIRouter()


def _require_unicode(text: str) -> str:
    text.encode()  # a lone surrogate is a ValueError, which pydantic reports
    return text


Unicode = Annotated[str, AfterValidator(_require_unicode)]
"""Text that a tokenizer can read."""


class Turn(BaseModel):
    """One message of a prompt."""

    model_config = ConfigDict(extra="forbid")
    role: Unicode = Field(min_length=1)
    content: Unicode


class Reaction(BaseModel):
    """Body of ``POST /feedback``."""

    model_config = ConfigDict(extra="forbid")
    prompt: Unicode | list[Turn]
    answer: Unicode
    model: Unicode = Field(min_length=1, max_length=200)
    """Name and version of the model that answered."""
    thumb: Literal["up", "down"]
    comment: Unicode = Field(default="", max_length=10_000)
    id: str = Field(default_factory=lambda: uuid.uuid4().hex, pattern=r"^[A-Za-z0-9._:-]{1,100}$")
    """Made by the sender: a reaction that is sent twice is stored once. A new one if it is missing."""


@router.post("/feedback")
def feedback(request: Request, service: Service, reaction: Reaction) -> Response:
    """Store a reaction: 201 if it is new, 200 if it was stored before, 409 if its id belongs to another."""
    site = site_of(request)
    try:
        is_new = site.store.add_thumb(_thumb(reaction, site.clock()))
    except UserError as error:
        return JSONResponse({"message": error.what}, 409)
    return JSONResponse({"id": reaction.id}, 201 if is_new else 200)


def _thumb(reaction: Reaction, time: float) -> Thumb:
    return Thumb(
        id=reaction.id,
        prompt=_prompt(reaction.prompt),
        answer=Answer(text=reaction.answer, policy=reaction.model),
        is_good=reaction.thumb == "up",
        comment=reaction.comment,
        time=time,
    )


def _prompt(prompt: str | list[Turn]) -> Messages | str:
    return prompt if isinstance(prompt, str) else tuple(Message(turn.role, turn.content) for turn in prompt)
