"""The ``rlhf`` command."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import launch.data
import launch.doctor.command
import launch.plan.command
import launch.report.command
import launch.submit
import launch.watch.command
from launch.options import add_recipe
from rlhf.config.stages import stages_of
from rlhf.errors import RLHFError, UserError
from rlhf.recovery.stop import before_the_start

if TYPE_CHECKING:
    from actors.session import Session

COMMANDS = {
    "sft": ("fine-tune a model on demonstrations", "rlhf sft recipes/quickstart.yaml"),
    "reward": ("train a reward model on comparisons", "rlhf reward recipes/quickstart.yaml reward.epochs=2"),
    "dpo": ("learn from comparisons without a reward model", "rlhf dpo recipes/quickstart.yaml dpo.beta=0.2"),
    "ppo": ("improve the policy against the reward model", "rlhf ppo recipes/quickstart.yaml ppo.steps=20"),
    "pipeline": ("all stages of a recipe, skipping finished ones", "rlhf pipeline recipes/quickstart.yaml"),
    "generate": (
        "answer a JSONL file of prompts",
        "rlhf generate recipes/quickstart.yaml --model runs/quickstart/ppo/model --prompts p.jsonl",
    ),
}
"""Commands that run a recipe's stages in this process."""

TOOLS: dict[str, ModuleType] = {
    "data": launch.data,
    "plan": launch.plan.command,
    "doctor": launch.doctor.command,
    "submit": launch.submit,
    "watch": launch.watch.command,
    "report": launch.report.command,
}
"""Commands around a run: modules with ``PURPOSE``, ``EXAMPLE``, ``add_options`` and ``run``, which returns the exit
code or None."""

SCREEN_LINES, SCREEN_WIDTH = 38, 500
"""Longest message, in lines, and longest line, in characters."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 the input is wrong, 3 the machinery failed, 75 stopped."""
    options = parse(arguments)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        if options.command in TOOLS:
            return int(TOOLS[options.command].run(options) or 0)
        with before_the_start():
            _run(options)
    except RLHFError as error:
        print(on_one_screen(f"rlhf {options.command}: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        print(f"rlhf {options.command}: unexpected error; the traceback is above", file=sys.stderr)
        return 3
    return 0


def on_one_screen(message: str) -> str:
    """A message without control characters, cut in the middle to ``SCREEN_LINES`` lines of ``SCREEN_WIDTH``: its end
    holds the fix."""
    from rlhf.tracking.console import plain_text

    lines = plain_text(message.encode("utf-8", "backslashreplace").decode()).splitlines()
    if len(lines) > SCREEN_LINES:
        lines = [*lines[: SCREEN_LINES - 6], f"  ... {len(lines) - SCREEN_LINES + 1} lines more", *lines[-5:]]
    return "\n".join(map(_shorten, lines))


def _shorten(line: str) -> str:
    return line if len(line) <= SCREEN_WIDTH else f"{line[: SCREEN_WIDTH - 103]}...{line[-100:]}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; ``key.path=value`` settings may stand anywhere after the recipe."""
    options, rest = parser().parse_known_args(arguments)
    takes_settings = "overrides" in options
    if takes_settings and options.recipe is None and rest and "=" not in rest[0] and not rest[0].startswith("-"):
        options.recipe = rest.pop(0)  # argparse finds an optional positional only before the options
    unknown = [word for word in rest if word.startswith("-") or "=" not in word or not takes_settings]
    if unknown:
        parser().error(f"unrecognized arguments: {' '.join(unknown)}")
    if takes_settings:
        options.overrides += rest
    return options


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    top = argparse.ArgumentParser(prog="rlhf", description="From human feedback to a better policy.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def added(name: str, purpose: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=purpose, description=purpose, epilog=f"example: {example}")

    for name, texts in COMMANDS.items():
        command = added(name, *texts)
        add_recipe(command)
        if name == "generate":
            command.add_argument("--model", required=True, help="model folder or hub name")
            command.add_argument(
                "--prompts", required=True, help="rows with a prompt, as JSONL or any format that data.format reads"
            )
            command.add_argument("--out", help="file to write; without it answers go to standard output")
    for name, tool in TOOLS.items():
        tool.add_options(added(name, tool.PURPOSE, tool.EXAMPLE))
    return top


def _run(options: argparse.Namespace) -> None:
    """Check everything that can be checked, then start."""
    started = time.time()
    from launch.preflight import prepare

    recipe, device, gpus = prepare(options.recipe, options.overrides, options.command)
    from actors.cluster import cluster
    from actors.session import Session
    from rlhf.recovery.stop import StopRequest
    from rlhf.tracking.console import Console
    from rlhf.tracking.quiet import quiet_framework_logs

    session = Session(recipe=recipe, console=Console(sys.stdout), device=device, gpus=gpus)
    new = [folder for folder in (session.root, session.root.parent) if not folder.exists()]
    with quiet_framework_logs(_logs(session.root) / f"driver-{options.command}.log") as stdout:
        session.console = Console(stdout, progress=recipe.tracking.progress)
        session.stop = StopRequest(recipe.checkpoint, started, time.time, os.environ)
        go = _read_data(options, session, new)
        with ExitStack() as signals, cluster(recipe.placement.ray_address, device == "cuda"):
            signals.enter_context(session.stop.install())  # after Ray, which handles SIGTERM too, until Ray has ended
            go()


def _read_data(options: argparse.Namespace, session: Session, new: Sequence[Path]) -> Callable[[], object]:
    """Check the data before anything is started; returns the function that runs the command.

    If the data is bad, the folders in ``new`` are removed again.
    """
    try:
        return _load_command(options, session)
    except BaseException:
        if session.root in new:
            shutil.rmtree(session.root)
        if session.root.parent in new:
            with suppress(OSError):  # another run may use it by now
                session.root.parent.rmdir()
        raise


def _load_command(options: argparse.Namespace, session: Session) -> Callable[[], object]:
    from actors.pipeline import run_pipeline, run_stage
    from launch.preflight import check_classifiers, check_models_of_ppo, check_updates

    if options.command == "generate":
        from launch.generate import generate, read_questions

        return partial(generate, read_questions(session, options.model, options.prompts, options.out))
    for stage in stages_of(session.recipe, options.command):
        session.read_data(stage)
        check_updates(session, stage)
        check_classifiers(session, stage)
    if options.command == "ppo":
        check_models_of_ppo(session)
    return (
        partial(run_pipeline, session)
        if options.command == "pipeline"
        else partial(run_stage, session, options.command)
    )


def _logs(root: Path) -> Path:
    try:
        (root / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to {root}", str(error), "set runs_dir to a folder that you may write to"
        ) from error
    return root / "logs"


if __name__ == "__main__":
    sys.exit(main())
