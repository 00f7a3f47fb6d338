"""The labelling page in a real browser: keys, undo, reload, hostile texts, a phone, and people with disabilities."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from rlhf.feedback.access import AccessRole
from rlhf.feedback.records import Choice, Item, Purpose
from rlhf.feedback.store import Store
from tests.browser import Browser, find_browser
from tests.launch.feedback.live import served
from tests.launch.feedback.project import GUIDELINES, comparison, make_project, token_of

EXECUTABLE = find_browser()
pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium on this machine: tests/system_packages.sh")
PHONE, DESKTOP = 375, 1280

LOADED = "document.readyState === 'complete'"
UNLIMITED = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
JUDGED = "document.querySelector('.progress span')?.textContent"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert EXECUTABLE is not None
    with Browser(EXECUTABLE, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(autouse=True)
def forgotten(browser: Browser) -> None:
    browser.call("Network.clearBrowserCookies")
    browser.call("Emulation.setEmulatedMedia", features=[])
    browser.requests.clear()
    browser.complaints.clear()


def make(tmp_path: Path, items: list[Item], **settings: object) -> Store:
    return make_project(tmp_path / "votes.db", items, gold_fraction=0.0, repeat_fraction=0.0, **settings)


def enter(
    browser: Browser, address: str, store: Store, role: AccessRole = AccessRole.RATER, width: int = DESKTOP
) -> None:
    alias = "boss" if role is AccessRole.ADMIN else "r1"
    browser.open(f"{address}/enter?token={token_of(store, alias, role)}", width)
    assert "token" not in browser.value("location.href")


def test_thirty_items_by_keys_alone_with_an_undo_and_a_reload(browser: Browser, tmp_path: Path) -> None:
    store = make(tmp_path, [comparison(number) for number in range(30)])
    store.add_guideline(GUIDELINES)
    keys = ["1", "2", "3", "4", "5", "0", "s"] * 5
    with store, served(store) as address:
        enter(browser, address, store)
        browser.press("Enter")  # the guidelines are read
        for done, key in enumerate(keys[:30]):
            browser.wait_for(f"{LOADED} && {JUDGED} === '{done} judged' && location.pathname === '/'")
            if done == 10:
                browser.press("u")
                browser.wait_for(f"{LOADED} && {JUDGED} === '9 judged'")
                assert "The last vote is undone" in browser.value("document.body.innerText")
                browser.press("3")
                browser.wait_for(f"{LOADED} && {JUDGED} === '10 judged'")
            if done == 20:
                text = browser.value("document.querySelector('.prompt').innerText")
                browser.open(address, DESKTOP)
                assert browser.value("document.querySelector('.prompt').innerText") == text
                browser.press("q")
                browser.press("c")
                browser.call("Input.insertText", text="1 u s")  # letters of a comment are no keys
                browser.press("Escape")
            browser.press(key)
        browser.wait_for("document.title === 'Nothing is left to compare'")
        votes = store.votes()
        assert len(votes) == 30 and {vote.guideline for vote in votes} == {1}
        assert [vote.choice for vote in votes if vote.choice in (Choice.SKIP, Choice.BOTH_BAD)] == [
            {"s": Choice.SKIP, "0": Choice.BOTH_BAD}[key] for key in keys[:30] if key in "s0"
        ]
        left = [vote.choice.swapped if vote.is_swapped else vote.choice for vote in votes]
        assert (left[0], left[1], left[9]) == (Choice.FIRST_MUCH, Choice.FIRST_SLIGHTLY, Choice.TIE)
        assert [(vote.reasons, vote.comment) for vote in votes if vote.comment] == [(("accurate",), "1 u s")]
        assert all(vote.seconds is not None and 0 <= vote.seconds < 60 for vote in votes)
    assert browser.complaints == []
    assert [request for request in browser.requests if not request.startswith(address)] == []


def test_hostile_and_huge_texts_do_nothing(browser: Browser, tmp_path: Path) -> None:
    hostile = (
        "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'> [link](javascript:window.pwned=3) "
        "![image](https://elsewhere.example/x.png) <https://elsewhere.example> <a href='javascript:1'>a</a>\n\n"
        "|a|b|\n|:-:|-:|\n|1|2|\n\n```<b>\n</code></pre><script>window.pwned = 4</script>\n```"
    )
    item = comparison(1)
    answers = (replace(item.answers[0], text=hostile), replace(item.answers[1], text="<b>word</b> " * 9000))
    store = make(tmp_path, [replace(item, answers=answers, prompt=hostile)])
    store.add_guideline(hostile)
    with store, served(store) as address:
        enter(browser, address, store)
        browser.press("Enter")
        browser.wait_for(f"{LOADED} && !!document.querySelector('.answer')")
        browser.press("g")
        browser.wait_for("!document.querySelector('#panel').hidden")
        assert (
            browser.value("document.querySelectorAll('main script, main img, main a, #panel a, #panel img').length")
            == 0
        )
        assert "window.pwned = 1</script>" in browser.value("document.querySelector('.prompt').innerText")
        huge = "[...document.querySelectorAll('.answer .text')].find(e => e.innerText.length > 90000)"
        assert browser.value(f"{huge}.innerText.trim().startsWith('<b>word</b> <b>word</b>')")
        assert browser.value(f"{huge}.clientHeight < 900 && {huge}.scrollHeight > 2000")
        assert browser.value("typeof window.pwned") == "undefined"
    assert browser.complaints == []
    assert [request for request in browser.requests if not request.startswith(address)] == []


def test_the_panel_opens_and_closes_by_keys_and_shortcuts_can_be_turned_off(browser: Browser, tmp_path: Path) -> None:
    store = make(tmp_path, [comparison(1)])
    store.acknowledge("r1", store.add_guideline(GUIDELINES))
    with store, served(store) as address:
        enter(browser, address, store)
        browser.press("g")
        browser.wait_for("document.querySelector('#panel').innerText.includes('Canberra is the capital')")
        assert browser.value("document.activeElement.id") == "panel-close"
        browser.press("Escape")
        assert (
            browser.value("document.querySelector('#panel').hidden && document.activeElement.id") == "guidelines-link"
        )
        browser.click(*browser.middle("document.querySelector('#keys')"))
        browser.press("1")
        assert browser.value("document.querySelector('#keys').getAttribute('aria-pressed')") == "false"
        assert browser.value("getComputedStyle(document.querySelector('kbd')).display") == "none"
        browser.click(*browser.middle("document.querySelector('#keys')"))
        assert store.votes() == []


def test_a_vote_waits_for_a_server_that_is_away(browser: Browser, tmp_path: Path) -> None:
    store = make(tmp_path, [comparison(1), comparison(2)])
    with store, served(store) as address:
        enter(browser, address, store)
        browser.call("Network.emulateNetworkConditions", offline=True, **UNLIMITED)
        browser.press("1")
        browser.wait_for("document.querySelector('#alert').innerText.startsWith('The server does not answer')")
        assert store.votes() == []
        browser.call("Network.emulateNetworkConditions", offline=False, **UNLIMITED)
        browser.wait_for(f"{LOADED} && {JUDGED} === '1 judged'")
        assert len(store.votes()) == 1


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_answers_are_side_by_side_or_stacked_and_nothing_overflows(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    store = make(tmp_path, [comparison(1)])
    with store, served(store) as address:
        enter(browser, address, store, width=width)
        boxes = browser.value(
            "[...document.querySelectorAll('.answer')].map(e => e.getBoundingClientRect()).map(b => [b.left, b.top])"
        )
        assert (boxes[0][1] == boxes[1][1]) == (width == DESKTOP)
        assert browser.value("document.documentElement.scrollWidth") <= width
        heights = "[...document.querySelectorAll('.choices button')].map(e => e.getBoundingClientRect().height)"
        assert min(browser.value(heights)) >= 44  # large enough for a thumb


AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
PAGES = ("/?lang=en", "/?lang=ja", "/guidelines", "/practice", "/status", "/nothing")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_axe_finds_no_barrier(browser: Browser, tmp_path: Path, scheme: str, width: int) -> None:
    """Contrast, names, roles, language, headings, landmarks: axe-core's rules for WCAG 2 and for good practice."""
    items = [comparison(1, Purpose.CALIBRATION, Choice.TIE), comparison(2)]
    store = make(tmp_path, items, calibration_items=1)
    store.acknowledge("r1", store.add_guideline(GUIDELINES))
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    with store, served(store) as address:
        enter(browser, address, store, width=width)
        browser.press("3")
        browser.wait_for(f"{LOADED} && location.pathname === '/practice'")
        found = {}
        for path in PAGES:
            if path == "/status":
                enter(browser, address, store, AccessRole.ADMIN, width)
            browser.open(address + path, width)
            problems = barriers(browser)
            found |= {path: problems} if problems else {}
        assert found == {}


