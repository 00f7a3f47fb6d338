"""Arguments that several commands have."""

from __future__ import annotations

import argparse

RUNS = ("sft", "reward", "dpo", "ppo", "pipeline")
"""Commands that train."""


def add_recipe(
    command: argparse.ArgumentParser,
    help: str = "YAML file, see recipes/ and docs/configuration.md",
    is_needed: bool = True,
) -> None:
    """A recipe and the settings that replace its own."""
    command.add_argument("recipe", nargs=None if is_needed else "?", help=help)
    command.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that replace the recipe's")


def add_stage(command: argparse.ArgumentParser, help: str) -> None:
    """The command that a recipe is meant for, where it is not run."""
    command.add_argument("--stage", default="pipeline", choices=RUNS, help=help)
