"""The page's routes over HTTP: who may do what, what a browser receives, what is stored, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from httpx import Response

from launch.feedback.app import create_app
from launch.feedback.guard import MOST_BYTES
from launch.feedback.limits import Rate, RateLimit
from launch.feedback.site import make_site
from launch.feedback.visitors import COOKIE
from rlhf.feedback.access import AccessRole
from rlhf.feedback.records import Choice, Purpose, Thumb
from rlhf.feedback.store import Store
from tests.launch.feedback.project import GUIDELINES, POLICIES, comparison, make_project, token_of

BASE = "http://127.0.0.1"
MakeStore = Callable[..., Store]


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[MakeStore]:
    stores: list[Store] = []

    def make(*items: object, **settings: object) -> Store:
        stores.append(make_project(tmp_path / "votes.db", list(items), raters=2, **settings))  # type: ignore[arg-type]
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def visit(store: Store, alias: str = "r1", role: AccessRole = AccessRole.RATER) -> TestClient:
    """A browser that has opened its link."""
    client = TestClient(create_app(make_site(store)), base_url=BASE)
    client.headers.update({"origin": BASE, "accept-language": "en"})
    entered = client.get("/enter", params={"token": token_of(store, alias, role)}, follow_redirects=False)
    assert entered.status_code == 303
    return client


def fields(page: Response) -> dict[str, str]:
    """Hidden fields of the last form of a page, beside which the vote's id."""
    form = page.text.rpartition("<form")[2]
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', form))


def vote(client: TestClient, choice: str, **changes: object) -> Response:
    return client.post("/vote", data={**fields(client.get("/")), "choice": choice, **changes}, follow_redirects=False)


def shown(page: Response) -> list[str]:
    """The texts of answers A and B."""
    return re.findall(r"<p>((?:first|second) \d+)</p>", page.text)


def test_a_link_leaves_the_address_and_its_cookie_is_out_of_reach(make_store: MakeStore) -> None:
    store = make_store(comparison(1))
    client = TestClient(create_app(make_site(store)), base_url=BASE)
    entered = client.get("/enter", params={"token": token_of(store, "r1")}, follow_redirects=False)
    cookie = entered.headers["set-cookie"].lower()
    assert entered.headers["location"] == "/"
    assert "httponly" in cookie and "samesite=strict" in cookie and "secure" not in cookie
    https = TestClient(create_app(make_site(store)), base_url="https://127.0.0.1")
    entered = https.get("/enter", params={"token": token_of(store, "r1")}, follow_redirects=False)
    assert "; secure" in entered.headers["set-cookie"].lower()


@pytest.mark.parametrize("choice", ["a_much", "b_slightly", "tie", "both_bad", "skip"])
def test_a_vote_is_stored_in_the_items_order(make_store: MakeStore, choice: str) -> None:
    store = make_store(*(comparison(number) for number in range(6)))
    client, left_first = visit(store), []
    for _ in range(6):
        texts = shown(client.get("/"))
        left_first.append(texts[0].startswith("first"))
        assert vote(client, choice).headers["location"] == "/"
    first_is_a = {"a_much": "first_much", "b_slightly": "second_slightly"}
    first_is_b = {"a_much": "second_much", "b_slightly": "first_slightly"}
    expected = [(first_is_a if is_left else first_is_b).get(choice, choice) for is_left in left_first]
    assert [stored.choice for stored in store.votes()] == expected
    assert [not stored.is_swapped for stored in store.votes()] == left_first
    assert set(left_first) == {True, False}  # both sides came up
    assert "Nothing is left to compare" in client.get("/").text


def test_a_vote_carries_reasons_comment_seconds_and_version(make_store: MakeStore) -> None:
    store = make_store(comparison(1))
    version = store.add_guideline(GUIDELINES)
    store.acknowledge("r1", version)
    answer = vote(visit(store), "tie", reason=["clear", "helpful"], comment=" one\r\ntwo ", seconds="0.4")
    assert answer.status_code == 303
    (stored,) = store.votes()
    assert (stored.reasons, stored.comment, stored.guideline) == (("clear", "helpful"), "one\ntwo", 1)
    assert stored.seconds == 0.4


