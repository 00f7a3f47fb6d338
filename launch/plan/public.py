"""Finds a model's shape: in its folder, in the local hub cache, and in a table of public models.

Nothing is downloaded. The table holds what ``count_shape`` counts for models with a public ``config.json``: they are
planned without that file, and without importing PyTorch. ``python -m tests.launch.plan.public_models`` writes it.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from launch.plan.shapes import Linear, ModelShape, count_shape
from rlhf.config.schema import ModelConfig
from rlhf.errors import UserError

TABLE = Path(__file__).with_name("public.json")
SAME_SHAPE = re.compile(r"-Instruct(?=-v0|$)|-deduped$")
"""Name suffixes that do not change the shape."""


def find_shape(path: str, environment: Mapping[str, str] = os.environ) -> ModelShape:
    """Find the shape of a model folder or hub name, without a download.

    Raises:
        UserError: no config is found here or in the table, or transformers cannot build its model.
    """
    known = public_shapes()
    for folder in (Path(path).expanduser(), *_cached(path, environment)):
        if (folder / "config.json").is_file():
            from rlhf.models.folder import read_settings

            return count_shape(read_settings(folder, ModelConfig()), path)
    if shape := known.get(path) or known.get(SAME_SHAPE.sub("", path)):
        return replace(shape, name=path)
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    raise UserError(
        f"the shape of {path!r} is not known here",
        "neither a folder of that name nor the hub cache has its config.json, nor does the table of public models",
        (f"did you mean {near[0]}? Or: " if near else "") + "give a folder that holds the model's config.json",
    )


@cache
def public_shapes() -> dict[str, ModelShape]:
    """The table: hub name → shape."""
    rows = json.loads(TABLE.read_text(encoding="utf-8"))
    return {
        name: ModelShape(name=name, **{**row, "linears": tuple(Linear(*each) for each in row["linears"])})
        for name, row in rows.items()
    }


def _cached(path: str, environment: Mapping[str, str]) -> list[Path]:
    """Snapshots of a hub name in huggingface_hub's cache, newest first."""
    home = environment.get("HF_HOME") or str(Path("~/.cache/huggingface").expanduser())
    hub = Path(environment.get("HF_HUB_CACHE") or Path(home) / "hub")
    snapshots = hub / f"models--{path.replace('/', '--')}" / "snapshots"
    found = [folder for folder in snapshots.glob("*") if folder.is_dir()]
    return sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)
