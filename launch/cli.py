"""The ``rlhf`` command: parses the command line, runs the command, and turns errors into messages and exit codes.

``rlhf --install-completion`` sets up completion of commands and options in the user's shell.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from types import ModuleType
from typing import Any, TextIO

import typer

import launch.cycle.command
import launch.data
import launch.doctor.command
import launch.evaluate.command
import launch.feedback.commands
import launch.gate.command
import launch.plan.command
import launch.registry.commands
import launch.report.command
import launch.retrieval.commands
import launch.serve.batch_command
import launch.serve.command
import launch.submit
import launch.watch.command
from launch.options import Overrides, RecipePath, Run
from launch.run import run_generate, run_stages
from rlhf.errors import RLHFError, UserError
from rlhf.storage.write_errors import FULL, UNWRITABLE, tell, way_on
from rlhf.unicode import encodable, escape_in_output

SCREEN_LINES, SCREEN_WIDTH = 38, 500
"""Longest message, in lines, and longest line, in characters."""

EXIT_CODES = "exit codes: 0 done, 2 wrong input, 3 failed, 75 stopped: the same command resumes (docs/failures.md)"

SHORT_HELP = {"help_option_names": ["-h", "--help"]}


@dataclass(frozen=True)
class Command:
    """A command: its function, whose parameters are its arguments and options, and its help."""

    run: Callable[..., int | None]
    """Returns the exit code, or None for 0."""
    purpose: str
    example: str
    ends: str = ""
    """Exit codes, for the help."""


@dataclass(frozen=True)
class CommandGroup:
    """Commands with a common first word, by their second."""

    commands: Mapping[str, Command]
    purpose: str
    example: str
    ends: str = ""


@dataclass(frozen=True)
class Call:
    """A parsed command line."""

    command: str
    """The words that name the command."""
    run: Callable[..., int | None]
    options: Mapping[str, Any]


def _stage(name: Run, purpose: str, example: str) -> Command:
    def run(recipe: RecipePath, overrides: Overrides) -> None:
        run_stages(name, recipe, overrides)

    return Command(run, purpose, example, EXIT_CODES)


def _tool(module: ModuleType) -> Command:
    return Command(module.run, module.PURPOSE, module.EXAMPLE)


def _group(module: ModuleType) -> CommandGroup:
    """The group of a module whose ``COMMANDS`` holds function, purpose and example of each, by name."""
    commands = {name: Command(*entry) for name, entry in module.COMMANDS.items()}
    return CommandGroup(commands, module.PURPOSE, module.EXAMPLE)


COMMANDS: Mapping[str, Command | CommandGroup] = {
    "sft": _stage("sft", "fine-tune a model on demonstrations", "rlhf sft recipes/quickstart.yaml"),
    "reward": _stage(
        "reward", "train a reward model on comparisons", "rlhf reward recipes/quickstart.yaml reward.epochs=2"
    ),
    "dpo": _stage(
        "dpo", "learn from comparisons without a reward model", "rlhf dpo recipes/quickstart.yaml dpo.beta=0.2"
    ),
    "ppo": _stage(
        "ppo", "improve the policy against the reward model", "rlhf ppo recipes/quickstart.yaml ppo.steps=20"
    ),
    "pipeline": _stage(
        "pipeline", "all stages of a recipe, skipping finished ones", "rlhf pipeline recipes/quickstart.yaml"
    ),
    "generate": Command(
        run_generate,
        "answer a JSONL file of prompts",
        "rlhf generate recipes/quickstart.yaml --model runs/quickstart/ppo/model --prompts p.jsonl",
    ),
    "evaluate": _tool(launch.evaluate.command),
    "data": _tool(launch.data),
    "plan": _tool(launch.plan.command),
    "doctor": _tool(launch.doctor.command),
    "submit": _tool(launch.submit),
    "watch": _tool(launch.watch.command),
    "report": _tool(launch.report.command),
    "feedback": _group(launch.feedback.commands),
    "retrieval": _group(launch.retrieval.commands),
    "serve": _tool(launch.serve.command),
    "batch": _tool(launch.serve.batch_command),
    "gate": _tool(launch.gate.command),
    "registry": _group(launch.registry.commands),
    "cycle": _tool(launch.cycle.command),
}


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """The exit code: 0 done, 2 the input is wrong, 3 the machinery failed, 75 stopped."""
    may_pass: bool = False
    """Whether the same command may succeed if it is repeated. An unknown error counts as one that may pass."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    return run_command(sys.argv[1:] if arguments is None else arguments).code


def run_command(arguments: Sequence[str]) -> Ended:
    """Run a command, and report its error.

    Standard output is flushed here: Python itself would report a failure only at its end, with a traceback.
    """
    _open_closed_streams()
    escape_in_output()
    name = " ".join(["rlhf", *_command_words(arguments)])
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    ended = _run(name, arguments)
    try:
        sys.stdout.flush()
    except OSError:  # the command has failed, and its reason is reported
        _discard(sys.stdout)
    return ended


