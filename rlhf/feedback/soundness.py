"""The digest of a project's content, and the check that its file is sound."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator

from rlhf.feedback.encoding import canonical

_VOTES = """
SELECT items.id AS item, raters.alias AS rater, choice, is_swapped, guideline, is_repeat, is_adjudication,
    is_suspended, json_extract(note, '$.reasons') AS reasons
FROM votes JOIN items ON items.number = votes.item JOIN raters ON raters.number = votes.rater
"""
_TALLIES = """
SELECT items.id FROM items LEFT JOIN votes ON votes.item = items.number GROUP BY items.number
HAVING first <> total(feeds = 'first') OR second <> total(feeds = 'second') OR neither <> total(feeds = 'neither')
    OR adjudications <> total(feeds = 'adjudication')
"""
_RATERS = """
SELECT alias FROM raters WHERE votes <> (SELECT count(*) FROM votes WHERE votes.rater = raters.number)
"""


def content_digest(db: sqlite3.Connection) -> str:
    """SHA-256 of items, votes and thumbs, in the order of their text; see ``Store.digest``."""
    total = hashlib.sha256()
    for line in sorted(_lines(db)):
        total.update(line.encode())
        total.update(b"\n")
    return total.hexdigest()


def _lines(db: sqlite3.Connection) -> Iterator[str]:
    for row in db.execute("SELECT body FROM items"):
        yield "item " + row["body"]
    for row in db.execute(_VOTES):
        yield "vote " + canonical(dict(row))
    for row in db.execute("SELECT body FROM thumbs"):
        body = json.loads(row["body"])
        yield "thumb " + canonical({key: body[key] for key in ("prompt", "answer", "is_good")})


def find_faults(db: sqlite3.Connection) -> list[str]:
    """What is wrong with a file, one line each; empty if nothing is."""
    pages = [row[0] for row in db.execute("PRAGMA integrity_check")]
    faults = [f"damaged: {text}" for text in pages if text != "ok"]
    faults += [f"broken reference in table {row['table']}" for row in db.execute("PRAGMA foreign_key_check")]
    faults += [f"the tallies of item {row['id']} differ from its votes" for row in db.execute(_TALLIES)]
    faults += [f"the number of votes of rater {row['alias']} is wrong" for row in db.execute(_RATERS)]
    return faults
