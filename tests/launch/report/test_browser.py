"""The page in a real browser: it draws, shows readings, sorts, makes no network request, and fits a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.report.page import write_report
from tests.browser import Browser, find_browser
from tests.launch.report.folder import hostile_run

EXECUTABLE = find_browser()
pytestmark = pytest.mark.skipif(
    EXECUTABLE is None,
    reason="no Chromium on this machine: tests/system_packages.sh",
)
PHONE, DESKTOP = 375, 1280


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert EXECUTABLE is not None
    with Browser(EXECUTABLE, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(hostile_run(tmp_path_factory.mktemp("run")))


def test_curves_and_strips_are_drawn_and_nothing_is_asked_or_complained_about(browser: Browser, page: Path) -> None:
    browser.requests.clear()
    browser.open(page, DESKTOP)
    assert browser.value("document.querySelectorAll('figure.chart path.line').length") >= 5
    assert browser.value("[...document.querySelectorAll('path.line')].every(p => p.getTotalLength() > 0)")
    assert browser.value("document.querySelectorAll('figure.strip rect[class^=dot]').length") >= 9
    assert browser.value("getComputedStyle(document.querySelector('path.line-0')).stroke") != "none"  # its style holds
    assert browser.value("typeof window.pwned") == "undefined"
    assert browser.requests == [page.resolve().as_uri()]
    assert browser.complaints == []


def test_the_pointer_and_the_keys_read_values_off_a_curve(browser: Browser, page: Path) -> None:
    browser.open(page, DESKTOP)
    words = "document.querySelector('figure.chart output').textContent"
    drawing = "document.querySelector('figure.chart svg[role]')"
    assert browser.value(words) == ""
    browser.value(f"{drawing}.focus()")
    browser.press("ArrowRight")
    assert browser.value(words).startswith("step 0: ")
    browser.press("ArrowRight")
    assert browser.value(words).startswith("step 1: ")
    browser.move(*browser.middle(drawing))
    assert browser.value(words).startswith("step 2: ")  # of five steps, the one in the middle
    assert browser.value(f"{drawing}.querySelector('.cursor').getAttribute('visibility')") == "visible"
    browser.move(2, 2)
    assert browser.value(words) == ""
    assert browser.complaints == []


def test_a_click_on_the_head_of_a_column_sorts_its_table(browser: Browser, page: Path) -> None:
    browser.open(page, DESKTOP)
    table = "document.querySelector('[aria-label=\"time by phase, ppo\"] table')"
    column = f"[...{table}.tBodies[0].rows].map(row => Number(row.cells[1].dataset.value))"
    head = f"{table}.tHead.rows[0].cells[1]"
    before = browser.value(column)
    assert sorted(before) != before
    browser.click(*browser.middle(f"{head}.querySelector('button')"))
    assert browser.value(f"{head}.getAttribute('aria-sort')") == "ascending"
    assert browser.value(column) == sorted(before)
    browser.click(*browser.middle(f"{head}.querySelector('button')"))
    assert browser.value(f"{head}.getAttribute('aria-sort')") == "descending"
    assert browser.value(column) == sorted(before, reverse=True)
    assert browser.value("document.querySelectorAll('th[aria-sort]').length") == 1


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_page_does_not_scroll_sideways(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    assert browser.value("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('figure, .box, header, nav')]"
    assert browser.value(f"{wide}.every(e => e.getBoundingClientRect().right <= window.innerWidth + 1)")
