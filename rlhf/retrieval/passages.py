"""Passages and questions, and their files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeVar

from rlhf.data.read import RawRow, read_rows
from rlhf.data.report import describe_bad
from rlhf.data.turns import RowError, require_unicode
from rlhf.errors import UserError
from rlhf.records import BadRow, DataFile, Loaded, RowLocation

T = TypeVar("T")
PASSAGE_COLUMNS = ("text", "id", "title", "document")
QUESTION_COLUMNS = ("question", "answer", "oracle", "quote")


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A piece of a document that fits into a prompt."""

    id: str
    text: str
    title: str = ""
    document: str
    """Name of the document; passages of one document stay on one side of the split."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question that a passage answers."""

    text: str
    answer: str
    oracles: tuple[str, ...]
    """Ids of the passages that answer it; any of them may be quoted, and none is a distractor."""
    quote: str = ""
    """The words of an oracle that hold the answer; empty if the builder finds them."""
    source: RowLocation


def load_passages(path: str) -> Loaded[Passage]:
    """Read passages: rows with ``text``, and optionally ``id``, ``title`` and ``document``.

    A missing id is a hash of title and text; a missing document is the title, or that hash. Rows without text, and rows
    that repeat an id or are no Unicode, are bad rows.

    Raises:
        UserError: the file cannot be read, or no row can be used.
    """
    seen = set[str]()

    def parse(raw: RawRow) -> Passage | str:
        passage = _passage(raw.columns)
        if not isinstance(passage, Passage):
            return passage
        if passage.id in seen:
            return f"repeated id: {passage.id}"
        seen.add(passage.id)
        return passage

    return _load("retrieval.passages", path, parse, PASSAGE_COLUMNS)


def load_questions(path: str) -> Loaded[Question]:
    """Read questions: rows with ``question``, ``answer``, ``oracle`` and optionally ``quote``.

    Raises:
        UserError: the file cannot be read, or no row can be used.
    """
    return _load("retrieval.questions", path, _question, QUESTION_COLUMNS)


def _passage(columns: Mapping[str, object]) -> Passage | str:
    """A passage, or the reason why the row is none."""
    text, title = _text(columns, "text"), _text(columns, "title")
    if not text:
        return "no text"
    hashed = blake2b(f"{title}\0{text}".encode(), digest_size=8).hexdigest()
    return Passage(
        id=_name(columns.get("id")) or hashed,
        text=text,
        title=title,
        document=_name(columns.get("document")) or title or hashed,
    )


def _question(raw: RawRow) -> Question | str:
    """A question, or the reason why the row is none."""
    texts = {name: _text(raw.columns, name) for name in ("question", "answer", "quote")}
    given = raw.columns.get("oracle")
    oracles = tuple(filter(None, map(_name, given if isinstance(given, list | tuple) else [given])))
    missing = [name for name in ("question", "answer") if not texts[name]] + ([] if oracles else ["oracle"])
    if missing:
        return f"no {missing[0]}"
    return Question(
        text=texts["question"], answer=texts["answer"], quote=texts["quote"], oracles=oracles, source=raw.source
    )


def _text(columns: Mapping[str, object], name: str) -> str:
    value = columns.get(name)
    return value.strip() if isinstance(value, str) else ""


def _name(value: object) -> str:
    """An id as text; numbers are ids too."""
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _load(key: str, path: str, parse: Callable[[RawRow], T | str], known: Sequence[str]) -> Loaded[T]:
    rows, bad, files, remarks, unused = list[T](), list[BadRow](), list[DataFile](), list[str](), dict[str, None]()
    for raw in read_rows(path, files=files, remarks=remarks):
        found = raw if isinstance(raw, BadRow) else _parsed(raw, parse)
        if isinstance(found, BadRow):
            bad.append(found)
        else:
            rows.append(found)
        if isinstance(raw, RawRow):
            unused |= dict.fromkeys(name for name in raw.columns if name not in known)
    if not rows:
        what = f"{key} = {path!r} has no row that can be used"
        raise UserError(what, describe_bad(bad).strip(), f"write rows with the columns {', '.join(known)}")
    return Loaded(tuple(rows), tuple(bad), tuple(unused), tuple(files), remarks=tuple(remarks))


def _parsed(raw: RawRow, parse: Callable[[RawRow], T | str]) -> T | BadRow:
    try:
        require_unicode(raw.columns, "the row")
    except RowError as error:
        return BadRow(raw.source, str(error))
    found = parse(raw)
    return BadRow(raw.source, found) if isinstance(found, str) else found


def passages_digest(passages: Sequence[Passage]) -> str:
    """Digest (16 hexadecimal digits) of passages in their order."""
    digest = blake2b(digest_size=8)
    for part in _parts(passages):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _parts(passages: Sequence[Passage]) -> Iterator[bytes]:
    for passage in passages:
        for text in (passage.id, passage.title, passage.text, passage.document):
            yield text.encode()
