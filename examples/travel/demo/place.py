"""The demo's folder: training runs, and for each act a folder with its result and the state that it left.

An act that finished is not repeated. One that was interrupted begins again from the state of the act before it, so that
no half of it is left in the registry, in the votes or in the gates' histories. Stages of training continue by
themselves: ``rlhf`` keeps their checkpoints.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.commands import give_command
from examples.travel.demo.sizes import DemoSizes
from rlhf.storage.durable import write_atomically
from rlhf.storage.jsonl import read_lines, to_line

RECIPE = "recipes/quickstart.yaml"
Result = dict[str, Any]
"""What the page needs to know of an act, as JSON."""


@dataclass(frozen=True, kw_only=True)
class DemoPlace:
    """Where a demo is, and how large it is."""

    root: Path
    sizes: DemoSizes
    seed: int = 0

    @property
    def data(self) -> Path:
        """The world's data."""
        return self.root / "data"

    @property
    def log(self) -> Path:
        """Output of all commands."""
        return self.root / "log.txt"

    def model(self, run: str, stage: str) -> Path:
        """A finished stage's model."""
        return (self.root / "runs" / run / stage / "model").resolve()

    def rlhf(self, title: str, *words: str | Path, expect: Collection[int] = (0,), log: Path | None = None) -> float:
        """Give a command; returns its seconds. Raises as ``give_command``."""
        return give_command(title, [str(word) for word in words], log or self.log, expect=expect)

    def train(self, title: str, stage: str, run: str, *settings: str) -> float:
        """Train a stage of a run by the recipe; a finished one is skipped by ``rlhf``. Returns the seconds."""
        return self.rlhf(title, stage, RECIPE, *self.settings(run), *self.sizes.settings, *settings)

    def settings(self, run: str) -> list[str]:
        """Settings that all commands of a run share."""
        return [
            f"name={run}",
            f"runs_dir={self.root / 'runs'}",
            f"seed={self.seed}",
            *(f"data.{kind}={self.data / kind}.jsonl" for kind in ("demonstrations", "preferences", "prompts")),
            "reward.ceiling=null",
            "evaluation.show=0",
            "tracking.wandb=disabled",
        ]

    def act(self, number: int, title: str, play: Callable[[DemoPlace, Path], Result]) -> Result:
        """Play an act, unless it was; returns its result.

        Args:
            play: gets the place and a folder with the state that the act before left, and leaves its own there.
        """
        folder, before = (self.root / "acts" / str(n) for n in (number, number - 1))
        result = folder / "result.json"
        if result.exists():
            print(f"\n{number}. {title}: done before", flush=True)
            return dict(json.loads(result.read_text(encoding="utf-8")))
        print(f"\n{number}. {title}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)  # of an interrupted attempt
        state = folder / "state"
        if (before / "state").exists():
            shutil.copytree(before / "state", state)
        else:
            state.mkdir(parents=True)
        begin = time.time()
        found = {**play(self, state), "seconds": 0.0}
        found["seconds"] = round(time.time() - begin, 1)
        write_atomically(result, json.dumps(found, indent=1) + "\n")
        return found


def write_rows(path: Path, rows: list[Result] | list[dict[str, str]]) -> Path:
    """Write JSON lines; returns the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(map(to_line, rows)))
    return path


def prompts_of(path: Path) -> list[str]:
    """The prompts of a file, each once, in their order."""
    return list(dict.fromkeys(str(row["prompt"]) for row in read_lines(path)))
