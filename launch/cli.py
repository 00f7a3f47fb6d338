"""The ``rlhf`` command."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.config.machine import Stage
from rlhf.config.validate import stages_of
from rlhf.errors import RLHFError, UserError

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 the input is wrong, 3 the machinery failed."""
    options = parse(arguments)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        _run(options)
    except RLHFError as error:
        print(f"rlhf {options.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        print(f"rlhf {options.command}: an error that should not happen; the traceback is above", file=sys.stderr)
        return 3
    return 0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of a command line; ``key.path=value`` settings may stand anywhere after the recipe."""
    options, rest = parser().parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("-") or "=" not in word]
    if unknown:
        parser().error(f"unrecognized arguments: {' '.join(unknown)}")
    options.overrides += rest
    return options


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="rlhf", description="From human feedback to a better policy.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (purpose, example) in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=purpose, epilog=f"example: {example}")
        command.add_argument("recipe", help="YAML file, see recipes/ and docs/configuration.md")
        if name == "generate":
            command.add_argument("--model", required=True, help="model folder or hub name")
            command.add_argument(
                "--prompts", required=True, help="rows with a prompt, as JSONL or any format that data.format reads"
            )
            command.add_argument("--out", help="file to write; without it answers go to standard output")
        command.add_argument(
            "overrides", nargs="*", metavar="key.path=value", help="settings that replace the recipe's"
        )
    return top


def _run(options: argparse.Namespace) -> None:
    """Check everything that can be checked, then start."""
    from launch.preflight import prepare

    recipe, device, gpus = prepare(options.recipe, options.overrides, options.command)
    from actors.cluster import cluster
    from actors.session import Session
    from rlhf.tracking.console import Console
    from rlhf.tracking.quiet import quiet_framework_logs

    session = Session(recipe=recipe, console=Console(sys.stdout), device=device, gpus=gpus)
    is_new = not session.root.exists()
    with quiet_framework_logs(_logs(session.root) / f"driver-{options.command}.log") as stdout:
        session.console = Console(stdout, progress=recipe.tracking.progress)
        _read_data(session, options.command, is_new)
        with cluster(recipe.placement.ray_address, device == "cuda"):
            _dispatch(options, session)


def _read_data(session: Session, command: Stage, is_new: bool) -> None:
    """Refuse bad data before anything is started; a run that never began leaves nothing."""
    try:
        for stage in () if command == "generate" else stages_of(session.recipe, command):
            session.read_data(stage)
    except UserError:
        if is_new:
            shutil.rmtree(session.root)
        raise


def _logs(root: Path) -> Path:
    try:
        (root / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to {root}", str(error), "set runs_dir to a folder that you may write to"
        ) from error
    return root / "logs"


def _dispatch(options: argparse.Namespace, session: Session) -> None:
    from actors.pipeline import run_pipeline, run_stage

    if options.command == "pipeline":
        run_pipeline(session)
    elif options.command == "generate":
        from launch.generate import generate

        generate(session, options.model, options.prompts, options.out)
    else:
        run_stage(session, options.command)


if __name__ == "__main__":
    sys.exit(main())
