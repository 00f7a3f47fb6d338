"""One request and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launch.serve.http import ClientGone, Message, Send


@dataclass(kw_only=True)
class Exchange:
    """A request for an answer, from its body to the last byte that the client got."""

    id: str
    """Random; sent to the server, which makes its answer's id of it."""
    path: str
    request: bytes
    body: Mapping[str, Any]
    conversation: str
    owner: str
    """Name of the API key."""
    began: float
    """Monotonic time in seconds, as ``ended``."""
    client: Send
    keeps_answer: bool
    """Whether the answer is needed after it was sent."""
    most_bytes: int
    """Bytes of the answer that are kept; a longer one is not kept at all."""
    stage: str = "production"
    version: str = ""
    digest: str = ""
    status: int = 0
    outcome: str = ""
    """``answered``, ``gone`` (the client left), or the reason of a failure."""
    first_seconds: float | None = None
    """From the gateway's request to the server's first byte."""
    fallback: str = ""
    """Why the canary did not answer, if production did in its place."""
    ended: float = 0.0
    is_gone: bool = False
    is_scored: bool = False
    """Whether the scorer saw the answer before it was sent."""
    has_begun: bool = False
    """Whether the client got the beginning of an answer."""
    has_all: bool = True
    """Whether all that was sent is kept."""
    _kept: list[bytes] = field(default_factory=list)
    _kept_bytes: int = 0

    @property
    def is_stream(self) -> bool:
        """Whether the client asked for a stream."""
        return self.body.get("stream") is True

    @property
    def raw(self) -> bytes:
        """The answer as it was sent, if it is kept."""
        return b"".join(self._kept)

    def keep(self, piece: bytes) -> None:
        """Keep a piece of the answer that was sent."""
        if not self.keeps_answer or not self.has_all:
            return
        self._kept_bytes += len(piece)
        if self._kept_bytes > self.most_bytes:
            self._kept, self.has_all = [], False
        else:
            self._kept.append(piece)

    async def send(self, message: Message) -> None:
        """Send to the client.

        Raises:
            ClientGone: it closed the connection.
        """
        if self.is_gone:
            raise ClientGone
        self.has_begun = True
        try:
            await self.client(message)
        except OSError as error:
            raise ClientGone from error

    def facts(self) -> dict[str, Any]:
        """What is logged and traced, without any content."""
        return {
            "id": self.id,
            "key": self.owner,
            "path": self.path,
            "stage": self.stage,
            "version": self.version,
            "status": self.status,
            "outcome": self.outcome,
            "stream": self.is_stream,
            "seconds": round(self.ended - self.began, 6),
            "first_seconds": self.first_seconds,
            "fallback": self.fallback,
        }
