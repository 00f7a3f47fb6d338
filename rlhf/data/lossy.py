"""Examines on a few rows whether a tokenizer keeps text: its tokens, decoded, should be the text again.

A wrong tokenizer class, a vocabulary of another language or a normaliser may lose words. White space around words and
punctuation is not compared, because decoders write it differently.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from rlhf.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

_ROWS = 20
_LONGEST = 2000  # characters of a row
_MOST_LOST = 0.5  # of the words, beyond which a tokenizer is refused
_PIECE = 8  # characters; longer words are compared in pieces, as scripts without spaces have long ones
_FEWEST_SPACES = 10  # from which it can be told whether spaces are kept
_SYMBOLS_LOST = 0.1  # of the punctuation, beyond which it is reported
_WORD = re.compile(r"\w+")
_SYMBOL = re.compile(r"[^\w\s]")


@dataclass(frozen=True)
class _Trip:
    """A text, the text of its tokens as decoded, and the same without the tokens of unknown text."""

    text: str
    decoded: str
    back: str

    @cached_property
    def pieces(self) -> list[str]:
        """The words of the text without case and accents, long ones in pieces."""
        words = _WORD.findall(_fold(self.text))
        return [word[i : i + _PIECE] for word in words for i in range(0, len(word), _PIECE)]

    @cached_property
    def lost(self) -> list[str]:
        """The pieces that are not in the text of the tokens."""
        kept = "".join(_fold(self.back).split())
        return [piece for piece in self.pieces if piece not in kept]


def some_of(rows: Sequence[T]) -> Sequence[T]:
    """A few of the rows, evenly chosen."""
    return rows[:: max(1, len(rows) // _ROWS)][:_ROWS]


def remarks_on_lost_text(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Remarks on text that the tokenizer changes or loses in these texts.

    Raises:
        UserError: it loses most words, or the spaces between them.
    """
    trips = _round_trips(texts, tokenizer)
    lost, total = sum(len(trip.lost) for trip in trips), sum(len(trip.pieces) for trip in trips)
    worst = max(trips, key=lambda trip: len(trip.lost), default=_Trip("", "", ""))
    if lost > _MOST_LOST * total:
        raise _lossy(f"loses {lost:,} of {total:,} words", worst)
    spaces, kept = (sum(len(text.split()) for text in side) for side in _sides(trips))
    if spaces > _FEWEST_SPACES and kept < _MOST_LOST * spaces:
        raise _lossy("loses the spaces between words", trips[0])
    if lost:
        return (f"the tokenizer loses {lost:,} of {total:,} words of {len(trips):,} rows, such as {worst.lost[0]!r}",)
    return tuple(f"the tokenizer {change}" for change in _changes(trips))


def _round_trips(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[_Trip]:
    """The texts, encoded and decoded."""
    chosen = [text[:_LONGEST] for text in texts]
    if not chosen:
        return []
    encoded = tokenizer(chosen, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    decoded = [
        str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)) for ids in encoded
    ]
    unknown = tokenizer.unk_token or "\0"
    return [_Trip(text, back, back.replace(unknown, " ")) for text, back in zip(chosen, decoded, strict=True)]


def _changes(trips: Sequence[_Trip]) -> Iterator[str]:
    """What a tokenizer that keeps every word changes in texts."""
    given, back = ("\n".join(side) for side in _sides(trips))
    if any(map(str.isupper, given)) and not any(map(str.isupper, back)):
        yield "writes all text in lower case"
    if any(_letters(trip.text) != _letters(trip.back) for trip in trips):
        yield "changes letters, for example by dropping accents"
    if any("\n" in trip.text.strip() for trip in trips) and not any("\n" in trip.back.strip() for trip in trips):
        yield "loses line breaks"
    symbols, kept = (Counter(_SYMBOL.findall(_fold(text))) for text in (given, back))
    lost = (symbols - kept).total()
    if lost > _SYMBOLS_LOST * symbols.total():
        yield f"loses {lost:,} of {symbols.total():,} punctuation marks and symbols of {len(trips):,} rows"


def _sides(trips: Sequence[_Trip]) -> tuple[list[str], list[str]]:
    return [trip.text for trip in trips], [trip.back for trip in trips]


def _letters(text: str) -> str:
    return "".join(_WORD.findall(text)).casefold()


def _fold(text: str) -> str:
    """The text without case, accents and variants of characters."""
    return "".join(each for each in unicodedata.normalize("NFKD", text).casefold() if not unicodedata.combining(each))


def _lossy(what: str, trip: _Trip) -> UserError:
    return UserError(
        f"the tokenizer {what}: {trip.text!r:.80} becomes {trip.decoded!r:.80}",
        "the model would neither see nor write the text of the data",
        "correct tokenizer_class in the model folder's tokenizer_config.json, copy the tokenizer's files from the "
        "model it belongs to, or use a model of the data's language",
    )
