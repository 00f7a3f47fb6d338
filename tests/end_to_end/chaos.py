"""``make chaos``: PPO runs to which fifty things each are done, in all phases equally often, and what came of it.

Processes are killed or stopped, the controller's own among them; the command is then given again, as a scheduler would.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.end_to_end.campaign import NOT_DONE, Ended, Result, Setting, make_data, run_plan
from tests.end_to_end.fault_plan import ASK, CONTROLLER, DEVICE, KILL, MEMORY, PHASES, SAVE, START, STOP, Aim

BATCH = 32
HEAD = """# Survival

Measured cost of faults to real processes, by `make chaos`. [failures.md](failures.md) describes how a run handles each
failure. These are PPO runs; SFT, reward training and DPO are each killed at ten random moments by
`tests/end_to_end/test_supervised_resume.py`, which compares the model with that of an uninterrupted stage, bit for bit.
"""
CHAOS_PHASES = tuple(phase for phase in PHASES if phase not in (START, SAVE))
"""Those that come in every step, or can be made to come: start and save are left to the matrix."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Something that can be done to a run. ``weight`` is how often, beside the others."""

    role: str
    fault: str = KILL
    weight: float = 1.0


KINDS: Mapping[str, Kind] = {
    "engine killed": Kind(role="engine", weight=2),
    "engine stopped (SIGSTOP)": Kind(role="engine", fault=STOP, weight=0.5),
    "reward killed": Kind(role="reward", weight=2),
    "reference killed": Kind(role="reference"),
    "held-out scorer killed": Kind(role="judge"),
    "policy rank killed": Kind(role="policy", weight=3),
    "policy rank stopped (SIGSTOP)": Kind(role="policy", fault=STOP, weight=0.5),
    "device error in the policy": Kind(role="policy", fault=DEVICE, weight=0.5),
    "policy and critic killed at once": Kind(role="policy", fault=MEMORY, weight=0.5),
    "critic killed": Kind(role="critic", weight=2),
    "controller killed": Kind(role=CONTROLLER, weight=1.5),
    "controller asked to stop (SIGTERM)": Kind(role=CONTROLLER, fault=ASK),
}


