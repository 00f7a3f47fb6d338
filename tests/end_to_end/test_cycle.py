"""Two rounds of the cycle by the command that users type, with simulated raters, and with kills inside its steps."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from examples.travel.make_data import make_data
from examples.travel.rate import rate
from rlhf.cycle.journal import CycleStep, JournalEntry, StepState, read_journal
from rlhf.errors import Waiting
from rlhf.feedback.settings import ProjectSettings
from rlhf.feedback.store import Store
from rlhf.serving.artefact import ServingStage
from rlhf.serving.registry import Registry
from tests.end_to_end.small import DATA_SEED, RECIPE, ROOT, overrides, rlhf

pytestmark = pytest.mark.slow
ITEMS = 24
PATIENCE = 600.0
GATE = """
for: shadow
confidence: 0.6
kpis:
  preferred: {decided_by: non_inferiority, margin: 0.99, range: [0, 1], minimum_n: 10}
"""
"""A gate that any candidate passes: a model of a few steps is not better, and the circle shall close."""


def prepare(folder: Path) -> list[str]:
    """Data, projects and gate; returns the settings of the cycle."""
    make_data(folder, seed=DATA_SEED, demonstrations=320, preferences=200, prompts=120 + ITEMS)
    rows = (folder / "prompts.jsonl").read_text().splitlines(keepends=True)
    (folder / "prompts.jsonl").write_text("".join(rows[ITEMS:]))
    (folder / "items.jsonl").write_text("".join(rows[:ITEMS]))
    (folder / "gate.yaml").write_text(GATE)
    plain = ProjectSettings(overlap=1, gold_fraction=0.0, repeat_fraction=0.0)
    for name in ("votes.db", "comparisons.db"):
        Store.create(folder / name, plain, seed=0).close()
    small = [each for each in overrides(folder, "small") if not each.startswith(("reward.ceiling", "data.preferences"))]
    return [
        *small,
        "reward.ceiling=null",
        "reward.optimizer.warmup_steps=0",
        "reward.batch_size=4",
        "placement.reward.ranks=1",
        "checkpoint.every=1",
        f"feedback={{project: {folder}/votes.db, prompts: 20, answers: 3, pairs: 40, votes: 40}}",
        "cycle.rounds=2",
        f"cycle.items={folder}/items.jsonl",
        f"cycle.project={folder}/comparisons.db",
        f"cycle.gate={folder}/gate.yaml",
        f"cycle.registry={folder}/registry.db",
    ]


@contextmanager
def started(settings: list[str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "launch.cli", "cycle", str(RECIPE), *settings]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def kill_in(journal: Path, settings: list[str], round: int, step: CycleStep, seconds: float) -> None:
    """Kill the command some seconds after it has begun a step."""
    end = time.monotonic() + PATIENCE
    with started(settings) as process:
        while not any((e.round, e.step) == (round, step) for e in read_journal(journal)):
            assert process.poll() is None, process.communicate()[0][-3000:]
            assert time.monotonic() < end
            time.sleep(0.1)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)


def ends(entries: tuple[JournalEntry, ...]) -> list[tuple[int, CycleStep]]:
    return [(e.round, e.step) for e in entries if e.state is StepState.FINISHED]


def test_two_rounds_with_kills_and_waits_do_each_step_once(tmp_path: Path) -> None:
    settings = prepare(tmp_path)
    root = tmp_path / "runs" / "small"
    journal = root / "journal.jsonl"
    kill_in(journal, settings, 1, CycleStep.SAMPLE, 4.0)
    for number in (1, 2):
        waits = rlhf("cycle", str(RECIPE), *settings)
        assert waits.returncode == Waiting.exit_code, waits.stdout[-3000:] + waits.stderr[-3000:]
        assert "40 votes are missing" in waits.stderr
        with Store.open(tmp_path / "votes.db") as store:
            assert len(store.items(round=f"small-{number}")) == 40
            assert rate(store, 40, raters=3, seed=number) == 40
        if number == 1:
            kill_in(journal, settings, 1, CycleStep.REWARD, 6.0)
            kill_in(journal, settings, 1, CycleStep.PPO, 25.0)
            kill_in(journal, settings, 1, CycleStep.ANSWER, 15.0)
        waits = rlhf("cycle", str(RECIPE), *settings)
        assert waits.returncode == Waiting.exit_code, waits.stdout[-3000:] + waits.stderr[-3000:]
        assert "candidate and production of round" in waits.stderr
        with Store.open(tmp_path / "comparisons.db") as store:
            rate(store, 10 * ITEMS, raters=3, seed=number)
    done = rlhf("cycle", str(RECIPE), *settings)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    entries = read_journal(journal)
    steps = list(CycleStep)
    assert ends(entries) == [(0, CycleStep.START), *((number, step) for number in (1, 2) for step in steps)]
    with Registry(tmp_path / "registry.db") as registry:
        shadow = registry.serving().shadow
        assert shadow is not None and shadow.version == "small-2"
        assert registry.artefact("small-1").stage is ServingStage.WITHDRAWN
        assert [entry.action for entry in registry.audit()] == [
            "register",
            "promote",
            "register",
            "withdraw",
            "promote",
        ]
    config = (root / "rounds" / "round_2" / "ppo" / "config.yaml").read_text()
    assert f"policy_init: {root}/rounds/round_1/ppo/model" in config, "the second round improves the first one's policy"
    rows = (root / "rounds" / "round_2" / "evaluation" / "preferred.jsonl").read_text().splitlines()
    assert len(rows) == ITEMS and {json.loads(row)["candidate"] for row in rows} <= {0.0, 0.5, 1.0}
    begun = len(entries)
    assert rlhf("cycle", str(RECIPE), *settings).returncode == 0
    assert len(read_journal(journal)) == begun, "a finished cycle does nothing"
    page = rlhf("report", str(root))
    assert page.returncode == 0 and "small-2" in (root / "report.html").read_text()
