"""Faults of an evaluation set that make its numbers wrong: each finding names its rows.

Near-duplicates are found by MinHash (Broder 1997) with locality-sensitive hashing, by ``datasketch``; a candidate pair
is reported only if the exact Jaccard similarity of its shingles is high enough, so that no finding is a collision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from datasketch import MinHash, MinHashLSH

from rlhf.records import RowLocation

SHINGLE = 5
"""Characters of a shingle; characters, so that scripts without spaces work too."""
SIMILAR = 0.8
"""Jaccard similarity of two texts' shingles from which they are near-duplicates."""
PERMUTATIONS = 128
CANDIDATE = 0.7
"""Estimated similarity at which a pair is examined: below ``SIMILAR``, because the estimate is rough."""
LARGEST_SHARE = 0.9
"""Largest fraction of the rows that one label may have."""
FEWEST_TO_BALANCE = 20
"""Rows; in fewer, shares of labels mean little."""
SHORTEST_ANSWER = 40
"""Characters; that shorter answers are equal, such as a yes, is no fault."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """A row of an evaluation set, or of training data."""

    location: RowLocation
    prompt: str
    answers: tuple[str, ...] = ()
    """The references; for training data the trained answer."""
    label: str = ""
    columns: Mapping[str, object] | None = None
    """All columns of the row."""


@dataclass(frozen=True, kw_only=True)
class LintFinding:
    """A fault and where it is."""

    kind: str
    location: RowLocation
    text: str

    def __str__(self) -> str:
        return f"{self.location}: {self.kind}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class LintLimits:
    """What a set must keep to."""

    required: tuple[str, ...] = ()
    """Columns that every row must have, not empty."""
    longest_answer: int | None = None
    """In characters."""


def lint(rows: Sequence[EvaluationRow], train: Sequence[EvaluationRow], limits: LintLimits) -> list[LintFinding]:
    """All findings, by kind and row.

    Args:
        train: rows that a model was trained on; empty if unknown.
    """
    return [
        *missing_fields(rows, limits.required),
        *too_long(rows, limits.longest_answer),
        *imbalance(rows),
        *duplicates(rows, "question", lambda row: (row.prompt,)),
        *duplicates(rows, "answer", _long_answers),
        *leaks(rows, train),
    ]


def missing_fields(rows: Sequence[EvaluationRow], required: Sequence[str]) -> Iterator[LintFinding]:
    """Rows without a required column, or with an empty one."""
    for row in rows:
        for name in required:
            value = (row.columns or {}).get(name)
            if value is None or value in ("", [], {}) or (isinstance(value, str) and not value.strip()):
                yield LintFinding(kind="missing field", location=row.location, text=f"no {name}")


def too_long(rows: Sequence[EvaluationRow], longest: int | None) -> Iterator[LintFinding]:
    """Rows with a reference that no model could write within the limit."""
    for row in rows:
        length = max(map(len, row.answers), default=0)
        if longest is not None and length > longest:
            text = f"{length:,} characters, and the limit is {longest:,}"
            yield LintFinding(kind="answer over the limit", location=row.location, text=text)


def imbalance(rows: Sequence[EvaluationRow]) -> Iterator[LintFinding]:
    """A label that nearly all rows have: a model that always answers it would look good."""
    labels = Counter(row.label for row in rows if row.label)
    total = labels.total()
    if total < FEWEST_TO_BALANCE:
        return
    label, count = labels.most_common(1)[0]
    if count > LARGEST_SHARE * total:
        first = next(row for row in rows if row.label == label)
        text = f"{count:,} of {total:,} rows have the label {label!r}"
        yield LintFinding(kind="label imbalance", location=first.location, text=text)


def duplicates(
    rows: Sequence[EvaluationRow], what: str, texts_of: Callable[[EvaluationRow], tuple[str, ...]]
) -> Iterator[LintFinding]:
    """Rows with a text that repeats, or nearly repeats, one of an earlier row; the earliest is named."""
    index = _Index()
    for number, row in enumerate(rows):
        found = index.nearest(texts_of(row))
        index.add(number, texts_of(row))
        if found is not None:
            yield _duplicate(what, row, rows[found[0]], found[1])


def leaks(rows: Sequence[EvaluationRow], train: Sequence[EvaluationRow]) -> Iterator[LintFinding]:
    """Rows whose question, or answer of some length, is in the training data."""
    yield from _leaks(rows, train, "question", lambda row: (row.prompt,))
    yield from _leaks(rows, train, "answer", _long_answers)


def _long_answers(row: EvaluationRow) -> tuple[str, ...]:
    return tuple(text for text in row.answers if len(text.strip()) >= SHORTEST_ANSWER)


def _leaks(
    rows: Sequence[EvaluationRow],
    train: Sequence[EvaluationRow],
    what: str,
    texts_of: Callable[[EvaluationRow], tuple[str, ...]],
) -> Iterator[LintFinding]:
    """Rows with a text that is in the training data."""
    index = _Index()
    for number, row in enumerate(train):
        index.add(number, texts_of(row))
    for row in rows:
        found = index.nearest(texts_of(row))
        if found is not None:
            yield _leak(what, row, train[found[0]], found[1])


def _duplicate(what: str, row: EvaluationRow, other: EvaluationRow, similarity: float) -> LintFinding:
    kind = f"duplicate {what}" if similarity == 1 else f"near-duplicate {what}"
    return LintFinding(kind=kind, location=row.location, text=f"as in {other.location} (similarity {similarity:.2f})")


def _leak(what: str, row: EvaluationRow, other: EvaluationRow, similarity: float) -> LintFinding:
    text = f"{what} as in {other.location} (similarity {similarity:.2f})"
    return LintFinding(kind="leak from training", location=row.location, text=text)


class _Index:
    """Each text once, by MinHash, and the first row that has it. Blank texts are left out."""

    def __init__(self) -> None:
        self._buckets = MinHashLSH(threshold=CANDIDATE, num_perm=PERMUTATIONS)
        self._rows: dict[frozenset[str], int] = {}

    def add(self, number: int, texts: Sequence[str]) -> None:
        for text in filter(str.strip, texts):
            own = shingles(text)
            if own not in self._rows:
                self._rows[own] = number
                self._buckets.insert(own, _minhash(own))

    def nearest(self, texts: Sequence[str]) -> tuple[int, float] | None:
        """The row of the text most similar to one of these, the earliest of equal ones, and the similarity.

        None below ``SIMILAR``.
        """
        found = []
        for own in map(shingles, filter(str.strip, texts)):
            alike = [own] if own in self._rows else self._buckets.query(_minhash(own))
            found += [(self._rows[each], jaccard(own, each)) for each in alike]
        best = max(found, key=lambda each: (each[1], -each[0]), default=(0, 0.0))
        return best if best[1] >= SIMILAR else None


def shingles(text: str) -> frozenset[str]:
    """Runs of ``SHINGLE`` characters of a text, case and white space apart; a shorter text is one shingle."""
    plain = " ".join(text.casefold().split())
    return frozenset(plain[i : i + SHINGLE] for i in range(max(1, len(plain) - SHINGLE + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Size of the intersection divided by that of the union."""
    return len(one & other) / len(one | other)


def _minhash(of: frozenset[str]) -> MinHash:
    digest = MinHash(num_perm=PERMUTATIONS)
    digest.update_batch([shingle.encode(errors="backslashreplace") for shingle in sorted(of)])
    return digest
