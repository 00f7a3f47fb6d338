"""A run in a process of its own, and faults that are done to it from outside: signals to real processes, by phase."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.session import Session
from rlhf.config.load import load_recipe
from rlhf.storage.jsonl import read_lines
from rlhf.tracking.console import Console
from tests.end_to_end.small import RECIPE, ROOT, STEPS, overrides

POLL_SECONDS = 0.003


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A signal to an actor's process, some time into a phase of a step."""

    step: int
    phase: str
    member: str
    signal: signal.Signals = signal.SIGKILL
    delay: float = 0.05


def _as_from_a_terminal() -> None:
    """Signals that whoever runs the tests ignores, as ``nohup`` and shells do in the background, end the command."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Run:
    """A stage in a process of its own, by its own command or by ``command``; its folder tells where it is."""

    def __init__(
        self,
        folder: Path,
        name: str,
        settings: Sequence[str],
        program: str = "launch.cli",
        stage: str = "ppo",
        command: str = "",
        **environment: str,
    ) -> None:
        self.path = folder / "runs" / name / stage
        self.begun = time.time()
        self.output = folder / f"{name}-{time.time_ns()}.out"
        arguments = [sys.executable, "-m", program, command or stage, str(RECIPE), *settings]
        # A W&B service of this process would outlive the one that is killed, and hold its run.
        own = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
        self.process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env={**own, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", **environment},
            stdout=self.output.open("w"),
            stderr=subprocess.STDOUT,
            preexec_fn=_as_from_a_terminal,
        )

    def status(self) -> dict[str, Any]:
        """Phase, step, and the members with their processes; empty before this command has come so far."""
        with suppress(OSError, ValueError):
            status: dict[str, Any] = json.loads((self.path / "status.json").read_text())
            if status["since"] > self.begun:
                return status
        return {}

    def wait_for(self, step: int | None, phase: str, seconds: float = 900) -> dict[str, Any]:
        """The status when the run is in this phase of this step, or of any."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            status = self.status()
            if step in (None, status.get("step")) and status.get("phase") == phase:
                return status
            assert self.process.poll() is None, self.said()
            time.sleep(POLL_SECONDS)
        raise AssertionError(f"step {step} never came to {phase}:\n{self.said()}")

    def wait_for_checkpoint(self, step: int, seconds: float = 300) -> None:
        """Wait until the checkpoint of so many steps is committed; step 0 has none."""
        end = time.monotonic() + seconds
        while step and not (self.path / "checkpoints" / f"step_{step}").exists():
            assert time.monotonic() < end and self.process.poll() is None, self.said()
            time.sleep(POLL_SECONDS)

    def do(self, fault: Fault) -> int:
        """Do this to the run; returns the process that it was done to."""
        status = self.wait_for(fault.step, fault.phase)
        time.sleep(fault.delay)
        return self.strike(fault, status)

    def strike(self, fault: Fault, status: dict[str, Any]) -> int:
        """The same at once."""
        member = status["members"][fault.member]
        process = int(member["process"])
        os.kill(process, fault.signal)
        return process

    def end(self, seconds: float = 900) -> int:
        """Its exit code."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the run did not end:\n{self.said()}") from None

    def said(self) -> str:
        """What it printed."""
        return self.output.read_text(errors="replace")[-4000:]


def from_nothing(folder: Path, name: str) -> list[str]:
    """Settings of PPO on a model of random weights, whose answers are long; with a critic, a reference and a function
    for a reward. ``make_data_and_reward`` has filled ``folder``."""
    recipe = load_recipe(RECIPE, overrides(folder, "start"))
    start = Session(recipe=recipe, console=Console(sys.stdout), device="cpu", gpus=0).base
    return [
        *overrides(folder, name),
        f"ppo.policy_init={start}",
        f"ppo.critic_init={start}",
        f"rewards={{e: {{function: '{folder}/reward.py:score'}}}}",
        "ppo.batch_size=32",
        "algorithm.critic_warmup_steps=0",
        "rollout.max_response_length=60",
        "evaluation.prompts=4",
        "recovery.backoff_seconds=0.1",
    ]


ENGINE, REWARD_RANK = "rollout engine 0", "reward e rank 0"


@dataclass(frozen=True, kw_only=True)
class Faults:
    """All that is done to one run, and what is lost by it."""

    steps: int
    aimed: str
    sent: tuple[Fault, ...]
    lost: tuple[tuple[int, str, str, str], ...]
    """Step, phase, member and kind of each loss, in their order."""
    zero_stage: int = 1


FEW = Faults(
    steps=STEPS,
    aimed="rank-dies@1 slow@1 engine-dies@2 sender-dies@2 snapshot-dies@2",
    sent=(),
    lost=(
        (1, "update", "policy rank 1", "actor_died"),
        (2, "rollout", ENGINE, "actor_died"),
        (2, "publish", "policy rank 0", "actor_died"),
        (2, "snapshot", "policy rank 1", "actor_died"),
    ),
)
"""Of the pipeline's PPO, whose first step is committed before."""


@dataclass(frozen=True, kw_only=True)
class Survived:
    """A run that is over: its folder, its last command's exit code, the faults, and the processes that signals hit."""

    path: Path
    code: int
    hit: tuple[int, ...]
    said: str
    faults: Faults

    @property
    def events(self) -> list[dict[str, Any]]:
        return read_lines(self.path / "events.jsonl")

    @property
    def losses(self) -> dict[tuple[int, str], dict[str, Any]]:
        """By step and phase."""
        kinds = ("actor_died", "actor_stalled", "actor_failed")
        return {(event["step"], event["phase"]): event for event in self.events if event["kind"] in kinds}

    def is_whole(self) -> bool:
        """Whether it ended well, with every step once and every sample there."""
        assert self.code == 0, self.said
        rows = read_lines(self.path / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(self.faults.steps))
        assert all(row["rollout/dropped"] == 0 and row["rollout/set_aside"] == 0 for row in rows)
        assert all(row["rollout/staleness_mean"] == 0 for row in rows)
        return (self.path / "model" / "model.safetensors").exists()


def patient(faults: Faults) -> list[str]:
    """Settings for a run that bears these faults: one restart for each loss, and short deadlines."""
    return [
        f"recovery.restarts={len(faults.lost) or len(faults.aimed.split())}",
        "recovery.backoff_seconds=0.1",
        "recovery.stall_floor_seconds=15",
        "recovery.stall_factor=3",
        *(f"placement.{role}.zero_stage={faults.zero_stage}" for role in ("policy", "critic")),
    ]
