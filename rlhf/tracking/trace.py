"""``trace.json``: the timeline of a stage's processes, in the format of Perfetto and Chrome.

It is an array of trace events, one per line. The array is closed when the stage ends; readers accept it unclosed, so
that the file of a running or killed stage opens too. A command that resumes the run appends to it.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.storage.jsonl import json_safe, parsed
from rlhf.storage.write_errors import writing
from rlhf.tracking.spans import Span

MOST_BYTES = 64 * 2**20
"""Size above which a file is renamed to ``trace-<k>.json`` and a new one begun, so that a browser can load each."""
CONTROLLER = "controller"
"""Name of the controller's row, and of its group."""
LONGEST_TEXT = 300
"""Largest number of characters of one detail; ``events.jsonl`` has full messages."""
OVERLAPS = 64
"""Number of a row's recent spans that are checked for overlap with the next one."""

Event = dict[str, Any]
RowIds = tuple[int, int]
"""(``pid``, ``tid``): the format's numbers of a group and of a row."""


class TraceFile:
    """Writes spans and instants; the file is created with the first one."""

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        self.path, self._most_bytes = path, most_bytes
        self._groups: dict[str, int] = {}
        self._rows: dict[tuple[str, str], RowIds] = {}
        self._recent: dict[RowIds, deque[Span]] = {}
        self._size: int | None = None
        """Size of the open file in bytes; None while it is not open."""

    def add(self, group: str, row: str, spans: Sequence[Span]) -> None:
        """Write spans with times of ``time.time``. Rows of one ``group`` are shown together.

        A span that overlaps another one without being nested in it goes to a second row, ``<row> (2)``.

        Raises:
            OSError: the file cannot be written.
        """
        if not spans:
            return
        self._begin()
        events: list[Event] = []
        for span in sorted(spans, key=lambda span: (span.begin, -span.end)):
            ids = self._free_row(group, row, span, events)
            events.append(_complete_event(span, ids))
        self._write(events)

    def instant(self, name: str, when: float, row: str, details: Mapping[str, Any]) -> None:
        """Write an event at one point in time, in ``row`` if it exists, else in the controller's.

        Raises:
            OSError: the file cannot be written.
        """
        self._begin()
        events: list[Event] = []
        known_rows = [ids for (_, known), ids in self._rows.items() if known == row]
        pid, tid = known_rows[-1] if known_rows else self._row_ids(CONTROLLER, CONTROLLER, events)
        event = {"ph": "i", "s": "t", "name": name, "cat": "event", "pid": pid, "tid": tid, "ts": _micro(when)}
        self._write([*events, event | {"args": _short(details)}])

    def close(self) -> None:
        """Close the array; later writes reopen it.

        Raises:
            OSError: the file cannot be written.
        """
        if self._size is not None:
            self._append("\n]\n")
            self._size = None

    def _free_row(self, group: str, row: str, span: Span, events: list[Event]) -> RowIds:
        k = 1
        while True:
            ids = self._row_ids(group, row if k == 1 else f"{row} ({k})", events)
            recent = self._recent.setdefault(ids, deque(maxlen=OVERLAPS))
            if not any(_overlap_partly(span, other) for other in recent):
                recent.append(span)
                return ids
            k += 1

    def _row_ids(self, group: str, row: str, events: list[Event]) -> RowIds:
        """Ids of a row; the events that name a new row are appended to ``events``."""
        if (group, row) not in self._rows:
            if group not in self._groups:
                self._groups[group] = len(self._groups) + 1
                events += _names(self._groups[group], 0, group)
            pid = self._groups[group]
            tid = 1000 * pid + 1 + sum(known == group for known, _ in self._rows)
            self._rows[group, row] = pid, tid
            events += _names(pid, tid, row)
        return self._rows[group, row]

    def _begin(self) -> None:
        """Open the existing file, or begin a new one."""
        if self._size is not None and not self.path.exists():  # somebody deleted it
            self._groups, self._rows, self._size = {}, {}, None
        if self._size is not None and self._size > self._most_bytes:
            self._put_aside()
        if self._size is None:
            self._size = self._reopen() if self.path.exists() else 0

    def _put_aside(self) -> None:
        self.close()
        k = 1
        while (aside := self.path.with_name(f"{self.path.stem}-{k}{self.path.suffix}")).exists():
            k += 1
        self.path.rename(aside)
        self._groups, self._rows, self._size = {}, {}, None

    def _reopen(self) -> int:
        """Remove the array's end or an incomplete last line, read the names of rows, and return the size."""
        end, events = 0, []
        with self.path.open("rb") as file:
            for line in file:
                if line.strip() not in (b"[", b"]"):
                    if (event := _event(line)) is None:
                        break
                    if event.get("ph") == "M":
                        events.append(event)
                    end = file.tell() - (len(line) - len(line.rstrip(b",\r\n")))
        os.truncate(self.path, end)
        self._learn_rows(events)
        return end

    def _learn_rows(self, events: Sequence[Event]) -> None:
        named = [(event["name"], event["pid"], event["tid"], str(event["args"].get("name"))) for event in events]
        self._groups = {name: pid for kind, pid, _, name in named if kind == "process_name"}
        groups = {pid: name for name, pid in self._groups.items()}
        self._rows = {
            (groups[pid], name): (pid, tid) for kind, pid, tid, name in named if kind == "thread_name" and pid in groups
        }

    def _write(self, events: Sequence[Event]) -> None:
        lines = [json.dumps(json_safe(event), allow_nan=False) for event in events]  # ASCII: any text can be written
        self._append(("[\n" if not self._size else ",\n") + ",\n".join(lines))

    def _append(self, text: str) -> None:
        with writing(self.path), self.path.open("ab") as file:
            file.write(text.encode())
            self._size = file.tell()


def read_trace(path: Path) -> Iterator[Event]:
    """Yield the events of a file, complete or not; other lines are left out."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            event = _event(line)
            if event is not None:
                yield event


def _event(line: bytes) -> Event | None:
    """Parse the event in a line of the array; None if it has none."""
    return parsed(line.strip().rstrip(b","))


def _names(pid: int, tid: int, name: str) -> list[Event]:
    """Events that name a group (``tid`` 0) or a row, and sort them in order of appearance."""
    kind, number = ("thread", tid) if tid else ("process", pid)
    events = (f"{kind}_name", {"name": name}), (f"{kind}_sort_index", {"sort_index": number})
    return [{"ph": "M", "name": what, "pid": pid, "tid": tid, "args": args} for what, args in events]


def _complete_event(span: Span, ids: RowIds) -> Event:
    begin, end = _micro(span.begin), _micro(span.end)
    args = {**({} if span.step is None else {"step": span.step}), **span.details}
    event = {"ph": "X", "name": span.name, "pid": ids[0], "tid": ids[1], "ts": begin, "dur": end - begin}
    return event | ({"args": _short(args)} if args else {})


def _overlap_partly(span: Span, other: Span) -> bool:
    """Whether two spans overlap without nesting."""
    apart = span.end <= other.begin or other.end <= span.begin
    inside = span.begin <= other.begin and other.end <= span.end
    around = other.begin <= span.begin and span.end <= other.end
    return not (apart or inside or around)


def _short(details: Mapping[str, Any]) -> Event:
    return {
        name: value[:LONGEST_TEXT] if isinstance(value, str) else value
        for name, value in details.items()
        if value not in (None, "")
    }


def _micro(seconds: float) -> int:
    return round(seconds * 1e6)
