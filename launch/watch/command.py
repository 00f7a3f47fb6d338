"""``rlhf watch RUN``: follows a run in progress on a live screen. See docs/watching.md."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.options import ADDRESS, Address
from rlhf.errors import UserError

if TYPE_CHECKING:
    from launch.watch.view import RunView

Poll = Callable[[], "RunView | None"]

PURPOSE = "watch a run in progress"
EXAMPLE = "rlhf watch runs/quickstart"

POLL_SECONDS = 0.5
"""Seconds between two polls of a run."""
WAIT_SECONDS = 10.0
"""Time that a run may take to appear, unless ``--wait`` is given."""
PLAIN_SIZE = (120, 40)
"""Columns and lines of a single picture without a terminal."""
RUNS_SHOWN = 10
"""Most runs of a folder that are named."""
FOOTER = "Ctrl-C leaves; the run continues"


def run(
    folder: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="the run's folder, runs/<name>, or that of one of its stages")
    ] = None,
    job: Annotated[
        str | None,
        typer.Option(
            metavar="JOB", help="watch a submitted job, by its log and its folder, if that is on this machine"
        ),
    ] = None,
    address: Address = ADDRESS,
    wait: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help=f"how long to wait for a run that does not exist yet (default: {WAIT_SECONDS:.0f}, with --once 0)",
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="show the run's current state, and end")] = False,
) -> int:
    """Show the run until it ends or the viewer leaves; returns 0 for both.

    Raises:
        UserError: there is no such run.
        MachineryError: the job's cluster does not answer.
    """
    if not folder and not job:
        raise UserError("give a run's folder, or --job JOB", fix=f"for example {EXAMPLE}")
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    seconds = wait if wait is not None else 0.0 if once else WAIT_SECONDS
    try:
        if job:
            from launch.watch.job import watch_job

            poll: Poll = watch_job(job, address, folder)
        else:
            poll = _watch_folder(folder or Path(), follows=not once)
        view = _wait_for_run(poll, folder or Path(), seconds)
        if once:
            _show_picture(view)
        elif _is_screen():
            _follow_on_screen(poll, view)
        else:
            _follow_in_lines(poll, view)
    except KeyboardInterrupt:
        print("the run continues; only the view ended", file=sys.stderr)
    except BrokenPipeError:  # the reader of the lines closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _watch_folder(path: Path, follows: bool) -> Poll:
    from launch.watch.folder import RESTART_SECONDS, FolderWatch, WatchedFolder

    watch = FolderWatch(WatchedFolder.of(path), patience=RESTART_SECONDS if follows else 0.0)

    def poll() -> RunView | None:
        try:
            return watch.poll()
        except PermissionError as error:
            raise UserError(f"cannot read {error.filename or path}", str(error.strerror)) from error

    return poll


def _wait_for_run(poll: Poll, path: Path, seconds: float) -> RunView:
    """Wait for the run to exist; returns its first state.

    Raises:
        UserError: it does not appear in time.
    """
    begin, is_reported = time.monotonic(), False
    while (view := poll()) is None:
        _refuse_folder_of_runs(path)
        if time.monotonic() - begin >= seconds:
            raise _no_run(path, seconds)
        if not is_reported:
            print(f"{path}: no run there yet; waiting {seconds:.0f} s for it", file=sys.stderr, flush=True)
            is_reported = True
        time.sleep(min(POLL_SECONDS, seconds))
    return view


def _refuse_folder_of_runs(path: Path) -> None:
    from launch.watch.folder import runs_in

    if runs := runs_in(path):
        more = f" and {len(runs) - RUNS_SHOWN} older ones" if len(runs) > RUNS_SHOWN else ""
        named = ", ".join(reversed(runs[-RUNS_SHOWN:])) + more
        what = f"{path} is no run, and holds {len(runs)}: {named}"
        raise UserError(what, fix=f"name one: rlhf watch {path / runs[-1]}")


def _no_run(path: Path, seconds: float) -> UserError:
    waited = f"nothing began there within {seconds:.0f} s" if seconds else ""
    if not path.exists():
        return UserError(
            f"{path} is not there", waited, "give the folder of a run, runs/<name>; --wait 600 waits for it"
        )
    if not path.is_dir():
        return UserError(f"{path} is no folder", "", "give the folder of a run, runs/<name>")
    return UserError(
        f"no run has begun in {path}", waited or "none of sft/, reward/, dpo/, ppo/ is in it", "--wait 600 waits for it"
    )


def _is_screen() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def _show_picture(view: RunView) -> None:
    """Show a single picture."""
    from rich.console import Console

    from launch.watch.screen import picture

    width, height = PLAIN_SIZE
    console = Console() if sys.stdout.isatty() else Console(width=width, height=height)
    width, height = console.size
    console.print(picture(view, width, height - 1), height=height - 1)


def _follow_on_screen(poll: Poll, view: RunView) -> None:
    from rich.console import Console
    from rich.live import Live

    from launch.watch.screen import picture

    console, last = Console(), view
    with _leaving_on_signals(), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(picture(last, *console.size, FOOTER), refresh=True)
            if last.ending is not None:
                break
            time.sleep(POLL_SECONDS)
            last = poll() or last
    _show_picture(last)
    print(_describe_end(last), flush=True)


def _follow_in_lines(poll: Poll, view: RunView) -> None:
    from launch.watch.lines import Lines

    lines, last = Lines(), view
    while True:
        for line in lines.new(last):
            print(line, flush=True)
        if last.ending is not None:
            print(_describe_end(last), flush=True)
            return
        time.sleep(POLL_SECONDS)
        last = poll() or last


def _describe_end(view: RunView) -> str:
    from rlhf.tracking.console import one_line

    assert view.ending is not None
    return f"{one_line(view.title)}: {one_line(view.ending.text)}"


@contextmanager
def _leaving_on_signals() -> Iterator[None]:
    """Restore the terminal if a signal ends the command within the block."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    old = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
