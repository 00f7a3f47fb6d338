"""Tickets: what a page knows of the item that it shows, encrypted.

An item's id is a digest of its texts and its purpose, so a rater who knew it could tell gold items from others. The
form of a comparison therefore carries the id, and with it the sides and the rater, as a ticket that only the server
reads. A ticket outlives a restart of the server.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

from cryptography.fernet import Fernet, InvalidToken

LONGEST_SECONDS = 7 * 24 * 3600
"""A page that was loaded longer ago is out of date."""


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """An item as it was shown to a rater."""

    item: str
    rater: str
    is_swapped: bool
    is_repeat: bool = False
    is_adjudication: bool = False


class Tickets:
    """Makes and reads tickets of one project."""

    def __init__(self, key: bytes) -> None:
        """Args: key has 32 bytes, and no other use."""
        self._fernet = Fernet(base64.urlsafe_b64encode(key))

    def seal(self, ticket: Ticket) -> str:
        """The ticket as text for a form."""
        flags = int(ticket.is_swapped), int(ticket.is_repeat), int(ticket.is_adjudication)  # always of one length
        return self._fernet.encrypt(json.dumps([ticket.item, ticket.rater, *flags]).encode()).decode()

    def open(self, text: str) -> tuple[Ticket, float]:
        """A ticket, and the Unix time in seconds at which it was made.

        Raises:
            ValueError: it is not of this project, was changed, or is older than ``LONGEST_SECONDS``.
        """
        try:
            item, rater, *flags = json.loads(self._fernet.decrypt(text, ttl=LONGEST_SECONDS))
            made = self._fernet.extract_timestamp(text)
        except (InvalidToken, ValueError) as error:
            raise ValueError("the ticket is not valid") from error
        swapped, repeat, adjudication = map(bool, flags)
        ticket = Ticket(item=item, rater=rater, is_swapped=swapped, is_repeat=repeat, is_adjudication=adjudication)
        return ticket, float(made)
