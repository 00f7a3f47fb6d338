"""Arguments that several commands have."""

from __future__ import annotations

import argparse


def add_recipe(command: argparse.ArgumentParser) -> None:
    """A recipe and the settings that replace its own."""
    command.add_argument("recipe", help="YAML file, see recipes/ and docs/configuration.md")
    command.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that replace the recipe's")