def barriers(browser: Browser) -> list[tuple[str, str]]:
    """What axe-core finds on the page: the rule, and the first element that breaks it."""
    browser.value(AXE + "; 0")
    result = json.loads(browser.value("axe.run().then(result => JSON.stringify(result))"))
    return [(rule["id"], rule["nodes"][0]["html"]) for rule in result["violations"]]


def test_axe_finds_barriers_that_are_there(browser: Browser, tmp_path: Path) -> None:
    store = make(tmp_path, [comparison(1)])
    with store, served(store) as address:
        enter(browser, address, store)
        browser.value("document.querySelector('h1').style.color = '#ddd'")
        browser.value("document.querySelector('textarea').insertAdjacentHTML('afterend', '<button></button>')")
        browser.value("document.documentElement.removeAttribute('lang')")
        assert {"color-contrast", "button-name", "html-has-lang"} <= {rule for rule, _ in barriers(browser)}


def test_progress_is_announced_and_the_page_declares_its_language(browser: Browser, tmp_path: Path) -> None:
    store = make(tmp_path, [comparison(1), comparison(2)])
    with store, served(store) as address:
        enter(browser, address, store)
        browser.press("1")
        browser.wait_for(f"{LOADED} && document.querySelector('[role=status]').textContent === '1 judged'")
        browser.open(f"{address}/?lang=ja", DESKTOP)
        assert browser.value("document.documentElement.lang") == "ja"
        browser.wait_for("document.querySelector('[role=status]').textContent === '1件判定済み'")


def test_a_link_from_another_site_signs_in(browser: Browser, tmp_path: Path) -> None:
    """Browsers send no strict cookie with a redirect that began elsewhere."""
    store = make(tmp_path, [comparison(1)])
    with store, served(store) as address:
        token = token_of(store, "r1")
        browser.open(f"data:text/html,<a href='{address}/enter?token={token}'>go</a>", DESKTOP)
        browser.click(*browser.middle("document.querySelector('a')"))
        browser.wait_for(f"{LOADED} && location.pathname === '/' && !!document.querySelector('.answer')")