def test_seconds_beyond_what_the_server_saw_are_cut(make_store: MakeStore) -> None:
    store = make_store(comparison(1))
    vote(visit(store), "tie", seconds="9999")
    (stored,) = store.votes()
    assert stored.seconds is not None and stored.seconds < 5


def test_a_form_that_is_sent_twice_is_one_vote(make_store: MakeStore) -> None:
    store = make_store(comparison(1), comparison(2))
    client = visit(store)
    form = {**fields(client.get("/")), "choice": "a_much"}
    assert [client.post("/vote", data=form, follow_redirects=False).headers["location"] for _ in range(2)] == ["/", "/"]
    assert len(store.votes()) == 1


def test_the_browser_learns_nothing_about_the_item(make_store: MakeStore) -> None:
    items = [comparison(1), comparison(2, Purpose.GOLD, Choice.TIE), comparison(3, Purpose.CALIBRATION, Choice.TIE)]
    store = make_store(*items, calibration_items=1, gold_fraction=0.45, repeat_fraction=0.0)
    secrets = [*POLICIES, "round-secret", "gold", "label", "calibration", *(item.id for item in items)]
    secrets += [str(answer.seed) for item in items for answer in item.answers]
    client, received = visit(store), []
    while "Nothing is left" not in (page := client.get("/")).text:
        received.append((page, str(page.headers)))
        received.append((answer := vote(client, "tie"), str(answer.headers)))
    store.undo("r1")
    received.append((client.get("/"), ""))
    assert len(store.votes()) >= 1
    for page, headers in received:
        plain = re.sub(r"aria-label(ledby)?=|<label|</label>", "", page.text) + headers
        assert [secret for secret in secrets if secret in plain] == []


def test_gold_and_label_pages_differ_in_their_texts_only(make_store: MakeStore) -> None:
    store = make_store(comparison(3, Purpose.CALIBRATION, Choice.TIE), comparison(4), calibration_items=1)
    pages = []
    for alias in ("r1", "r2"):
        client = visit(store, alias)
        if alias == "r2":
            vote(client, "tie")
        varying = r'value="[0-9a-f]{32}"|(first|second) \d|Question \d|name="csrf" value="[^"]*"'
        page = re.sub(varying, "", client.get("/").text)
        pages.append(re.sub(r"gAAAA[\w=-]+", lambda found: str(len(found[0])), page))  # of a ticket, its length
    before, after = (page.replace("Rater r1", "").replace("Rater r2", "").splitlines() for page in pages)
    assert [line for line in set(before) ^ set(after) if "judged" not in line and "Undo" not in line] == []


def test_a_vote_with_another_raters_cookie_is_refused(make_store: MakeStore) -> None:
    store = make_store(comparison(1))
    mine, theirs = visit(store, "r1"), visit(store, "r2")
    form = {**fields(mine.get("/")), "csrf": fields(theirs.get("/"))["csrf"], "choice": "tie"}
    assert theirs.post("/vote", data=form).status_code == 403
    assert mine.post("/vote", data=form).status_code == 403  # with the other's proof
    assert store.votes() == []


@pytest.mark.parametrize(
    ("headers", "changes", "status"),
    [
        ({"origin": "http://elsewhere.example"}, {}, 403),
        ({"origin": "null"}, {}, 403),
        ({"origin": ""}, {}, 403),
        ({"origin": "http://127.0.0.1:81"}, {}, 403),
        ({}, {"csrf": "forged"}, 403),
        ({}, {"ticket": "gAAAAA-forged"}, 400),
        ({}, {"ticket": "é"}, 400),
        ({}, {"choice": "first_much"}, 422),
        ({}, {"vote": "../x"}, 422),
        ({}, {"seconds": "soon"}, 422),
        ({}, {"reason": "bribed"}, 422),
        ({}, {"comment": "x" * 2001}, 422),
    ],
)
def test_a_wrong_form_is_refused(
    make_store: MakeStore, headers: dict[str, str], changes: dict[str, str], status: int
) -> None:
    store = make_store(comparison(1))
    client = visit(store)
    form = {**fields(client.get("/")), "choice": "tie", **changes}
    assert client.post("/vote", data=form, headers=headers).status_code == status
    assert store.votes() == []
    assert client.post("/vote", data={**form, **dict.fromkeys(changes, "")}).status_code != 500


