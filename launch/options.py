"""Command line arguments shared by several commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from rlhf.errors import UserError

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
        default_factory=list, show_default=False, metavar="key.path=value", help="settings that replace the file's"
    ),
]
Address = Annotated[
    str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", metavar="URL", help="the dashboard of a job's cluster")
]


def writable(out: str | Path) -> Path:
    """The file of ``--out``, checked to be writable before anything is computed.

    Raises:
        UserError: no file can be written there.
    """
    place = Path(out).expanduser()
    refusal = UserError(f"--out {out}: no file can be written there", fix="name a file in an existing folder")
    try:
        other = place.exists() and not place.is_file()  # a device would be replaced
    except OSError as error:  # a name that is too long
        raise refusal from error
    if other or not place.parent.is_dir() or not os.access(place.parent, os.W_OK):
        raise refusal
    return place
