"""A whole project as JSON lines and back, without loss: settings, guidelines, raters, items, votes, thumbs.

Every line is an object with a ``kind``. The order is such that a line only names what came before it. Secrets are not
in the file: access tokens belong to a project's own store, and the audit and undone votes stay there too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rlhf.data.read import read_rows
from rlhf.data.turns import RowError
from rlhf.errors import UserError
from rlhf.feedback.encoding import decode_item, decode_thumb, decode_vote, encode_item, encode_thumb, encode_vote
from rlhf.feedback.guideline_table import Guideline
from rlhf.feedback.records import Item, Thumb, Vote
from rlhf.feedback.settings import ProjectSettings
from rlhf.feedback.store import Store
from rlhf.feedback.typed import require_types
from rlhf.records import BadRow, DataFile, RowLocation

VERSION = 1
"""Version of the format, in the first line."""


@dataclass(frozen=True, kw_only=True)
class KnownRater:
    """A rater as a file holds them."""

    alias: str
    is_adjudicator: bool
    is_imported: bool
    is_suspended: bool
    suspension_reason: str
    created: float
    """Unix time in seconds."""
    acknowledged: tuple[tuple[int, float], ...]
    """Versions of the guidelines that the rater has acknowledged, and when (Unix time in seconds)."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a native file holds."""

    settings: ProjectSettings
    guidelines: tuple[Guideline, ...]
    raters: tuple[KnownRater, ...]
    items: tuple[Item, ...]
    votes: tuple[Vote, ...]
    thumbs: tuple[Thumb, ...]
    file: DataFile


def project_rows(store: Store) -> Iterator[dict[str, Any]]:
    """All lines of a project's native file."""
    yield {"kind": "project", "version": VERSION, "settings": asdict(store.settings)}
    yield from ({"kind": "guideline", **asdict(guideline)} for guideline in store.guidelines())
    acknowledged = _acknowledged(store)
    for rater in store.raters():
        row = asdict(rater)
        del row["votes"]
        yield {"kind": "rater", **row, "acknowledged": acknowledged.get(rater.alias, [])}
    yield from ({"kind": "item", **encode_item(item)} for item in store.items())
    yield from ({"kind": "vote", **encode_vote(vote)} for vote in store.votes())
    yield from ({"kind": "thumb", **encode_thumb(thumb)} for thumb in store.thumbs())


def _acknowledged(store: Store) -> dict[str, list[tuple[int, float]]]:
    """Alias → version and time of every acknowledgement."""
    query = """
        SELECT alias, version, time FROM acknowledgements JOIN raters ON raters.number = rater ORDER BY alias, version
    """
    found: dict[str, list[tuple[int, float]]] = {}
    with store.reading() as db:
        for alias, version, time in db.execute(query):
            found.setdefault(alias, []).append((version, time))
    return found


def read_project(path: str) -> Contents:
    """Read a native file. It is a whole: a line that is damaged makes it unusable.

    Raises:
        UserError: it is no native file, of a newer version, or damaged.
    """
    files: list[DataFile] = []
    found: dict[str, list[Any]] = {kind: [] for kind in _DECODERS}
    for raw in read_rows(path, files=files):
        if isinstance(raw, BadRow):
            raise _damaged(raw.source, raw.reason)
        kind, decoded = _decode(raw.columns, raw.source)
        found[kind].append(decoded)
        if not found["project"]:
            raise _damaged(raw.source, "the first line is not the project's")
        if len(found["project"]) > 1:
            raise _damaged(raw.source, "the project's line occurs twice")
    if not found["project"]:
        raise UserError(f"'{path}' has no content", fix="export the project again")
    lists = {kind: tuple(found[kind]) for kind in ("guideline", "rater", "item", "vote", "thumb")}
    return Contents(settings=found["project"][0], file=files[0], **{f"{kind}s": rows for kind, rows in lists.items()})


def _decode(columns: Mapping[str, Any], source: RowLocation) -> tuple[str, Any]:
    row = dict(columns)
    kind = row.pop("kind", None)
    if kind not in _DECODERS:
        raise _damaged(source, f"kind is {kind!r:.40}, not {', '.join(_DECODERS)}")
    try:
        decoded = _DECODERS[kind](row)
        require_types(decoded)
        return kind, decoded
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RowError) as error:
        raise _damaged(source, f"{kind}: {type(error).__name__}: {error}") from error


def _settings(row: dict[str, Any]) -> ProjectSettings:
    if row["version"] > VERSION:
        raise UserError(
            f"the file has version {row['version']} of the native format",
            f"this version of rlhf reads up to {VERSION}",
            fix="update rlhf",
        )
    return ProjectSettings(**row["settings"])


def _rater(row: dict[str, Any]) -> KnownRater:
    times = tuple((int(version), float(time)) for version, time in row.pop("acknowledged"))
    return KnownRater(**row, acknowledged=times)


_DECODERS: Mapping[str, Callable[[dict[str, Any]], Any]] = {
    "project": _settings,
    "guideline": lambda row: Guideline(**row),
    "rater": _rater,
    "item": decode_item,
    "vote": decode_vote,
    "thumb": decode_thumb,
}


def _damaged(source: RowLocation, why: str) -> UserError:
    return UserError(
        f"{source}: this is no line of a project that was exported in the format native",
        why,
        "export the project again, or name the file's own format with --format",
    )