def test_seconds_that_are_no_number_are_not_stored(make_store: MakeStore) -> None:
    store = make_store(comparison(1))
    assert vote(visit(store), "tie", seconds="nan").status_code == 422
    assert store.votes() == []


def test_without_a_link_there_is_nothing(make_store: MakeStore) -> None:
    store = make_store(comparison(1))
    client = TestClient(create_app(make_site(store)), base_url=BASE)
    for path in ("/", "/guidelines", "/practice", "/status", "/status.json", "/enter", "/enter?token=x.y"):
        assert client.get(path).status_code == 401, path
    assert client.post("/vote").status_code in (401, 422)
    assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 404


def test_a_browser_from_another_site_reloads_once_to_send_its_cookie(make_store: MakeStore) -> None:
    client = TestClient(create_app(make_site(make_store(comparison(1)))), base_url=BASE)
    page = client.get("/", headers={"sec-fetch-site": "cross-site"})
    assert page.status_code == 200 and '<meta http-equiv="refresh" content="0">' in page.text
    assert client.get("/", headers={"sec-fetch-site": "same-origin"}).status_code == 401


def test_suspension_and_deletion_end_access_at_once(make_store: MakeStore) -> None:
    store = make_store(comparison(1), comparison(2))
    client = visit(store)
    form = {**fields(client.get("/")), "choice": "tie"}
    store.suspend("r1", "too fast")
    refused = client.get("/")
    assert refused.status_code == 403 and "suspended" in refused.text and "too fast" not in refused.text
    assert client.post("/vote", data=form).status_code == 403
    store.reinstate("r1")
    assert client.get("/").status_code == 200
    store.delete_rater("r1")
    assert client.get("/").status_code == 401


def test_undo_shows_the_item_again(make_store: MakeStore) -> None:
    store = make_store(comparison(1), comparison(2))
    client = visit(store)
    before = shown(client.get("/"))
    vote(client, "tie")
    assert shown(client.get("/")) != before
    page = client.get("/")
    answer = client.post("/undo", data={"csrf": fields(page)["csrf"]}, headers={"accept": "application/json"})
    assert answer.json() == {"next": "/?note=undone"}
    assert store.votes() == []
    again = client.get("/?note=undone")
    assert shown(again) == before and "The last vote is undone" in again.text
    answer = client.post("/undo", data={"csrf": fields(again)["csrf"]}, follow_redirects=False)
    assert answer.headers["location"] == "/?note=nothing_to_undo"


