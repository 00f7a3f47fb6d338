"""``trace.json``: what every process of a stage did and when, as Perfetto and Chrome read it.

An array of trace events, one a line. The array is closed when the stage ends; readers take it without its end too, so
the file of a run that is still going, or was killed, opens as well. A command that resumes the run goes on in it.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.storage.jsonl import json_safe, parsed
from rlhf.tracking.spans import Span

MOST_BYTES = 64 * 2**20
"""A file that has grown larger is put aside as ``trace-<k>.json``, and the next begins: a browser has to hold one."""
CONTROLLER = "controller"
"""The row of the controller, and the group that it stands in."""
LONGEST_TEXT = 300
"""Of one detail: messages stand whole in ``events.jsonl``."""
OVERLAPS = 64
"""Spans of a row that are remembered, to tell whether the next overlaps one of them."""

Event = dict[str, Any]
Place = tuple[int, int]
"""(number of the group, number of the row) as the format names them, ``pid`` and ``tid``."""


class TraceFile:
    """Writes spans and instants. Nothing is written before the first of them."""

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        self.path, self._most_bytes = path, most_bytes
        self._groups: dict[str, int] = {}
        self._rows: dict[tuple[str, str], Place] = {}
        self._recent: dict[Place, deque[Span]] = {}
        self._size: int | None = None
        """Bytes of the file that was begun, or taken up; None before that."""

    def add(self, group: str, row: str, spans: Sequence[Span]) -> None:
        """Write spans, whose clock is ``time.time``. Rows of one ``group`` stand together.

        What overlaps another span without being inside it goes into a second row, ``<row> (2)``.

        Raises:
            OSError: the file cannot be written.
        """
        if not spans:
            return
        self._begin()
        events: list[Event] = []
        for span in sorted(spans, key=lambda span: (span.begin, -span.end)):
            place = self._free(group, row, span, events)
            events.append(_slice(span, place))
        self._write(events)

    def instant(self, name: str, when: float, row: str, details: Mapping[str, Any]) -> None:
        """Write something that happened at a moment: in that row, or in the controller's where there is none.

        Raises:
            OSError: the file cannot be written.
        """
        self._begin()
        events: list[Event] = []
        places = [place for (_, known), place in self._rows.items() if known == row]
        pid, tid = places[-1] if places else self._place(CONTROLLER, CONTROLLER, events)
        told = {"ph": "i", "s": "t", "name": name, "cat": "event", "pid": pid, "tid": tid, "ts": _micro(when)}
        self._write([*events, told | {"args": _short(details)}])

    def close(self) -> None:
        """End the array; it can be taken up again.

        Raises:
            OSError: the file cannot be written.
        """
        if self._size is not None:
            self._append("\n]\n")
            self._size = None

    def _free(self, group: str, row: str, span: Span, events: list[Event]) -> Place:
        k = 1
        while True:
            place = self._place(group, row if k == 1 else f"{row} ({k})", events)
            recent = self._recent.setdefault(place, deque(maxlen=OVERLAPS))
            if not any(_cross(span, other) for other in recent):
                recent.append(span)
                return place
            k += 1

    def _place(self, group: str, row: str, events: list[Event]) -> Place:
        """Where a row is; ``events`` get its name where it is new."""
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
        """Take up the file that is there, or begin one."""
        if self._size is not None and self._size > self._most_bytes:
            self._put_aside()
        if self._size is None:
            self._size = self._take_up() if self.path.exists() else 0

    def _put_aside(self) -> None:
        self.close()
        k = 1
        while (aside := self.path.with_name(f"{self.path.stem}-{k}{self.path.suffix}")).exists():
            k += 1
        self.path.rename(aside)
        self._groups, self._rows, self._size = {}, {}, None

    def _take_up(self) -> int:
        """Cut off the array's end, and what a killed run left of a last line; learn the rows that the file names."""
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
        self._learn(events)
        return end

    def _learn(self, events: Sequence[Event]) -> None:
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
        with self.path.open("ab") as file:
            file.write(text.encode())
            self._size = file.tell()


def read_trace(path: Path) -> Iterator[Event]:
    """The events of a file, whole or not; a line that is no event is left out."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            event = _event(line)
            if event is not None:
                yield event


def _event(line: bytes) -> Event | None:
    """The event in a line of the array; None where it holds none."""
    return parsed(line.strip().rstrip(b","))


def _names(pid: int, tid: int, name: str) -> list[Event]:
    """What names a group (``tid`` 0) or a row, and has them stand in the order in which they appeared."""
    kind, number = ("thread", tid) if tid else ("process", pid)
    events = (f"{kind}_name", {"name": name}), (f"{kind}_sort_index", {"sort_index": number})
    return [{"ph": "M", "name": what, "pid": pid, "tid": tid, "args": args} for what, args in events]


def _slice(span: Span, place: Place) -> Event:
    begin, end = _micro(span.begin), _micro(span.end)
    args = {**({} if span.step is None else {"step": span.step}), **span.details}
    event = {"ph": "X", "name": span.name, "pid": place[0], "tid": place[1], "ts": begin, "dur": end - begin}
    return event | ({"args": _short(args)} if args else {})


def _cross(span: Span, other: Span) -> bool:
    """Whether two spans overlap, neither inside the other."""
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
