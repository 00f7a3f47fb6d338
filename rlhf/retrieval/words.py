"""Words of a text, as the ranking and the search for quotes count them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from itertools import pairwise

import regex

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー"
_PIECE = regex.compile(rf"(?P<unspaced>[{_UNSPACED}]+)|(?:(?![{_UNSPACED}])[\p{{L}}\p{{M}}\p{{N}}])+")
_SENTENCE_END = regex.compile(r"(?<=[.!?][\"'”’)]*)\s+|(?<=[。！？])|\n+")

_JOINED = regex.compile(rf"(?![{_UNSPACED}\p{{Hangul}}])[\p{{L}}\p{{M}}\p{{N}}]")
"""A character of a script whose words end at spaces. Korean words have particles without a space before them."""


def plain(text: str) -> str:
    """The text without differences of case, white space and width."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def contains(text: str, quote: str) -> bool:
    """Whether a plain text holds a plain quote that begins and ends in no middle of a word or number."""
    place = text.find(quote) if quote else -1
    while place >= 0:
        end = place + len(quote)
        if not (_is_inside(text[place - 1 : place + 1]) or _is_inside(text[end - 1 : end + 1])):
            return True
        place = text.find(quote, place + 1)
    return False


def _is_inside(pair: str) -> bool:
    return len(pair) == 2 and all(map(_JOINED.match, pair))


def words_of(text: str) -> list[str]:
    """Lower-case words, in order.

    Runs of a script without spaces (Japanese, Chinese, Thai, ...) become overlapping pairs of characters, as in
    Lucene's CJKAnalyzer; no list of stop words is used, since BM25 gives frequent words little weight.
    """
    return [word for match in _PIECE.finditer(text.lower()) for word in _split(match)]


def _split(match: regex.Match[str]) -> Iterator[str]:
    text = match.group()
    if match.group("unspaced") is None or len(text) == 1:
        yield text
    else:
        yield from (first + second for first, second in pairwise(text))


def sentences_of(text: str) -> list[str]:
    """Sentences, each a part of the text as it stands there, without the white space around it."""
    return [sentence.strip() for sentence in _SENTENCE_END.split(text) if sentence and sentence.strip()]