def test_resumes_after_a_restart(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(comparison(1), comparison(2), comparison(3))
    client = visit(store)
    vote(client, "tie")
    page = client.get("/")
    with Store.open(tmp_path / "votes.db") as again:
        later = TestClient(create_app(make_site(again)), base_url=BASE, cookies=client.cookies)
        later.headers.update({"origin": BASE, "accept-language": "en"})
        assert shown(later.get("/")) == shown(page)
        assert "1 judged" in later.get("/").text
        form = {**fields(page), "choice": "a_much"}  # the form of the page that was loaded before the restart
        assert later.post("/vote", data=form, follow_redirects=False).headers["location"] == "/"
    assert len(store.votes()) == 2


def test_new_guidelines_are_acknowledged_once_before_the_next_vote(make_store: MakeStore) -> None:
    store = make_store(comparison(1), comparison(2))
    store.add_guideline(GUIDELINES)
    client = visit(store)
    page = client.get("/")
    assert page.url.path == "/guidelines" and "I have read version 1" in page.text
    for text in ("<strong>true</strong>", "B much better", "Canberra is the capital"):
        assert text in page.text
    client.post("/acknowledge", data=fields(page))
    assert store.acknowledged("r1") == 1
    old = client.get("/")
    assert old.url.path == "/"
    store.add_guideline("Prefer the shorter one.")
    stale = client.post("/acknowledge", data={"csrf": fields(old)["csrf"], "version": "1"})
    assert stale.status_code == 409
    client.post("/vote", data={**fields(old), "choice": "tie"}, follow_redirects=False)
    assert [stored.guideline for stored in store.votes()] == [1]  # it was made by version 1
    page = client.get("/")
    assert page.url.path == "/guidelines" and "I have read version 2" in page.text


def test_practice_explains_each_vote_and_gives_a_score(make_store: MakeStore) -> None:
    known = [comparison(number, Purpose.CALIBRATION, Choice.FIRST_MUCH) for number in (1, 2)]
    store = make_store(comparison(9), *known, calibration_items=2)
    client = visit(store)
    buttons = {"first": "a_slightly", "second": "b_slightly"}
    is_right = []
    for wish in ("right", "wrong"):
        left = shown(client.get("/"))[0].split()[0]
        choice = buttons[left] if wish == "right" else "tie"
        answer = vote(client, choice)
        assert answer.headers["location"] == "/practice"
        verdict = client.get("/practice").text
        assert re.search(r"Explanation [12]\.", verdict)
        assert f"{'A' if left == 'first' else 'B'} much better" in verdict
        is_right.append("agrees with the guidelines" in verdict)
    assert is_right == [True, False]
    assert "The practice is over: 1 of 2 right." in verdict
    assert vote(client, "tie").headers["location"] == "/"
    assert client.get("/practice", follow_redirects=False).headers["location"] == "/"


def test_an_explanation_is_shown_after_the_vote_only(make_store: MakeStore) -> None:
    store = make_store(comparison(1, Purpose.CALIBRATION, Choice.TIE), comparison(2), calibration_items=1)
    client = visit(store)
    assert "Explanation" not in client.get("/").text
    assert client.get("/practice", follow_redirects=False).status_code == 303


def test_status_is_for_administrators(make_store: MakeStore) -> None:
    store = make_store(comparison(1), comparison(2))
    vote(visit(store), "skip")
    assert visit(store).get("/status").status_code == 403
    assert visit(store, "judge", AccessRole.ADJUDICATOR).get("/status.json").status_code == 403
    admin = visit(store, "boss", AccessRole.ADMIN)
    assert "items to label" in admin.get("/status").text
    assert admin.get("/").status_code == 403
    raters = admin.get("/status.json").json()["raters"]
    assert raters[0]["alias"] == "r1" and (raters[0]["votes"], raters[0]["skips"]) == (1, 1)
    bare = TestClient(create_app(make_site(store)), base_url=BASE)
    bearer = {"authorization": f"Bearer {token_of(store, 'boss', AccessRole.ADMIN)}"}
    assert bare.get("/status.json", headers=bearer).json()["progress"][0] == {"what": "items to label", "number": 2}


def test_an_adjudicator_decides_what_raters_disagree_about(make_store: MakeStore) -> None:
    store = make_store(comparison(1), overlap=2, repeat_fraction=0.0, gold_fraction=0.0)
    judge = visit(store, "judge", AccessRole.ADJUDICATOR)
    assert "Nothing is left" in judge.get("/").text
    for alias, wish in (("r1", "first"), ("r2", "second")):
        client = visit(store, alias)
        left = shown(client.get("/"))[0].split()[0]
        vote(client, "a_much" if left == wish else "b_much")
    assert "The raters disagree" in judge.get("/").text
    vote(judge, "tie")
    assert store.votes()[-1].is_adjudication and store.counts().adjudicated == 1


def test_thumbs_from_production(make_store: MakeStore) -> None:
    store = make_store()
    client = TestClient(create_app(make_site(store)), base_url=BASE)
    bearer = {"authorization": f"Bearer {token_of(store, 'shop', AccessRole.SERVICE)}"}
    body = {
        "id": "a-1",
        "prompt": [{"role": "user", "content": "Hi"}],
        "answer": "Hello.",
        "model": "m-2",
        "thumb": "up",
    }
    assert client.post("/feedback", json=body, headers=bearer).status_code == 201
    assert client.post("/feedback", json=body, headers=bearer).status_code == 200
    assert client.post("/feedback", json={**body, "thumb": "down"}, headers=bearer).status_code == 409
    (thumb,) = store.thumbs()
    assert (thumb.id, thumb.answer.text, thumb.answer.policy, thumb.is_good) == ("a-1", "Hello.", "m-2", True)
    assert isinstance(thumb, Thumb) and [turn.content for turn in thumb.prompt] == ["Hi"]  # type: ignore[union-attr]
    half = json.dumps({**body, "id": "a-2", "answer": "half of a pair: \ud800"}).encode()
    typed = {**bearer, "content-type": "application/json"}
    assert client.post("/feedback", content=half, headers=typed).status_code == 422
    wrong = client.post("/feedback", json={**body, "thumb": "sideways"}, headers=bearer)
    assert wrong.status_code == 422 and wrong.json()["problems"][0]["field"] == "thumb"
    assert client.post("/feedback", json=body).status_code == 401
    rater = {"authorization": f"Bearer {token_of(store, 'r1')}"}
    assert client.post("/feedback", json=body, headers=rater).status_code == 403
    assert visit(store).post("/feedback", json=body).status_code == 401  # a cookie is not enough


def test_every_response_has_the_protective_headers(make_store: MakeStore) -> None:
    client = visit(make_store(comparison(1)))
    for path, status, cache in (
        ("/", 200, "no-store"),
        ("/nothing", 404, "no-store"),
        ("/static/feedback.js", 200, "no-cache"),
    ):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert answer.status_code == status
        assert "unsafe" not in policy and policy.startswith("default-src 'none'") and "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cache-control"] == cache
    page = client.get("/").text
    assert " style=" not in page and "<style" not in page and " onclick" not in page
    assert [tag for tag in re.findall(r"<script[^>]*>", page) if "src=" not in tag] == []


