"""``make chaos``: one PPO run to which fifty things are done at random moments, and what it made of them.

Processes are killed or stopped, the controller's own among them; the command is then given again, as a scheduler would.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlhf.storage.jsonl import read_lines
from tests.end_to_end.faults import Fault, Run, from_nothing
from tests.end_to_end.small import make_data_and_reward

BATCH = 32
HEAD = """# Survival

<!-- Written by `make chaos` (tests/end_to_end/chaos.py). -->

Measured cost of faults, injected by signals to real processes. [failures.md](failures.md) describes how a run handles
each failure. These are PPO runs; SFT, reward training and DPO are each killed at ten random moments by
`tests/end_to_end/test_supervised_resume.py`, which compares the model with that of an uninterrupted stage, bit for bit.
"""
DRIVER = "controller"
CALM = ("rollout", "score", "advantages", "update", "publish", "snapshot", "checkpoint")
"""Phases of a step: a fault that comes while the run is still recovering from the last one belongs to that."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Something that can be done to a run. ``weight`` is how often, beside the others."""

    member: str
    signal: signal.Signals = signal.SIGKILL
    weight: float = 1.0


KINDS: Mapping[str, Kind] = {
    "engine killed": Kind(member="rollout engine 0", weight=2),
    "engine stopped (SIGSTOP)": Kind(member="rollout engine 0", signal=signal.SIGSTOP, weight=0.5),
    "reward killed": Kind(member="reward e rank 0", weight=2),
    "reference killed": Kind(member="reference rank 0"),
    "policy rank killed": Kind(member="policy rank 1", weight=2),
    "first policy rank killed": Kind(member="policy rank 0"),
    "policy rank stopped (SIGSTOP)": Kind(member="policy rank 1", signal=signal.SIGSTOP, weight=0.5),
    "critic killed": Kind(member="critic rank 0", weight=2),
    "controller killed": Kind(member=DRIVER, weight=1.5),
    "controller asked to stop (SIGTERM)": Kind(member=DRIVER, signal=signal.SIGTERM),
}


@dataclass(frozen=True, kw_only=True)
class Done:
    """A fault that was done: at which step and phase, and how long the run took to be whole again."""

    name: str
    step: int
    phase: str
    seconds: float
    redone: int
    """Samples that were given out, or trained on, again."""


class Chaos:
    """A run and what is done to it."""

    def __init__(self, folder: Path, steps: int, seed: int) -> None:
        make_data_and_reward(folder)
        self.folder, self.steps, self.random = folder, steps, random.Random(seed)
        self.settings = [
            *from_nothing(folder, "chaos"),
            f"ppo.steps={steps}",
            f"ppo.batch_size={BATCH}",
            "checkpoint.every=2",
            "recovery.restarts=200",
            "recovery.stall_floor_seconds=15",
            "recovery.stall_factor=3",
            "placement.phase_timeout_seconds=120",
        ]
        self.run = self._start()
        self.commands = 1

    def _start(self) -> Run:
        return Run(self.folder, "chaos", self.settings)

    def calm(self) -> dict[str, object]:
        """The status once everybody serves and the run is in a step."""
        while True:
            status = self.run.status()
            serving = bool(status) and all(m["state"] == "serving" for m in status["members"].values())
            if serving and status["phase"] in CALM and status["step"] is not None:
                return status
            if self.run.process.poll() is not None:
                raise RuntimeError(f"the run ended with {self.run.process.returncode}:\n{self.run.said()}")
            time.sleep(0.01)

    def strike(self, name: str, at: int) -> Done:
        """Do this at step ``at`` or, where the run is past it, now; at any moment of the step."""
        kind = KINDS[name]
        while int(str(self.calm()["step"])) < at:
            time.sleep(0.01)
        time.sleep(self.random.uniform(0.0, 2.0))
        status = self.calm()
        step, phase = int(str(status["step"])), str(status["phase"])
        begin = time.monotonic()
        if kind.member == DRIVER:
            self._restart(kind.signal)
        else:
            fault = Fault(step=step, phase=phase, member=kind.member, signal=kind.signal, delay=0)
            before = [len(self._losses(kind.member)), len(self._replacements(kind.member))]
            self.run.strike(fault, status)
            self._await(lambda: len(self._losses(kind.member)) > before[0], kind.member, begin)
            self._await(lambda: len(self._replacements(kind.member)) > before[1], kind.member, begin)
        self.calm()
        seconds = time.monotonic() - begin
        return Done(name=name, step=step, phase=phase, seconds=seconds, redone=self._redone(kind.member, step))

    def _redone(self, member: str, step: int) -> int:
        """Samples that the last fault had done again: a few, the step's, or all since the last checkpoint."""
        if member == DRIVER:
            resumed = [int(event["step"]) for event in self._events("resumed")]
            return BATCH * (step + 1 - (resumed[-1] if resumed else 0))
        if member.startswith(("policy", "critic")):
            return BATCH
        return int(self._losses(member)[-1]["samples_redone"])

    def _restart(self, sign: signal.Signals) -> None:
        self.run.process.send_signal(sign)
        code = self.run.end()
        if code not in (75, -sign):
            raise RuntimeError(f"the run ended with {code}:\n{self.run.said()}")
        self.run = self._start()
        self.commands += 1

    def _await(self, done: Callable[[], bool], member: str, since: float) -> None:
        """Until the run has noticed, or mended, what was done to a member: one that is stopped serves until its
        deadline, as far as anybody knows."""
        while not done() and self.run.process.poll() is None:
            if time.monotonic() - since > 300:
                raise RuntimeError(f"what was done to {member} was not noticed, or not mended:\n{self.run.said()}")
            time.sleep(0.01)

    def _replacements(self, member: str) -> list[dict[str, Any]]:
        return [event for event in self._events("actor_replaced") if event["member"] == member]

    def _losses(self, member: str) -> list[dict[str, Any]]:
        losses = self._events("actor_died", "actor_stalled", "actor_failed")
        return [event for event in losses if member in (event["member"], *event["others"])]

    def _events(self, *kinds: str) -> list[dict[str, Any]]:
        return [event for event in read_lines(self.run.path / "events.jsonl") if event["kind"] in kinds]


