"""Command line arguments shared by several commands."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Run = Literal["sft", "reward", "dpo", "ppo", "pipeline"]
"""Commands that train."""
ADDRESS = "http://127.0.0.1:8265"
"""Ray's dashboard on this machine."""

_RECIPE = typer.Argument(metavar="RECIPE", help="YAML file, see recipes/ and docs/configuration.md")
RecipePath = Annotated[str, _RECIPE]
OptionalRecipePath = Annotated[str | None, _RECIPE]
Overrides = Annotated[
    list[str],
    typer.Argument(
        default_factory=list, show_default=False, metavar="key.path=value", help="settings that replace the recipe's"
    ),
]
Address = Annotated[
    str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", metavar="URL", help="the dashboard of a job's cluster")
]
