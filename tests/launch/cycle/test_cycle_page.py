"""The page of a cycle: all rounds, escaped, and in a real browser."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from launch.cli import main
from launch.report.cycle import cycle_page
from rlhf.errors import Waiting
from rlhf.feedback.records import Choice
from rlhf.serving.registry import Registry
from tests.browser import Browser, find_browser
from tests.launch.cycle.pretend import PAIRS, cycle, finish_round, install, prepare

PHONE = 375


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cycle of two rounds, of which the second failed, and a registry in which somebody wrote HTML."""
    folder = tmp_path_factory.mktemp("cycle")
    with pytest.MonkeyPatch.context() as patch:
        install(patch.setattr)
        settings = prepare(folder)
        root = folder / "runs" / "travel"
        assert cycle(settings) == Waiting.exit_code
        assert f"round 1: {PAIRS} votes are missing" in cycle_page(root, datetime.now(UTC))
        assert finish_round(folder, settings) == 0
        assert finish_round(folder, [*settings, "cycle.rounds=2"], Choice.SECOND_MUCH) == 1
    with Registry(folder / "registry.db") as registry:
        registry.withdraw("travel-2", who="<script>alert(1)</script>", why="<b>bold</b>")
    return root


def test_the_page_shows_all_rounds_and_escapes_what_others_wrote(folder: Path) -> None:
    page = cycle_page(folder, datetime.now(UTC))
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page and "<b>bold" not in page
    for text in (
        "travel-1",
        "travel-2",
        "preferred: pass",
        "preferred: fail",
        "rater minutes",
        "in shadow",
        "round 2: ",
    ):
        assert text in page, text


def test_a_registry_that_is_gone_is_a_note(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "journal.jsonl").write_text(
        (folder / "journal.jsonl").read_text().replace(str(folder.parents[1] / "registry.db"), "/nowhere/registry.db")
    )
    page = cycle_page(tmp_path, datetime.now(UTC))
    assert "no registry yet: /nowhere/registry.db" in page and "preferred: pass" in page


@pytest.mark.skipif(find_browser() is None, reason="no Chromium on this machine: tests/system_packages.sh")
def test_the_page_draws_and_fits_a_phone(tmp_path: Path, folder: Path) -> None:
    assert main(["report", str(folder)]) == 0
    executable = find_browser()
    assert executable is not None
    with Browser(executable, tmp_path) as browser:
        browser.open(folder / "report.html", PHONE)
        assert browser.value("[...document.querySelectorAll('path.line')].every(p => p.getTotalLength() > 0)")
        assert browser.value("document.querySelectorAll('path.band').length") >= 1
        assert browser.value("document.documentElement.scrollWidth") <= PHONE
        assert browser.complaints == []
        drawing = "document.querySelector('figure.chart svg[role]')"
        browser.value(f"{drawing}.focus()")
        browser.press("ArrowRight")
        assert browser.value("document.querySelector('figure.chart output').textContent").startswith("round 1: ")
