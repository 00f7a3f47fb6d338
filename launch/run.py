"""Runs the stages of a recipe, or ``rlhf generate``, in this process, after checking everything that can be checked."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from launch.options import Overrides, RecipePath, Run
from rlhf.errors import UserError
from rlhf.garbage import paused_collection
from rlhf.storage.write_errors import unwritable
from rlhf.unicode import encodable

if TYPE_CHECKING:
    from actors.session import Session
    from rlhf.config.schema import Recipe, Stage

Work = Callable[[], object]
LOGS = "logs"


def run_stages(command: Run, recipe: RecipePath, overrides: Overrides) -> None:
    """Run a stage of a recipe, or all of them."""
    run_work(command, recipe, overrides, partial(_load_stages, command))


def run_generate(
    recipe: RecipePath,
    overrides: Overrides,
    model: Annotated[str, typer.Option(metavar="MODEL", help="model folder or hub name")],
    prompts: Annotated[
        str, typer.Option(metavar="FILE", help="rows with a prompt, as JSONL or any format that data.format reads")
    ],
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="file to write; without it answers go to standard output")
    ] = None,
    n: Annotated[int, typer.Option("--n", metavar="N", help="number of answers to every prompt, a row for each")] = 1,
    best_of: Annotated[
        int | None,
        typer.Option(metavar="N", help="of N answers write the best by the recipe's rewards, as data for rlhf sft"),
    ] = None,
) -> None:
    """Answer a file of prompts.

    Raises:
        UserError: ``n`` is given with ``best_of``, or what is named cannot be used.
    """
    if best_of is not None and n != 1:
        raise UserError("--n with --best-of", "the best of N answers is one answer", "leave out one of them")

    def load(session: Session) -> Work:
        from launch.best_of import generate_best_of, read_best_of
        from launch.generate import generate, read_questions

        if best_of is not None:
            return partial(generate_best_of, read_best_of(session, model, prompts, out, best_of))
        return partial(generate, read_questions(session, model, prompts, out, n))

    run_work("generate", recipe, overrides, load)


def run_work(
    command: Stage, path: str, overrides: Sequence[str], load: Callable[[Session], Work], log: str | None = None
) -> None:
    """Check everything that can be checked, then start.

    Args:
        command: ``generate`` if it trains nothing: the recipe needs no data then.
        load: reads and checks the data, and returns the function that runs the command.
        log: the command's name in the name of its log; by default ``command``.
    """
    from rlhf.recovery.stop import StopRequest, before_the_start

    with before_the_start(), ExitStack() as stack:
        started = time.time()
        if command != "generate":  # whose standard output may be its answers
            print("reading the recipe and the data", flush=True)
        with paused_collection():
            from rlhf.config.load import load_recipe

            given = load_recipe(path, overrides, partial(_further_problems, command))
            from actors.preload import preloading

            sessions = stack.enter_context(preloading(given, command))  # while this process imports and checks
            from launch.preflight import prepare

            recipe, device, gpus = prepare(given, command)
            from actors.cluster import cluster
            from actors.ray_watch import RayWatch
            from actors.session import Session
            from rlhf.tracking.console import Console
            from rlhf.tracking.quiet import quiet_framework_logs

        session = Session(recipe=recipe, console=Console(sys.stdout), device=device, gpus=gpus)
        new = [folder for folder in (session.root, session.root.parent) if not folder.exists()]
        with quiet_framework_logs(_log_of(session.root, log or command)) as stdout:
            session.console = Console(stdout, progress=recipe.tracking.progress)
            session.last_resort.show = partial(_show, stdout)
            session.ray_watch = RayWatch(session.last_resort)
            session.stop = StopRequest(recipe.checkpoint, started, time.time, os.environ, session.last_resort)
            session.stop.notice = session.last_resort.show
            go = _load(load, session, new)
            is_finished = command != "generate" and session.is_finished(command)
            address = recipe.placement.ray_address
            ray = nullcontext() if is_finished else cluster(address, session.ray_watch, sessions)
            with ExitStack() as signals, ray:
                signals.enter_context(session.stop.install())  # after Ray, which handles SIGTERM until it has ended
                _go(go, session, new)


def _further_problems(command: Stage, recipe: Recipe) -> list[UserError]:
    from launch.preflight import further_problems  # imports much, and most recipes are not refused

    return further_problems(recipe, command)


def _show(stream: TextIO, text: str) -> None:
    """Write a line to the user, from a signal handler, which may not print, or from another thread.

    A terminal that was closed cannot be written to: what follows is discarded, and the run goes on.
    """
    try:
        os.write(stream.fileno(), encodable(f"\n{text}\n").encode())
    except ValueError:  # closed: the command is over
        return
    except OSError:
        from rlhf.tracking.console import discard  # is loaded: no slow import in a signal handler

        discard(stream)


def _go(go: Work, session: Session, new: Sequence[Path]) -> None:
    """Run the command. If its input is bad, the folders in ``new`` are removed again."""
    try:
        go()
    except UserError:
        _remove(session, new)
        raise


def _load(load: Callable[[Session], Work], session: Session, new: Sequence[Path]) -> Work:
    """Check the data before anything is started. If it is bad, the folders in ``new`` are removed again."""
    try:
        with paused_collection():
            return load(session)
    except BaseException:
        _remove(session, new)
        raise


def _remove(session: Session, new: Sequence[Path]) -> None:
    """Remove new folders, unless they hold more: another command may have finished a stage there meanwhile."""
    from actors.session import BASE

    if session.root in new and {path.name for path in session.root.iterdir()} <= {LOGS, BASE}:
        shutil.rmtree(session.root)
    if session.root.parent in new:
        with suppress(OSError):  # another run may use it by now
            session.root.parent.rmdir()


def _load_stages(command: Run, session: Session) -> Work:
    from actors.pipeline import run_pipeline, run_stage
    from launch.preflight import check_classifiers, check_models_of_ppo, check_template, check_updates
    from rlhf.config.stages import stages_of

    for stage in stages_of(session.recipe, command):
        session.read_data(stage)
        check_template(session, stage)
        check_updates(session, stage)
        check_classifiers(session, stage)
    if command == "ppo":
        check_models_of_ppo(session)
    return partial(run_pipeline, session) if command == "pipeline" else partial(run_stage, session, command)


def _log_of(root: Path, name: str) -> Path:
    """The log of a command in the run's folder, to which it can write."""
    log = root / LOGS / f"driver-{name}.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.open("ab").close()  # an older one may be another user's, and the folder's file system read-only
    except OSError as error:
        raise unwritable(root, error) from error
    return log
