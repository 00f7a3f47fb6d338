from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from launch.wandb_workspace import build, definition, main
from rlhf.metrics import PANELS, QUESTIONS
from tests.rlhf.tracking.test_histogram import experience, experience_histograms


def shown(kind: str) -> list[str]:
    """Logged names in panels of a kind."""
    panels = [panel for section in definition()["sections"] for panel in section["panels"] if panel["type"] == kind]
    return [name for panel in panels for name in panel["metrics"]]


def test_it_shows_every_panel_and_every_histogram_that_a_run_logs() -> None:
    assert sorted(shown("line")) == sorted(name for panel in PANELS for name in panel.lines)
    assert sorted(shown("histogram")) == sorted(experience_histograms(experience([True, True, True])))


def test_the_definition_is_written_without_a_network(tmp_path: Path) -> None:
    assert main(["--json", str(tmp_path / "w.json")]) == 0
    written = json.loads((tmp_path / "w.json").read_text())
    assert written == definition()
    assert [section["name"] for section in written["sections"]] == list(QUESTIONS)


def test_a_missing_library_is_reported_with_its_installation(
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
    wanted = [(section["name"], len(section["panels"])) for section in definition()["sections"]]
    assert [(bank["name"], len(bank["panels"])) for bank in banks][: len(wanted)] == wanted
    drawn = [panel["config"]["metrics"] for panel in banks[0]["panels"] if "metrics" in panel["config"]]
    assert drawn[0] == list(PANELS[0].lines)