def test_limits_of_size_host_and_rate(make_store: MakeStore) -> None:
    store = make_store(comparison(1))
    client = visit(store)
    form = {**fields(client.get("/")), "choice": "tie", "comment": "x" * MOST_BYTES}
    assert client.post("/vote", data=form).status_code == 413
    assert client.post("/vote", content=iter([b"x" * 2**19] * 3)).status_code == 413  # of unknown length
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"host": "localhost:99"}).status_code == 200


def test_each_rater_has_a_rate(make_store: MakeStore) -> None:
    store = make_store(comparison(1), comparison(2))
    site = replace(make_site(store), visits=RateLimit(Rate(burst=2, per_second=0.25), lambda: 0.0))
    tokens = [token_of(store, alias) for alias in ("r1", "r2")]
    first, second = (TestClient(create_app(site), base_url=BASE, cookies={COOKIE: token}) for token in tokens)
    assert [first.get("/").status_code for _ in range(3)] == [200, 200, 429]
    late = first.get("/", headers={"accept": "application/json", "accept-language": "en"})
    assert late.headers["retry-after"] == "5" and "Too many" in late.json()["message"]
    assert second.get("/").status_code == 200


def test_the_language_is_chosen_kept_and_declared(make_store: MakeStore) -> None:
    client = visit(make_store(comparison(1)))
    assert '<html lang="en">' in client.get("/").text
    assert '<html lang="ja">' in client.get("/", headers={"accept-language": "fr;q=0.9, ja-JP;q=0.8, en;q=0.1"}).text
    page = client.get("/?lang=ja").text
    assert '<html lang="ja">' in page and "どちらの回答が良いですか" in page
    assert '<html lang="ja">' in client.get("/").text  # by the cookie
    assert client.get("/nothing").text.count("そのページはありません") == 1


def test_hostile_texts_are_shown_as_texts(make_store: MakeStore) -> None:
    item = comparison(1)
    hostile = '<script>alert(1)</script> [x](javascript:alert(2)) <b onclick="x">\x00\ud800</b>'
    answers = (replace(item.answers[0], text=hostile), replace(item.answers[1], text="<" * 100_000))
    store = make_store(replace(item, answers=answers, prompt=hostile))
    page = visit(store).get("/").text
    assert (
        page.count("&lt;script&gt;alert(1)&lt;/script&gt; [x](javascript:alert(2)) &lt;b onclick=&quot;x&quot;&gt;␀")
        == 2
    )
    assert "<script>alert" not in page and '<a href="javascript' not in page
    assert "&lt;" * 100_000 in page
