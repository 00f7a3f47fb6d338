"""Small corpora for the tests of retrieval."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.config.schema import RetrievalConfig
from rlhf.records import RowLocation
from rlhf.retrieval.index import Index, build_index
from rlhf.retrieval.passages import Passage, Question

COLOURS = ("amber", "birch", "coral", "denim", "ebony", "fawn", "green", "hazel", "ivory", "jade", "khaki", "lime")
THINGS = ("anchor", "basket", "candle", "drum", "easel", "flute", "globe", "harp", "inkwell", "jug", "kite", "lamp")


def key_values(documents: int) -> tuple[list[Passage], list[Question]]:
    """``documents`` documents of two passages, and two questions on each."""
    passages, questions = [], []
    for i in range(documents):
        for part, things in enumerate((THINGS[:6], THINGS[6:])):
            colour, thing = COLOURS[i % 12], things[(i // 12) % 6]
            name = f"{colour} {thing} {i // 72}"
            text = f"It was sold in {1700 + i}. The {name} lies in room {i}-{part}. Nobody knows why."
            passages.append(Passage(id=f"{i}-{part}", text=text, title=f"Lot {i}", document=f"lot {i}"))
            questions.append(question(f"Where is the {name}?", f"room {i}-{part}", f"{i}-{part}", line=2 * i + part))
    return passages, questions


def question(text: str, answer: str, *oracles: str, quote: str = "", line: int = 1) -> Question:
    """A question of a file that does not exist."""
    return Question(text=text, answer=answer, oracles=oracles, quote=quote, source=RowLocation("questions", line))


def texts(*given: str) -> list[Passage]:
    """Passages with the ids a, b, c, ..., each a document."""
    return [Passage(id=chr(97 + i), text=text, document=chr(97 + i)) for i, text in enumerate(given)]


def lexical(passages: Sequence[Passage]) -> Index:
    """An index by BM25."""
    return build_index(passages, RetrievalConfig())
