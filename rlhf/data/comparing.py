"""Finds columns that may say which of two answers is better, beside answers whose columns do not say it.

``response_1`` and ``response_2`` are neutral names, ``better`` and ``worse`` are not. Beside neutral names, a column
that compares the answers may have any name, so its words and its values are examined.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rlhf.config.schema import DataConfig
from rlhf.data.columns import is_within, leaves, paths_of, value_at
from rlhf.data.labels import Names, are_counted, as_text, may_name_one, names_of, parts_of
from rlhf.data.read import RawRow
from rlhf.data.scores import paired_scores, split_words

_COMPARING = {
    *("pref", "prefs", "prefer", "prefers", "rank", "ranks", "ranking", "rankings", "win", "wins", "elo", "outcome"),
    *("decision", "selected", "selection", "picked", "pick", "favored", "favoured", "comparison", "advantage", "delta"),
    *("diff", "difference", "superior", "safer", "likert", "swap", "swapped", "flip", "flipped"),
}
"""Words in the name of a column that compares two answers."""
_EXCHANGING = {"swap", "swapped", "flip", "flipped", "reversed", "inverted", "switched", "exchanged"}
"""Words in the name of a column that marks rows whose answers were shown in the other order."""
_NO_VALUE = {"id", "ids", "reason", "explanation", "time", "date"}
"""Words in the name of a column beside a judgement that is none."""
_WORTH = {
    *("chosen", "rejected", "good", "bad", "better", "worse", "best", "worst", "preferred", "dispreferred", "winner"),
    *("loser", "winning", "losing", "win", "lose", "won", "lost", "accepted", "positive", "negative", "pos", "neg"),
    *("gold", "golden", "correct", "incorrect", "wrong", "reference", "ref"),
}
"""Words in the name of an answer's column that say whether it is the better one."""
_YES_OR_NO = ({"true", "false"}, {"yes", "no"}, {"y", "n"}, {"t", "f"})
_ORDERS = ({"ab", "ba"}, {"12", "21"}, {"01", "10"})
"""Values, without punctuation, of a column that holds the order of two answers."""
_NO = {"", "0", "false", "no", "n", "f", "none", "null", "nan", "n/a"}
_NOTHING = {"", "null", "nan", "n/a"}
"""Values, normalised by ``as_text``, that mean "no label"."""
_LONGEST_LABEL = 40  # characters; longer text explains a choice
_NO_WORD = re.compile(r"[\W_]+")


def comparing_columns(pairs: Sequence[RawRow], config: DataConfig) -> list[str]:
    """Paths to unread values that may say which of two answers is better, by their names or by their values.

    Args:
        pairs: rows with two answers in columns that the recipe maps.
    """
    names = names_of(config.columns)
    paths = unread_paths(pairs[0], config)
    scored = {path for scores in paired_scores(pairs, config) for path in scores}
    is_neutral = not any(_WORTH & {*split_words(config.columns[side])} for side in ("chosen", "rejected"))
    found = []
    for path in paths:
        if path in scored:
            continue
        texts = {as_text(value_at(raw.given, path)) for raw in pairs} - _NOTHING
        is_comparing = _label_one(texts, names) or (_compare(texts, names) and not _describes_one(path, paths, names))
        if is_comparing or (is_neutral and _is_named_comparison(path, texts)):
            found.append(path)
    return found


def exchanging_columns(pairs: Sequence[RawRow], config: DataConfig) -> list[str]:
    """Paths to unread values that may say that the two answers were shown in the other order when they were judged."""
    labels = paths_of(config.columns["label"])
    found = []
    for path in unread_paths(pairs[0], config) if pairs else []:
        texts = {as_text(value_at(raw.given, path)) for raw in pairs}
        is_named = bool(_EXCHANGING & {*split_words(path.rpartition(".")[2])}) and not texts <= _NO
        if path not in labels and (is_named or _are_orders(texts)):
            found.append(path)
    return found


def are_neutral(config: DataConfig) -> bool:
    """Whether the recipe maps both answers to columns whose names only count them."""
    return {"chosen", "rejected"} <= config.columns.keys() and are_counted(names_of(config.columns))


def unread_paths(raw: RawRow, config: DataConfig) -> list[str]:
    """Paths to the values of a row that are neither read, labels aside, nor ignored."""
    read = [*read_paths(raw), *config.ignore]
    paths = (path for name, value in raw.given.items() for path, _ in leaves(value, name))
    return [path for path in paths if not is_within(path, read)]


def read_paths(raw: RawRow) -> list[str]:
    """Columns and paths that are read, without labels."""
    return [path for ours, theirs in raw.names.items() if ours != "label" for path in paths_of(theirs)]


def _label_one(texts: Iterable[str], names: Names) -> bool:
    """Whether values may be labels of the winner: several, each of which names one of the answers or a tie."""
    labels = {*texts}
    return len(labels) > 1 and all(may_name_one(label, names) for label in labels)


def _compare(texts: set[str], names: Names) -> bool:
    """Whether values may compare two answers that are only counted.

    They do if they are yes and no, numbers of both signs (a difference), numbers on both sides of a half (the
    probability that one won), or texts that begin with an answer's name ("A is better", "[[B]]").
    """
    if not are_counted(names) or len(texts) < 2:
        return False
    if any(texts <= words for words in _YES_OR_NO):
        return True
    if numbers := _numbers(texts):
        low, high = min(numbers), max(numbers)
        is_share = 0 <= low < 0.5 < high <= 1 and not all(number.is_integer() for number in numbers)
        return low < 0 < high or is_share
    named = set()
    for text in texts:
        if (begun := _begun_name(text, names)) is None:
            return False
        named.add(begun)
    return len(named) > 1


def _numbers(texts: Iterable[str]) -> list[float]:
    """The texts as numbers; empty if one is no finite number."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return []
    return numbers if all(abs(number) < float("inf") for number in numbers) else []


def _begun_name(text: str, names: Names) -> str | None:
    """The answer's name with which a text begins: ``1`` of "1, because ...", ``output b`` of "Output (b)"."""
    words = _NO_WORD.sub(" ", text[: 2 * _LONGEST_LABEL]).split()
    beginnings = (" ".join(words[:2]), "".join(words[:1]))
    return next((begun for begun in beginnings if begun and may_name_one(begun, names)), None)


def _describes_one(path: str, paths: Sequence[str], names: Names) -> bool:
    """Whether a column is one of two, each of which describes one answer: ``is_long_1`` and ``is_long_2``."""
    chosen, rejected = parts_of(names)
    exchanged = {chosen: rejected, rejected: chosen}
    words = split_words(path)
    other = [exchanged.get(word, word) for word in words]
    return other != words and any(split_words(each) == other for each in paths)


def _is_named_comparison(path: str, texts: Iterable[str]) -> bool:
    """Whether the words of a path say that it compares two answers, and its values are short enough for that."""
    words = {word for part in path.split(".") for word in split_words(part)}
    values = [*texts]
    return bool(words & _COMPARING) and words.isdisjoint(_NO_VALUE) and any(len(v) <= _LONGEST_LABEL for v in values)


def _are_orders(texts: Iterable[str]) -> bool:
    orders = {_NO_WORD.sub("", text) for text in texts} - _NOTHING
    return len(orders) > 1 and orders in _ORDERS
