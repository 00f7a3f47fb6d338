"""Quarantines demonstrations that a column marks as bad: ``is_safe: false``, ``thumbs_up: false``, ``wrong: true``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from rlhf.config.schema import DataConfig
from rlhf.data.columns import is_within, paths_of, value_at
from rlhf.data.labels import as_text
from rlhf.data.read import RawRow
from rlhf.data.scores import split_words
from rlhf.records import BadRow

_GOOD = {
    *("safe", "desirable", "desired", "thumbsup", "liked", "good", "correct", "accepted", "acceptable", "approved"),
    *("valid", "passed", "upvoted", "preferred"),
}
"""Names of columns that are true for a good answer, without the words of ``_AROUND``."""
_BAD = {
    *("unsafe", "undesirable", "thumbsdown", "disliked", "bad", "incorrect", "wrong", "unacceptable", "invalid"),
    *("failed", "downvoted", "hallucinated", "hallucination"),
}
"""Names of columns that are true for a bad answer. Harm is not among them: it may be the prompt's."""
_AROUND = {"is", "was", "response", "answer", "completion", "output", "reply", "user", "human"}
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_FEEDBACK = {"thumb", "thumbs", "feedback", "reaction", "vote"}
_VERDICTS = {
    **dict.fromkeys(("up", "thumbs_up", "thumbsup", "positive", "good", "like", "liked", "upvote", "👍"), True),
    **dict.fromkeys(("down", "thumbs_down", "thumbsdown", "negative", "bad", "dislike", "disliked", "downvote"), False),
    **{"👎": False, "1": True, "-1": False},
}
"""Values of a column named as in ``_FEEDBACK`` → whether the answer is good."""
_ANSWERS = {"completion", "messages", "text"}


def without_marked(raws: Sequence[RawRow | BadRow], config: DataConfig) -> Iterator[RawRow | BadRow]:
    """The rows, with a bad row for every demonstration that a column marks as bad.

    A column is such a mark by its name if every value of it is known (true, false or missing); ``data.ignore`` excludes
    it.
    """
    marks = _marks([raw for raw in raws if isinstance(raw, RawRow)], config)
    for raw in raws:
        path = next((path for path in marks if _is_bad(raw, path)), None) if isinstance(raw, RawRow) else None
        if path is None or not isinstance(raw, RawRow) or raw.columns.keys().isdisjoint(_ANSWERS):
            yield raw
        else:
            value = value_at(raw.given, path)
            yield BadRow(raw.source, f"marked as bad: {path} is {value!r} (data.ignore=[{path}] if it means otherwise)")


def _marks(rows: Sequence[RawRow], config: DataConfig) -> list[str]:
    kinds = {
        tuple((name, isinstance(value, Mapping)) for name, value in raw.given.items()): raw for raw in rows
    }.values()
    paths = dict.fromkeys(path for raw in kinds for path in _paths(raw, config) if _meanings(path))
    return [path for path in paths if all(_text(raw, path) in ("", *_meanings(path)) for raw in rows)]


def _paths(raw: RawRow, config: DataConfig) -> list[str]:
    """Paths to the columns that are not read and to the values directly inside them."""
    read = [*(path for theirs in raw.names.values() for path in paths_of(theirs)), *config.ignore]
    found = []
    for name, value in raw.given.items():
        inner = [f"{name}.{key}" for key in value] if isinstance(value, Mapping) else []
        found += [path for path in (name, *inner) if not is_within(path, read)]
    return found


@lru_cache
def _meanings(path: str) -> Mapping[str, bool]:
    """Value → whether the answer is good, by the column's name; empty if the column is no mark."""
    name = "".join(word for word in split_words(path.rpartition(".")[2]) if word not in _AROUND)
    if name in _GOOD:
        return _TRUTH
    if name in _BAD:
        return {text: not truth for text, truth in _TRUTH.items()}
    return _VERDICTS if name in _FEEDBACK else {}


def _text(raw: RawRow, path: str) -> str:
    return as_text(value_at(raw.given, path))


def _is_bad(raw: RawRow, path: str) -> bool:
    return _meanings(path).get(_text(raw, path)) is False
