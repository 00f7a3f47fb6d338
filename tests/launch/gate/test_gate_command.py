"""``rlhf gate`` and ``rlhf registry`` as users call them: from an evaluation to production, and back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import wandb

from launch.cli import main
from rlhf.feedback.records import Answer, Choice
from rlhf.serving import gate_decision
from rlhf.serving.gate_spec import load_gate
from tests.rlhf.arms.comparison_files import write_comparison, write_rows, write_votes
from tests.rlhf.serving.test_registry import model

ROOT = Path(__file__).parents[3]
GATES = ROOT / "examples" / "travel" / "gates"
N = 40
ITEMS = [{"prompt": f"What is worth seeing in town {i}?", "reference": f"The castle on hill {i}"} for i in range(N)]
GOOD = [f"See the castle on hill {i}" + " today" * (i % 3) for i in range(N)]
BAD = ["Nothing at all, as far as anybody knows" for _ in range(N)]


def run(*arguments: object) -> int:
    return main([*map(str, arguments)])


def counts(path: Path, **kpis: tuple[int, int, int, int]) -> Path:
    """A file of live counts: successes and n of candidate and production."""
    arms = {
        name: {"candidate": {"successes": a, "n": b}, "production": {"successes": c, "n": d}}
        for name, (a, b, c, d) in kpis.items()
    }
    path.write_text(json.dumps({"counts": arms}))
    return path


def test_from_an_evaluation_to_production_and_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    registry, gate = tmp_path / "registry.db", tmp_path / "gate.json"
    for number in (1, 2):
        folder = model(tmp_path / f"model{number}", f"weights {number}")
        assert run("registry", "register", registry, f"travel-{number}", folder, "--why", f"round {number}") == 0
    write_votes(
        tmp_path / "votes.db",
        [
            (item["prompt"], Answer(text=bad), Answer(text=good), Choice.SECOND_MUCH)
            for item, bad, good in zip(ITEMS, BAD, GOOD)
        ],
    )
    arms = {"base": BAD, "ppo": GOOD}
    path = write_comparison(tmp_path, ITEMS, arms, metrics=["rouge1"], votes=str(tmp_path / "votes.db"))
    report = tmp_path / "report.json"
    assert run("evaluate", "--comparison", path, "--out", report) == 0
    gate = tmp_path / "gate.yaml"
    gate.write_text(
        "for: shadow\ncandidate: ppo\nproduction: base\nkpis:\n  overlap:\n    metric: rouge1\n"
        "    decided_by: superiority\n    margin: 0.1\n    range: [0, 1]\n"
        "costs:\n  feedback: votes.db\n"
    )
    named = ("--registry", registry, "--out", tmp_path / "gates")
    assert run("gate", gate, "--results", report, *named, "--artefact", "travel-1") == 0
    out = capfd.readouterr().out
    assert "pass: travel-1, for shadow; digest" in out
    result = json.loads((tmp_path / "gates" / "gate.json").read_text())
    assert result["kpis"][0]["estimate"] > 0.3
    page = (tmp_path / "gates" / "gate.md").read_text()
    assert "# Gate for shadow: pass" in page
    assert f"Digest of this decision: `{result['digest']}`" in page
    step = ("--gate", tmp_path / "gates" / "gate.json", "--why", "the gate passed")
    assert run("registry", "promote", registry, "travel-2", "--to", "shadow", *step) == 2  # the gate measured travel-1
    assert run("registry", "promote", registry, "travel-1", "--to", "canary", *step) == 2
    assert run("registry", "promote", registry, "travel-1", "--to", "shadow", *step) == 0

    live = counts(tmp_path / "live.json", resolved=(930, 1000, 900, 1000), thumbs_down=(10, 1000, 20, 1000))
    for version in ("travel-1", "travel-2"):
        for stage in ("shadow", "canary", "production"):
            if (version, stage) == ("travel-1", "shadow"):
                continue
            gate.write_text(f"for: {stage}\nkpis:\n  resolved:\n    threshold: 0.85\n")
            assert run("gate", gate, "--results", live, *named, "--artefact", version) == 0
            assert run("registry", "promote", registry, version, "--to", stage, *step) == 0
    assert run("registry", "rollback", registry, "--why", "complaints", "--operation", "incident 7") == 0
    assert run("registry", "rollback", registry, "--why", "complaints", "--operation", "incident 7") == 0
    capfd.readouterr()
    assert run("registry", "list", registry, "--json") == 0
    stages = {each["version"]: each["stage"] for each in json.loads(capfd.readouterr().out)["artefacts"]}
    assert stages == {"travel-1": "production", "travel-2": "withdrawn"}
    assert run("registry", "audit", registry) == 0
    text = capfd.readouterr().out
    assert text.count("rollback travel-1 → production, instead of travel-2") == 1
    head = re.search(r"hash of the last one: (\w{64})", text)
    assert head is not None
    assert run("registry", "audit", registry, "--expect", head.group(1)) == 0
    assert run("registry", "audit", registry, "--expect", "0" * 64) == 1
    (tmp_path / "model1" / "config.json").write_text("{ }")
    assert run("registry", "show", registry, "travel-1", "--verify") == 2
    assert "config.json has other content" in capfd.readouterr().err


def test_exit_codes_and_what_is_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    gate = tmp_path / "gate.yaml"
    gate.write_text("for: canary\nkpis:\n  resolved: {threshold: 0.9}\n")
    good, bad, close = (counts(tmp_path / f"{n}.json", resolved=(n, 500, 450, 500)) for n in (480, 400, 452))
    assert run("gate", gate, "--results", good) == 0
    assert run("gate", gate, "--results", bad) == 1
    assert run("gate", gate, "--results", close, "--out", tmp_path / "out") == 4
    assert "more would decide" in " ".join(capfd.readouterr().out.split())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gate.json", "gate.md", "history.jsonl"]
    assert run("gate", gate, "--results", close, "--wandb") == 2
    assert run("gate", gate, "--results", close, "--registry", "r.db") == 2
    assert run("gate", tmp_path / "none.yaml", "--results", close) == 2
    assert run("gate", gate, "confidence=0.5", "--results", close) == 0


def test_rounds_show_gain_and_cost(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    gate, out = tmp_path / "gate.yaml", tmp_path / "out"
    for number, minutes in ((1, 60), (2, 90)):
        folder = model(tmp_path / f"m{number}", str(number))
        gate.write_text(
            f"for: canary\nkpis:\n  resolved: {{threshold: 0.8}}\ncosts: {{rater_minutes: {minutes}, gpu_hours: 0.5}}\n"
        )
        file = counts(tmp_path / "live.json", resolved=(850 + 20 * number, 1000, 1, 1))
        assert run("gate", gate, "--results", file, "--model", folder, "--out", out) == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert "resolved: +0.02 since the round before, for 90 rater minutes, 0.5 GPU hours" in shown
    page = (out / "gate.md").read_text()
    assert page.count("| canary | pass |") == 2
    assert "- resolved: \\+0.02 since" in page


def test_wandb_gets_the_tables_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    gate, out = tmp_path / "gate.yaml", tmp_path / "out"
    gate.write_text("for: canary\nkpis:\n  resolved: {threshold: 0.8}\n")
    file = counts(tmp_path / "live.json", resolved=(900, 1000, 1, 1))
    assert run("gate", gate, "--results", file, "--out", out, "--wandb") == 0
    wandb.teardown()
    tables = sorted(path.name.partition("_")[0] for path in out.rglob("*.table.json"))
    assert tables == ["kpis", "rounds"]
    kpis = next(path for path in out.rglob("kpis_*.table.json"))
    assert json.loads(kpis.read_text())["data"][0][:3] == ["resolved", "pass", "0.9"]


@pytest.mark.parametrize("name", ["shadow", "canary", "production"])
def test_the_example_gates_load(name: str) -> None:
    assert load_gate(GATES / f"{name}.yaml").for_stage == name


def test_the_example_gates_decide(tmp_path: Path) -> None:
    live = counts(
        tmp_path / "live.json",
        grounded=(980, 1000, 980, 1000),
        refused=(10, 1000, 12, 1000),
        resolved=(9300, 10000, 9200, 10000),
        thumbs_down=(200, 10000, 210, 10000),
    )
    assert run("gate", GATES / "canary.yaml", "--results", live) == 0
    assert run("gate", GATES / "production.yaml", "--results", live) == 0
    helpful = [{"metric": "helpful", "item": i, "candidate": 1, "production": i % 9 > 0} for i in range(150)]
    values: dict[str, Any] = {
        "items": [str(i) for i in range(N)],
        "clusters": [*range(N)],
        "metrics": {"judge_win_rate": {"sft": [0.5] * N, "ppo": [1.0] * (N - 5) + [0.0] * 5}},
    }
    agreement = [{"metric": "judge_win_rate", "can_gate": True, "why_not": ""}]
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"values": values, "agreement": agreement}))
    rows = write_rows(tmp_path / "helpful.jsonl", helpful)
    assert run("gate", GATES / "shadow.yaml", "--results", report, "--results", rows) == 0


@pytest.mark.parametrize("line", ["{}", "rubbish", '{"time": "yesterday", "digest": "1"}'])
def test_a_damaged_history_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str], line: str) -> None:
    gate, file = tmp_path / "gate.yaml", counts(tmp_path / "live.json", resolved=(480, 500, 1, 1))
    gate.write_text("for: canary\nkpis:\n  resolved: {threshold: 0.9}\n")
    (tmp_path / "history.jsonl").write_text(line + "\n")
    assert run("gate", gate, "--results", file, "--out", tmp_path) == 2
    assert "history.jsonl has no" in capfd.readouterr().err


def test_a_look_of_another_command_meanwhile_is_not_overlooked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    gate, out, folder = tmp_path / "gate.yaml", tmp_path / "out", model(tmp_path / "m", "1")
    gate.write_text("for: canary\nkpis:\n  resolved: {threshold: 0.9}\n")
    first = counts(tmp_path / "first.json", resolved=(452, 500, 1, 1))
    second = counts(tmp_path / "second.json", resolved=(480, 500, 1, 1))
    decide = gate_decision.run_gate

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(gate_decision, "run_gate", decide)
        assert run("gate", gate, "--results", first, "--model", folder, "--out", out) == 4
        return decide(*arguments)

    monkeypatch.setattr(gate_decision, "run_gate", meanwhile)
    assert run("gate", gate, "--results", second, "--model", folder, "--out", out) == 2
    assert "another gate has decided" in capfd.readouterr().err
    assert json.loads((out / "gate.json").read_text())["outcome"] == "inconclusive"
