"""Writes a stage's folder as a PPO run does, with the run's own functions."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rlhf.storage.jsonl import append_line
from rlhf.tracking.run_folder import RunFolder

HOSTILE = "\x1b[2J\x1b[31mred\x07\x9b5A\u202egnp.exe\x1b]0;owned\x07\r\n[bold]markup[/bold]\ud800 end"
"""Hostile output of a model: escape sequences, a reversal of the text's direction, markup, half a character."""
MEMBERS = ("policy rank 0", "policy rank 1", "critic rank 0", "reference rank 0", "reward rank 0", "rollout engine 0")


class Pretend:
    """A stage in progress, held by this process. ``root`` is the run's folder."""

    def __init__(self, root: Path, stage: str = "ppo", steps: int = 4) -> None:
        self.steps = steps
        self.run = RunFolder.create(root, stage, f"ppo:\n  steps: {steps}\n", "digest")

    def status(self, phase: str, step: int | None, dead: str = "", since: float | None = None) -> None:
        """Enter a phase."""
        members = {
            name: {
                "state": "dead" if name == dead else "serving",
                "heard": time.time() - 3,
                "node": "10.0.0.1",
                "process": 100 + i,
            }
            for i, name in enumerate(MEMBERS)
        }
        since = time.time() if since is None else since
        status = {"phase": phase, "step": step, "steps": self.steps, "since": since, "members": members}
        (self.run.path / "status.json").write_text(json.dumps(status), encoding="utf-8")

    def step(self, step: int, response: str = "an answer", **metrics: float | None) -> None:
        """Record a step."""
        row = {
            "step": step,
            "objective/scores": 0.25 * step,
            "objective/kl": 0.5 * step,
            "rollout/length_mean": 20.0,
            "time/rollout": 1.5,
            "time/update": 0.5,
            "time/step": 2.0,
            "perf/samples_per_second": 16.0,
            **metrics,
        }
        append_line(self.run.metrics, row)
        sample = {"prompt": "Where is it?", "response": response, "score": 0.5, "kl": 1.0, "pick": "best"}
        append_line(self.run.samples, {"step": step, **sample})

    def event(self, kind: str, **details: Any) -> None:
        """Record an event now."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + 1))
        append_line(self.run.events, {"time": now, "kind": kind, **details})


def go_on(root: Path, steps: int, seconds: float) -> None:
    """Write a whole stage, with a step every few seconds."""
    run = Pretend(root, steps=steps)
    run.status("start", None)
    time.sleep(seconds)
    for step in range(steps):
        for phase in ("rollout", "score", "advantages", "update", "publish"):
            run.status(phase, step, dead="critic rank 0" if step == 2 and phase == "update" else "")
            time.sleep(seconds / 5)
        run.step(step, HOSTILE if step % 2 else "a fine answer. " * 20)
        if step == 2:
            run.event("actor_died", member="critic rank 0", step=2, phase="update", cause="killed")
            run.event("actor_replaced", member="critic rank 0", seconds=3.25)
    run.event("checkpoint", step=steps, bytes=10**9, path=f"checkpoints/step_{steps}")
    run.run.finish({})


if __name__ == "__main__":
    go_on(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