def go(folder: Path, steps: int, faults: int, seed: int, kinds: Sequence[str]) -> tuple[list[Done], Chaos, int]:
    """The run, with all faults spread over its steps; what was done, and the last command's exit code."""
    chaos = Chaos(folder, steps, seed)
    names = chaos.random.choices(kinds, weights=[KINDS[name].weight for name in kinds], k=faults)
    done = []
    for i, name in enumerate(names):
        done.append(chaos.strike(name, at=i * (steps - 1) // faults))
        print(f"{i + 1}/{faults}: step {done[-1].step}, {done[-1].phase}: {name}: {done[-1].seconds:.1f} s", flush=True)
    return done, chaos, chaos.run.end(seconds=1200)


def check(chaos: Chaos, code: int, steps: int) -> list[str]:
    """What is wrong with the run that is over."""
    rows = read_lines(chaos.run.path / "metrics.jsonl")
    wrong = [f"exit code {code}:\n{chaos.run.said()}"] if code else []
    if [row["step"] for row in rows] != list(range(steps)):
        wrong.append(f"steps in the record: {[row['step'] for row in rows]}")
    if any(row["rollout/dropped"] or row["rollout/set_aside"] for row in rows):  # each step counts its samples itself
        wrong.append("samples were left out")
    if not (chaos.run.path / "model" / "model.safetensors").exists():
        wrong.append("there is no model")
    return wrong


def page(done: Sequence[Done], chaos: Chaos, wrong: Sequence[str], steps: int) -> str:
    """What came of it, as Markdown."""
    last = read_lines(chaos.run.path / "metrics.jsonl")[-1]
    libraries = ", ".join(f"{name} {version(name)}" for name in ("ray", "deepspeed"))
    lines = [
        f"## {len(done)} faults in {steps} steps",
        "",
        f"One PPO run of {steps} steps ({BATCH} samples each; policy on two ranks, critic, reference, reward, one vLLM "
        f"engine) with {len(done)} faults injected at random times, each after the run had recovered from the previous "
        f"one. {libraries}; two cores, no GPU.",
        "",
        f"**{'; '.join(wrong) if wrong else 'The run ended with exit code 0, every step recorded once.'}** "
        f"Commands: {chaos.commands}. Actors restarted: {last['health/restarts']:.0f}. Samples re-dispatched: "
        f"{last['health/redispatched']:.0f}. Seconds lost: {last['health/seconds_lost']:.0f}. "
        f"Goodput: {last['perf/goodput']:.2f}.",
        "",
        "| what was done | times | seconds until whole again: median | longest | samples done again |",
        "|---|---|---|---|---|",
    ]
    for name in KINDS:
        these = [each for each in done if each.name == name]
        if these:
            seconds, redone = [each.seconds for each in these], sum(each.redone for each in these)
            middle, longest = statistics.median(seconds), max(seconds)
            lines.append(f"| {name} | {len(these)} | {middle:.1f} | {longest:.1f} | {redone} |")
    lines += [
        "",
        "Seconds include the wait for the deadline if a process was stopped and not killed, and the start of ",
    ]
    lines[-1] += "all actors for a controller."
    lines += ["", "| | step | phase | what was done | seconds | samples |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {i} | {each.step} | {each.phase} | {each.name} | {each.seconds:.1f} | {each.redone} |"
        for i, each in enumerate(done, 1)
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Returns 0 when the run survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="what may be done")
    parser.add_argument("--runs", type=Path, default=Path("runs/chaos"), help="new folder for data and run")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--append", action="store_true", help="add to that file")
    options = parser.parse_args()
    if options.runs.exists():
        print(f"{options.runs} is there already: give another folder (--runs), or delete it", file=sys.stderr)
        return 2
    options.runs.mkdir(parents=True)
    done, chaos, code = go(options.runs.resolve(), options.steps, options.faults, options.seed, options.kinds)
    wrong = check(chaos, code, options.steps)
    text = page(done, chaos, wrong, options.steps)
    if options.out:
        before = options.out.read_text(encoding="utf-8") if options.append else HEAD
        options.out.write_text(f"{before}\n{text}", encoding="utf-8")
    print(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
