"""Console output of a run: a progress line per stage, a summary at the end, answers side by side.

Text written by models is shown as plain text: it can neither style the screen nor move the cursor.
"""

from __future__ import annotations

import os
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

import rich.console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

Number = float | str
PLAIN_WIDTH = 120
"""Width of a table, in columns, without a terminal."""
PLAIN_INTERVAL_SECONDS = 5.0
"""Shortest interval between progress lines without a terminal."""


class Console:
    """Prints to the user's screen. Output of frameworks goes to a file, see ``rlhf.tracking.quiet``."""

    def __init__(self, stream: TextIO, *, progress: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare the output to ``stream``.

        Args:
            progress: draw bars if ``stream`` is a terminal; otherwise lines are printed.
            clock: returns seconds.
        """
        self._stream, self._clock = stream, clock
        self._rich = rich.console.Console(file=stream, width=None if stream.isatty() else PLAIN_WIDTH, highlight=False)
        self._bars = progress and self._rich.is_terminal
        self._is_busy = False

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Report]:
        """Context of one stage's progress display; yields a ``Report`` to call after each step.

        Within the display of another stage nothing is shown: there is one bar at a time.
        """
        if self._is_busy:
            yield ignore_progress
            return
        self._is_busy = True
        try:
            if self._bars:
                with self._bar(title, total) as report:
                    yield report
            else:
                yield _PlainReport(title, total, self._stream, self._clock)
        finally:
            self._is_busy = False

    @contextmanager
    def _bar(self, title: str, total: int) -> Iterator[Report]:
        progress = _progress(self._rich)
        progress.start()
        try:
            yield _BarReport(progress, progress.add_task(escape(title), total=total, numbers=""))
        finally:
            _write(self._stream, progress.stop)

    def print(self, text: str) -> None:
        """Print ``text`` without styles and control characters."""
        _write(self._stream, lambda: self._rich.print(Text(plain_text(text))))

    def notice(self, text: str) -> None:
        """Show one line while a stage runs, above its progress bar if there is one.

        It is never wrapped: it stays one line in a log. If nobody can see it any more, the run goes on.
        """
        line = one_line(text)
        if self._bars:
            _write(self._stream, lambda: self._rich.print(Text(line), soft_wrap=True))
        else:
            _write(self._stream, lambda: print(line, file=self._stream, flush=True))

    @property
    def has_colour(self) -> bool:
        """Whether the stream shows styles."""
        return self._rich.color_system is not None and not self._rich.no_color

    def page(self, page: Text) -> None:
        """Print styled text; the caller has applied ``plain_text`` to foreign parts."""
        self._rich.print(page)

    def line(self, text: str) -> None:
        """Write one machine-readable line: never wrapped, never styled."""
        self._stream.write(text + "\n")

    def summary(self, title: str, rows: Mapping[str, Number]) -> None:
        """Print a table of names and values below its title, which may be wider."""
        table = Table(show_header=False)
        for name, value in rows.items():
            table.add_row(Text(plain_text(name)), Text(plain_text(format_number(value))))
        _write(self._stream, lambda: self._rich.print(Text(plain_text(title), style="bold"), table, sep="\n"))

    def side_by_side(self, prompt: str, before: str, after: str) -> None:
        """Print a prompt, and the two answers below it in two columns."""
        table = Table(title=Text(plain_text(prompt), style="bold"), title_justify="left", expand=True)
        table.add_column("before", ratio=1)
        table.add_column("after", ratio=1)
        table.add_row(Text(plain_text(before)), Text(plain_text(after)))
        _write(self._stream, lambda: self._rich.print(table))


Report = Callable[[int, Mapping[str, Number]], None]
"""``report(done, numbers)``: steps done so far, and name to value in the order of display."""


def ignore_progress(done: int, numbers: Mapping[str, Number]) -> None:
    """A report that shows nothing."""


class _BarReport:
    """Updates a progress bar on a terminal."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def __call__(self, done: int, numbers: Mapping[str, Number]) -> None:
        self._progress.update(self._task, completed=done, numbers=escape(_format_numbers(numbers)))


class _PlainReport:
    """Prints a line at the first and last report, and one every few seconds between them."""

    def __init__(self, title: str, total: int, stream: TextIO, clock: Callable[[], float]) -> None:
        self._title, self._total, self._stream, self._clock = title, total, stream, clock
        self._start = clock()
        self._last: float | None = None

    def __call__(self, done: int, numbers: Mapping[str, Number]) -> None:
        now = self._clock()
        if self._last is not None and done < self._total and now - self._last < PLAIN_INTERVAL_SECONDS:
            return
        self._last = now
        elapsed = now - self._start
        left = format_seconds(elapsed / done * (self._total - done)) if done else "?"
        times = f"{format_seconds(elapsed)} passed, {left} left"
        line = f"{self._title}  {done}/{self._total}  {_format_numbers(numbers)}  {times}"
        _write(self._stream, lambda: print(line, file=self._stream, flush=True))


def _write(stream: TextIO, write: Callable[[], None]) -> None:
    """Show progress; if nobody can see it any more, as after the end of a terminal, the run goes on without."""
    try:
        write()
    except OSError:
        discard(stream)


def discard(stream: TextIO) -> None:
    """Redirect a stream to nowhere: what is buffered, and written later, would fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def plain_text(text: str) -> str:
    """Remove control characters, except line breaks and tabs, and marks that change the direction of writing."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc" and c not in _DIRECTION_MARKS)


_DIRECTION_MARKS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def one_line(value: object) -> str:
    """``value`` as one line of printable characters."""
    text = str(value).encode("utf-8", "replace").decode()
    return " ".join(plain_text(" ".join(text.split())).split())


def format_number(value: Number) -> str:
    """Format a float with four significant digits; other values unchanged."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_seconds(seconds: float) -> str:
    """Format seconds as ``1:02:03``, or ``2:03`` below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def _format_numbers(numbers: Mapping[str, Number]) -> str:
    return plain_text("  ".join(f"{name} {format_number(value)}" for name, value in numbers.items()))


def _progress(console: rich.console.Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
        console=console,
        redirect_stdout=False,  # quiet.py redirects the file descriptors already
        redirect_stderr=False,
    )
