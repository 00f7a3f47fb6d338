"""The cycle's command with real votes, comparison, gate and registry; its models are made in no time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from launch.cli import main
from launch.cycle import deciding
from launch.cycle import votes as waiting
from rlhf.cycle.journal import CycleStep, StepState, last_end, read_journal
from rlhf.errors import Waiting
from rlhf.feedback.records import Choice
from rlhf.feedback.snapshot import read_snapshot
from rlhf.feedback.store import Store
from rlhf.serving.artefact import Artefact, ServingStage
from rlhf.serving.gate_result import read_gate_result
from rlhf.serving.registry import Registry
from rlhf.storage.jsonl import read_lines
from tests.launch.cycle.pretend import GATE, ITEMS, PAIRS, ROOT, cycle, finish_round, install, prepare, vote
from tests.rlhf.serving.test_registry import passed

WAITS = Waiting.exit_code


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    install(monkeypatch.setattr)
    return prepare(tmp_path)


def made(folder: Path) -> Counter[str]:
    files = (folder / "runs" / "made.jsonl", folder / "runs" / "travel" / "rounds" / "made.jsonl")
    return Counter(row["what"] for file in files for row in read_lines(file))


def ended(folder: Path) -> list[tuple[int, CycleStep]]:
    entries = read_journal(folder / "runs" / "travel" / "journal.jsonl")
    return [(entry.round, entry.step) for entry in entries if entry.state is StepState.FINISHED]


def test_a_round_waits_twice_and_ends_in_shadow(
    tmp_path: Path, settings: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cycle(settings) == WAITS
    said = capfd.readouterr().err
    assert f"round 1: {PAIRS} votes are missing, 0 of {PAIRS}" in said and "rlhf feedback serve" in said
    assert vote(tmp_path / "votes.db") == PAIRS
    assert cycle(settings) == WAITS
    said = capfd.readouterr().err
    assert f"candidate and production of round 1: {ITEMS} votes are missing" in said
    assert vote(tmp_path / "comparisons.db") == ITEMS
    assert cycle(settings) == 0
    assert ended(tmp_path) == [(0, CycleStep.START), *((1, step) for step in CycleStep)]
    with Registry(tmp_path / "registry.db") as registry:
        shadow = registry.serving().shadow
        assert shadow is not None and shadow.version == "travel-1"
        assert shadow.folder == tmp_path / "runs" / "travel" / "rounds" / "round_1" / "ppo" / "model"
    gate = json.loads((tmp_path / "runs" / "travel" / "rounds" / "round_1" / "gate.json").read_text())
    assert gate["kpis"][0]["estimate"] == 1.0, "all prefer the candidate: 1 against 0"
    entries = read_journal(tmp_path / "runs" / "travel" / "journal.jsonl")
    label = last_end(entries, 1, CycleStep.LABEL)
    assert label is not None and label.cost == {"rater_minutes": pytest.approx(PAIRS * 6 / 60)}, "no machine time"
    trained = last_end(entries, 1, CycleStep.PPO)
    assert trained is not None and trained.cost["seconds"] == 3600, "those of the steps, killed attempts included"
    [decision] = read_lines(tmp_path / "runs" / "travel" / "gate" / "history.jsonl")
    assert decision["costs"]["rater_minutes"] == pytest.approx((PAIRS + ITEMS) * 6 / 60)
    before = made(tmp_path)
    assert cycle(settings) == 0
    assert made(tmp_path) == before, "a finished round does nothing"


def test_the_next_round_improves_what_passed_and_takes_its_place_in_shadow(tmp_path: Path, settings: list[str]) -> None:
    assert finish_round(tmp_path, settings) == 0
    assert finish_round(tmp_path, [*settings, "cycle.rounds=2"]) == 0
    with Registry(tmp_path / "registry.db") as registry:
        assert registry.artefact("travel-2").stage is ServingStage.SHADOW
        assert registry.artefact("travel-1").stage is ServingStage.WITHDRAWN
    rounds = tmp_path / "runs" / "travel" / "rounds"
    weights = (rounds / "round_2" / "ppo" / "model" / "model.safetensors").read_text()
    assert weights.endswith(f"from {rounds / 'round_1' / 'ppo' / 'model'}")
    assert len(read_snapshot(rounds / "round_2" / "votes.db").votes) == 2 * PAIRS, "on all votes so far"
    with Registry(tmp_path / "registry.db") as registry:
        registry.withdraw("travel-2", who="gateway", why="too many thumbs down")
    assert finish_round(tmp_path, [*settings, "cycle.rounds=3"]) == 0
    weights = (rounds / "round_3" / "ppo" / "model" / "model.safetensors").read_text()
    assert weights.endswith(f"from {rounds / 'round_1' / 'ppo' / 'model'}"), "it only made room for the second one"


def test_what_failed_stays_a_candidate_and_the_next_round_starts_where_it_did(
    tmp_path: Path, settings: list[str]
) -> None:
    assert finish_round(tmp_path, settings, Choice.SECOND_MUCH) == 1
    assert finish_round(tmp_path, [*settings, "cycle.rounds=2"], Choice.TIE) == 4, "ties decide nothing"
    with Registry(tmp_path / "registry.db") as registry:
        assert registry.serving().shadow is None
        assert {registry.artefact(f"travel-{n}").stage for n in (1, 2)} == {ServingStage.CANDIDATE}
    weights = (tmp_path / "runs" / "travel" / "rounds" / "round_2" / "ppo" / "model" / "model.safetensors").read_text()
    assert weights.endswith(f"from {tmp_path / 'runs' / 'travel' / 'sft' / 'model'}")


def test_a_candidate_that_was_withdrawn_later_is_not_gone_on_with(tmp_path: Path, settings: list[str]) -> None:
    assert finish_round(tmp_path, settings) == 0
    with Registry(tmp_path / "registry.db") as registry:
        registry.withdraw("travel-1", who="gateway", why="too many thumbs down")
    assert finish_round(tmp_path, [*settings, "cycle.rounds=2"]) == 0
    weights = (tmp_path / "runs" / "travel" / "rounds" / "round_2" / "ppo" / "model" / "model.safetensors").read_text()
    assert weights.endswith("sft/model")


def test_the_opponent_is_production_and_a_change_of_it_is_compared_anew(tmp_path: Path, settings: list[str]) -> None:
    assert finish_round(tmp_path, settings) == 0
    more = [*settings, "cycle.rounds=2"]
    assert cycle(more) == WAITS
    vote(tmp_path / "votes.db")
    assert cycle(more) == WAITS
    answers = tmp_path / "runs" / "travel" / "rounds" / "round_2" / "answers" / "production.jsonl"
    assert "sft/model" in answers.read_text()
    with Registry(tmp_path / "registry.db") as registry:
        for stage in (ServingStage.CANARY, ServingStage.PRODUCTION):
            registry.promote("travel-1", stage, passed(registry.artefact("travel-1"), stage), who="ann", why="good")
    vote(tmp_path / "comparisons.db")
    assert cycle(more) == WAITS, "people compared it with what is no longer in production"
    assert "round_1/ppo/model" in answers.read_text()
    vote(tmp_path / "comparisons.db")
    assert cycle(more) == 0
    with Registry(tmp_path / "registry.db") as registry:
        assert read_gate_result(answers.parents[1] / "gate.json").baseline == registry.artefact("travel-1").digest


def test_a_production_that_changes_just_before_the_gate_is_noticed(
    tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    other = Artefact(version="other", digest="5" * 64, folder=tmp_path, stage=ServingStage.PRODUCTION, registered=0.0)
    with monkeypatch.context() as changed:
        changed.setattr(deciding, "in_production", lambda plan: other)
        assert finish_round(tmp_path, settings) == 2
    assert "production changed while the round was evaluated" in capfd.readouterr().err
    assert not (tmp_path / "runs" / "travel" / "gate").exists(), "the gate's only look is not spent"
    assert cycle(settings) == 0


def test_votes_of_a_file_count_and_a_wait_sees_them_come(
    tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The votes are given in a copy of the project, whose export is the feed."""
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.05)
    assert cycle(settings) == WAITS
    with Store.open(tmp_path / "votes.db") as store:
        store.backup(tmp_path / "elsewhere.db")
    feed = tmp_path / "feed.jsonl"
    assert main(["feedback", "export", str(tmp_path / "votes.db"), str(feed)]) == 0

    def people() -> None:
        vote(tmp_path / "elsewhere.db")
        main(["feedback", "export", str(tmp_path / "elsewhere.db"), str(tmp_path / "new.jsonl")])
        (tmp_path / "new.jsonl").rename(feed)
        end = time.monotonic() + 60
        while not vote(tmp_path / "comparisons.db") and time.monotonic() < end:
            time.sleep(0.05)

    thread = threading.Timer(0.5, people)
    thread.start()
    assert cycle([*settings, f"cycle.imports={json.dumps({str(feed): 'native'})}"], "--wait", "0.1") == 0
    thread.join()
    assert cycle([*settings, "cycle.rounds=2"], "--wait", "0.0001") == WAITS, "no longer than it was told to"