def _run(name: str, arguments: Sequence[str]) -> Ended:
    try:
        call = parse(arguments)
        code = call.run(**call.options) or 0
        sys.stdout.flush()
        return Ended(code)
    except RLHFError as error:
        _report(on_one_screen(f"{name}: {error}"))
        return Ended(error.exit_code, error.may_pass)
    except KeyboardInterrupt:
        _report("interrupted")
        return Ended(130)
    except BrokenPipeError:  # the reader of the output has seen enough, as in `rlhf data ... | head`
        _discard(sys.stdout)
        return Ended(128 + signal.SIGPIPE)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (UNWRITABLE if error.filename else FULL):
            fix = f"{way_on(error)}, or write elsewhere, and give the command again."
            _report(on_one_screen(f"{name}: {tell(error, 'the output')}. {fix}"))
            _discard(sys.stdout)
            return Ended(3, may_pass=True)
        _report(f"{traceback.format_exc()}{name}: unexpected error; the traceback is above")
        return Ended(3, may_pass=True)


def _report(message: str) -> None:
    """Print to standard error, which may be full too: then the exit code is all."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def _open_closed_streams() -> None:
    """Give a command whose output was closed (``>&-``) one that goes nowhere; another file would get its number."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _discard(stream: TextIO) -> None:
    """Redirect a stream to nowhere: Python writes its buffered text when it ends, and would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def parse(arguments: Sequence[str]) -> Call:
    """Parse a command line; ``key.path=value`` settings may stand anywhere after the recipe.

    Raises:
        UserError: it cannot be understood.
        SystemExit: it asks for help or for completion, which has been printed.
    """
    try:
        call = typer.main.get_command(_build_parser()).main(arguments, prog_name="rlhf", standalone_mode=False)
    except typer.TyperException as error:
        words = " ".join(["rlhf", *_command_words(arguments), "--help"])
        fix = _as_setting(arguments) or f"`{words}` shows what can be given{_example(arguments)}"
        raise UserError(error.format_message(), fix=fix) from error
    if not isinstance(call, Call):
        raise SystemExit(call)
    return call


def _as_setting(arguments: Sequence[str]) -> str:
    """Fix for a setting of the recipe that is written as an option; empty if there is none."""
    for i, word in enumerate(arguments):
        key, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and "." in key and key.partition(".")[0].isidentifier():
            following = arguments[i + 1] if not equals and i + 1 < len(arguments) else "<value>"
            return f"settings are written without dashes: {key}={value if equals else following}"
    return ""


def _example(arguments: Sequence[str]) -> str:
    words = _command_words(arguments)
    if not words:
        return ""
    entry = COMMANDS[words[0]]
    if isinstance(entry, CommandGroup) and len(words) > 1:
        entry = entry.commands[words[1]]
    return f"; for example `{entry.example}`"


def _command_words(arguments: Sequence[str]) -> list[str]:
    """The first words of a command line that name a command: none, one, or two where the first is a group's."""
    entry = COMMANDS.get(arguments[0]) if arguments else None
    if entry is None:
        return []
    is_grouped = isinstance(entry, CommandGroup) and len(arguments) > 1 and arguments[1] in entry.commands
    return list(arguments[: 2 if is_grouped else 1])


def _build_parser() -> typer.Typer:
    """The parser, in which each command returns its ``Call``. Help is plain text: rich's frames cost 0.3 s."""
    parser = typer.Typer(
        help="From human feedback to a better policy.", rich_markup_mode=None, context_settings=SHORT_HELP
    )
    for name, entry in COMMANDS.items():
        if isinstance(entry, CommandGroup):
            parser.add_typer(_build_group(name, entry), name=name, **_help(entry))
        else:
            _add(parser, name, entry)
    return parser


def _build_group(first: str, group: CommandGroup) -> typer.Typer:
    parser = typer.Typer(rich_markup_mode=None)
    for name, command in group.commands.items():
        _add(parser, f"{first} {name}", command)
    return parser


def _add(parser: typer.Typer, words: str, command: Command) -> None:
    parser.command(words.split()[-1], **_help(command))(_deferred(words, command.run))


def _help(entry: Command | CommandGroup) -> dict[str, Any]:
    """What typer shows of a command."""
    return {
        "help": entry.purpose,
        "short_help": entry.purpose,
        "epilog": f"example: {entry.example}\n\n{entry.ends}".strip(),
        "context_settings": SHORT_HELP,
    }


def _deferred(words: str, function: Callable[..., int | None]) -> Callable[..., Call]:
    @wraps(function)
    def call(**options: Any) -> Call:
        return Call(words, function, options)

    return call


def on_one_screen(message: str) -> str:
    """A message without control characters, cut in the middle to ``SCREEN_LINES`` lines of ``SCREEN_WIDTH``: its end
    holds the fix."""
    from rlhf.tracking.console import plain_text

    lines = plain_text(encodable(message)).splitlines()
    if len(lines) > SCREEN_LINES:
        lines = [*lines[: SCREEN_LINES - 6], f"  ... {len(lines) - SCREEN_LINES + 1} lines more", *lines[-5:]]
    return "\n".join(map(_shorten, lines))


def _shorten(line: str) -> str:
    return line if len(line) <= SCREEN_WIDTH else f"{line[: SCREEN_WIDTH - 103]}...{line[-100:]}"


if __name__ == "__main__":
    sys.exit(main())
