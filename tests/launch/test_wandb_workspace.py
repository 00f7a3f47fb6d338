from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from launch.report.panels import QUESTIONS
from launch.wandb_workspace import build, main
from rlhf.tracking.workspace import definition, sections


def test_the_definition_is_written_without_a_network(tmp_path: Path) -> None:
    assert main(["--json", str(tmp_path / "w.json")]) == 0
    written = json.loads((tmp_path / "w.json").read_text())
    assert written == definition()
    assert [section["name"] for section in written["sections"]] == list(QUESTIONS)


def test_without_the_library_it_is_said_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main(["--entity", "me"]) == 2
    assert "pip install wandb-workspaces" in capsys.readouterr().err


def test_the_library_accepts_it() -> None:
    """Runs only if the library is installed, which is no requirement."""
    workspaces = pytest.importorskip("wandb_workspaces.workspaces")
    reports = pytest.importorskip("wandb_workspaces.reports.v2")
    made = build("me", "rlhf", workspaces, reports)._to_model().model_dump(by_alias=True)
    banks = made["spec"]["section"]["panelBankConfig"]["sections"]
    wanted = [(s.question, len(s.curves) + len(s.histograms) + len(s.tables)) for s in sections()]
    assert [(bank["name"], len(bank["panels"])) for bank in banks][: len(wanted)] == wanted
    drawn = [panel["config"]["metrics"] for panel in banks[0]["panels"] if "metrics" in panel["config"]]
    assert drawn[0] == list(sections()[0].curves[0].lines)