def draw(kinds: Sequence[str], faults: int, steps: int, seed: int) -> list[tuple[str, Aim]]:
    """Names of kinds, and aims: kinds by their weights, phases in rounds that have each of them once, in random order,
    spread over the steps."""
    chance = random.Random(seed)
    names = chance.choices(kinds, weights=[KINDS[name].weight for name in kinds], k=faults)
    rounds = -(-faults // len(CHAOS_PHASES))
    phases = [phase for _ in range(rounds) for phase in chance.sample(CHAOS_PHASES, len(CHAOS_PHASES))]
    return [
        (name, Aim(role=KINDS[name].role, phase=phase, fault=KINDS[name].fault, step=1 + i * (steps - 6) // faults))
        for i, (name, phase) in enumerate(zip(names, phases))
    ]


@dataclass(frozen=True, kw_only=True)
class Chaos:
    """A run that is over: the names of what was done to it, what came of each, and what is wrong with the run."""

    names: Sequence[str]
    ended: Ended
    results: Sequence[Result]
    wrong: Sequence[str]


def run_once(folder: Path, name: str, kinds: Sequence[str], faults: int, steps: int, seed: int) -> Chaos:
    """One run; ``make_data`` has filled ``folder``."""
    names, plan = zip(*draw(kinds, faults, steps, seed), strict=True)
    ended = run_plan(folder, name, plan, steps, Setting(), more=(f"ppo.batch_size={BATCH}", "checkpoint.every=2"))
    results = ended.results()
    missed = sum(each.why == NOT_DONE for each in results)
    wrong = ended.faults_of_the_whole() or [
        *(f"{each.aim}: {each.why}" for each in results if each.why not in ("", NOT_DONE)),
        *([f"it was over before {missed} of its faults"] if missed else []),
    ]
    return Chaos(names=names, ended=ended, results=results, wrong=wrong)


def page(runs: Sequence[Chaos]) -> str:
    """What came of them, as Markdown."""
    done = [pair for run in runs for pair in zip(run.names, run.results, strict=True)]
    libraries = ", ".join(f"{name} {version(name)}" for name in ("ray", "deepspeed"))
    steps = runs[0].ended.steps
    many = "One PPO run" if len(runs) == 1 else f"{len(runs)} PPO runs"
    lines = [
        f"## {len(done)} faults in {len(runs) * steps} steps",
        "",
        f"{many} of {steps} steps ({BATCH} samples each; policy on two ranks, critic, reference, reward, held-out "
        f"scorer, one vLLM engine) with {len(runs[0].names)} faults, each phase equally often, in random order, each "
        f"after the run had recovered from the one before. {libraries}; two cores, no GPU.",
        "",
        f"**{outcome(runs)}**",
        "",
        *summary("what was done", done, list(KINDS), lambda name, _: name),
        "",
        *summary("phase", done, CHAOS_PHASES, lambda _, result: result.aim.phase),
        "",
        "Seconds include the wait for the deadline if a process was stopped and not killed, the time until an idle"
        " actor was missed, and the start of all actors for a controller.",
        "",
        "Samples done again and seconds lost are those of a run's last command.",
        "",
        "| run | faults | exit code | commands | samples done again | seconds lost | goodput |",
        "|---|---|---|---|---|---|---|",
        *(_row(number, run) for number, run in enumerate(runs, 1)),
    ]
    return "\n".join(lines) + "\n"


def outcome(runs: Sequence[Chaos]) -> str:
    """One sentence: whether all ended well."""
    wrong = [f"run {number}: {each}" for number, run in enumerate(runs, 1) for each in run.wrong]
    every = "The run" if len(runs) == 1 else "Every run"
    return "; ".join(wrong) or f"{every} ended with exit code 0, each step recorded once with all of its samples."


def _row(number: int, run: Chaos) -> str:
    last = run.ended.rows[-1]
    health = [f"{last[f'health/{name}']:.0f}" for name in ("redispatched", "seconds_lost")]
    commands = run.ended.commands
    cells = [number, len(run.names), commands[-1].code, len(commands), *health, f"{last['perf/goodput']:.2f}"]
    return f"| {' | '.join(map(str, cells))} |"


def summary(
    title: str, done: Sequence[tuple[str, Result]], keys: Sequence[str], key: Callable[[str, Result], str]
) -> list[str]:
    """A table with the median and the longest seconds by key."""
    lines = [f"| {title} | times | seconds until whole again: median | longest |", "|---|---|---|---|"]
    for each in keys:
        these = [result for name, result in done if key(name, result) == each]
        if these:
            lines.append(f"| {each} | {len(these)} | {' | '.join(_seconds(these))} |")
    return lines


def _seconds(results: Sequence[Result]) -> tuple[str, str]:
    """Median and longest; dashes if nobody needed the actors any more."""
    seconds = [result.seconds for result in results if result.seconds is not None]
    return (f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}") if seconds else ("–", "–")


def main() -> int:
    """Returns 0 when the run survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=50, help="of a run")
    parser.add_argument("--steps", type=int, default=30, help="of a run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run each")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="what may be done")
    parser.add_argument("--runs", type=Path, default=Path("runs/chaos"), help="new folder for data and runs")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--append", action="store_true", help="add to that file")
    options = parser.parse_args()
    if options.runs.exists():
        print(f"{options.runs} is there already: give another folder (--runs), or delete it", file=sys.stderr)
        return 2
    options.runs.mkdir(parents=True)
    make_data(options.runs)
    done = list[Chaos]()
    for seed in options.seeds:
        begun, name = time.monotonic(), f"seed-{seed}"
        done.append(run_once(options.runs.resolve(), name, options.kinds, options.faults, options.steps, seed))
        print(f"{name}: {time.monotonic() - begun:.0f} s. {outcome(done[-1:])}", flush=True)
    text = page(done)
    if options.out:
        before = options.out.read_text(encoding="utf-8") if options.append else HEAD
        options.out.write_text(f"{before}\n{text}", encoding="utf-8")
    print(text)
    return 1 if any(run.wrong for run in done) else 0


if __name__ == "__main__":
    sys.exit(main())