def test_votes_that_are_there_need_no_round_of_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch.setattr)
    settings = prepare(tmp_path, sample=False)
    assert cycle(settings) == WAITS
    from tests.launch.cycle.pretend import sample_pairs

    sample_pairs(str(ROOT / "recipes" / "quickstart.yaml"), [*settings, "feedback.policy=x"], "of-others")
    vote(tmp_path / "votes.db")
    assert finish_round(tmp_path, settings) == 0
    assert (1, CycleStep.SAMPLE) not in ended(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": "canary.yaml"}, "is for canary"),
        ({"project": "other/votes.db"}, "cycle.project is feedback.project"),
        ({"project": "none.db"}, "there is no such file"),
        ({"items": "none.jsonl"}, "none.jsonl"),
        ({"items": "other/prompts.jsonl"}, "1 of the 1 prompts of cycle.items"),
        ({"imports": {"feed.jsonl": "native"}}, "there is no such file"),
        ({"gate": "other.yaml"}, "nothing measures kpis.quality"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    change: dict[str, object],
    message: str,
) -> None:
    install(monkeypatch.setattr)
    prepare(tmp_path)
    (tmp_path / "canary.yaml").write_text(GATE.replace("shadow", "canary"))
    (tmp_path / "other.yaml").write_text(GATE.replace("preferred", "quality"))
    other = tmp_path / "other"
    other.mkdir()
    named = {key: str(tmp_path / value) if isinstance(value, str) else value for key, value in change.items()}
    assert cycle(prepare(other, **named)) == 2
    assert message in capfd.readouterr().err
    assert not (other / "runs").exists()


def test_two_commands_do_not_run_one_cycle(
    tmp_path: Path, settings: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    from launch.cycle.command import _locked

    with _locked(tmp_path / "runs" / "travel"):
        assert cycle(settings) == 2
    assert "another command runs the cycle" in capfd.readouterr().err


def test_a_round_that_is_killed_anywhere_does_each_step_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.launch.cycle.pretend", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) > 40, "kills"
    assert ended(tmp_path) == [(0, CycleStep.START), *((1, step) for step in CycleStep)]
    with Registry(tmp_path / "registry.db") as registry:
        assert [entry.action for entry in registry.audit()] == ["register", "promote"]
    assert len(read_lines(tmp_path / "runs" / "travel" / "gate" / "history.jsonl")) == 1
    for name, count in (("votes.db", PAIRS), ("comparisons.db", ITEMS)):
        assert len(read_snapshot(tmp_path / name).items) == count
