"""Command line arguments shared by several commands."""

from __future__ import annotations

import argparse

RUNS = ("sft", "reward", "dpo", "ppo", "pipeline")
"""Commands that train."""


def add_recipe(
    command: argparse.ArgumentParser,
    help: str = "YAML file, see recipes/ and docs/configuration.md",
    is_needed: bool = True,
) -> None:
    """Add a recipe and settings that override its own."""
    command.add_argument("recipe", nargs=None if is_needed else "?", help=help)
    command.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that replace the recipe's")


def add_stage(command: argparse.ArgumentParser, help: str) -> None:
    """Add the command whose stages are meant, for tools that do not run the recipe."""
    command.add_argument("--stage", default="pipeline", choices=RUNS, help=help)
