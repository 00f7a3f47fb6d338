"""The commands of ``rlhf feedback``, and the server behind a proxy."""

from __future__ import annotations

import json
import urllib.parse
from pathlib import Path

import httpx
import pytest

from launch.cli import main
from launch.feedback.serve import Address
from rlhf.errors import UserError
from rlhf.feedback.records import Choice, Vote
from rlhf.feedback.store import Store
from tests.launch.feedback.live import served
from tests.launch.feedback.project import GUIDELINES, comparison, make_project, token_of


def run(*words: object) -> int:
    return main(["feedback", *map(str, words)])


def test_a_project_from_init_to_deletion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project, text = tmp_path / "votes.db", tmp_path / "g.md"
    text.write_text(GUIDELINES, encoding="utf-8")
    assert run("init", project, "--guidelines", text, "--overlap", 2) == 0
    text.write_text("Shorter is better.", encoding="utf-8")
    assert run("guidelines", project, text) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "version 2"
    assert run("token", project, "rater-07", "--days", 2, "--url", "https://label.example/x/") == 0
    link = urllib.parse.urlsplit(capsys.readouterr().out.strip())
    assert (link.netloc, link.path) == ("label.example", "/x/enter") and link.query.startswith("token=")
    assert run("token", project, "shop", "--role", "service") == 0
    assert "/" not in capsys.readouterr().out
    assert run("suspend", project, "rater-07", "--reason", "too fast") == 0
    capsys.readouterr()
    assert run("status", project, "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert {"what": "votes per item", "number": 2} in status["progress"]
    assert [(row["alias"], row["state"]) for row in status["raters"]] == [("rater-07", "suspended: too fast")]
    assert run("reinstate", project, "rater-07") == 0
    assert run("status", project) == 0
    assert "rater-07" in capsys.readouterr().out
    copy = tmp_path / "copy.db"
    assert run("backup", project, copy) == 0
    assert run("delete-rater", project, "rater-07") == 2
    assert run("delete-rater", project, "rater-07", "--yes") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "rater-07 is deleted, with 0 votes"
    with Store.open(copy) as kept, Store.open(project) as store:
        assert ([rater.alias for rater in kept.raters()], store.raters()) == (["rater-07"], [])


def test_status_shows_agreement_and_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two raters agree on three of four items; a third clicks on the left, fast. One of four items is unanimous."""
    store = make_project(tmp_path / "votes.db", items := [comparison(number) for number in range(60)], raters=3)
    left = [number % 2 == 0 for number in range(60)]
    votes = [
        Vote(
            id=f"{rater}-{n}", item=item.id, rater=rater, choice=_choice(rater, n), is_swapped=left[n], seconds=seconds
        )
        for n, item in enumerate(items)
        for rater, seconds in (("r1", 9.0), ("r2", 8.0), ("r3", 0.5))
    ]
    store.import_votes(votes)
    store.close()
    assert run("status", tmp_path / "votes.db", "--json") == 0
    status = json.loads(capsys.readouterr().out)
    raw = next(row for row in status["agreement"] if row["measure"] == "unanimous items")
    assert raw["value"] == 15 / 60
    assert {(row["alias"], row["reason"]) for row in status["flags"]} >= {("r3", "side"), ("r3", "fast")}
    assert {row["alias"] for row in status["flags"]} == {"r3"}
    assert [(row["alias"], row["left"]) for row in status["quality"]][2] == ("r3", 1.0)


def _choice(rater: str, number: int) -> Choice:
    """The first answer is better, r2 errs on every fourth item; r3 takes the left one, on even items the second."""
    is_first = {"r1": True, "r2": number % 4 != 3, "r3": number % 2 == 1}[rater]
    return Choice.FIRST_MUCH if is_first else Choice.SECOND_MUCH


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["token", "{project}", "a@b.example"], "is no alias"),
        (["token", "{project}", "r1", "--role", "adjudicator"], "r1"),
        (["token", "{project}", "r1", "--days", "0"], "--days is 0"),
        (["token", "{project}", "r1", "--role", "king"], "'king' is not one of"),
        (["serve", "{folder}/none.db"], "none.db"),
        (["serve", "{project}", "--root-path", "label"], "--root-path"),
        (["serve", "{project}", "--trusted-proxy", "my proxy"], "--trusted-proxy"),
        (["init", "{project}"], "exists"),
        (["init", "{folder}/new.db", "--overlap", "0"], "overlap is 0"),
        (["init", "{folder}/new.db", "--guidelines", "{folder}/none.md"], "none.md"),
        (["guidelines", "{project}", "{folder}"], "cannot read"),
        (["suspend", "{project}", "nobody"], "nobody"),
        (["backup", "{project}", "{project}"], "exists"),
    ],
)
def test_wrong_input_is_refused(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "votes.db"
    make_project(project, []).close()
    assert run(*(word.format(project=project, folder=tmp_path) for word in words)) == 2
    message = capsys.readouterr().err
    assert expected in message and "fix:" in message and "Traceback" not in message
    assert not (tmp_path / "new.db").exists()


def test_a_port_in_use_is_the_users_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = tmp_path / "votes.db"
    with make_project(project, []) as store, served(store) as address:
        assert run("serve", project, "--port", address.rpartition(":")[2]) == 2
    assert "cannot serve at 127.0.0.1:" in capsys.readouterr().err


def test_behind_a_proxy_that_is_trusted(tmp_path: Path) -> None:
    """The proxy strips its path, keeps the host, and tells the scheme."""
    forwarded = {"host": "label.example", "x-forwarded-proto": "https", "x-forwarded-for": "203.0.113.9"}
    settings = {"root_path": "/study", "allowed_hosts": ["label.example"]}
    store = make_project(tmp_path / "votes.db", [comparison(1)])
    with store, served(store, trusted_proxies=["127.0.0.1"], **settings) as address, httpx.Client() as client:
        entered = client.get(f"{address}/enter", params={"token": token_of(store, "r1")}, headers=forwarded)
        cookie = entered.headers["set-cookie"]
        assert entered.headers["location"] == "/study/"
        assert "Path=/study" in cookie and "Secure" in cookie
        page = client.get(f"{address}/", headers={**forwarded, "cookie": cookie.partition(";")[0]}).text
        assert 'href="/study/static/feedback.css"' in page and 'action="/study/vote"' in page
        assert client.get(f"{address}/static/feedback.css", headers=forwarded).status_code == 200
        assert client.get(f"{address}/", headers={"host": "other.example"}).status_code == 400


def test_a_client_that_is_no_trusted_proxy_cannot_claim_a_scheme(tmp_path: Path) -> None:
    store = make_project(tmp_path / "votes.db", [comparison(1)])
    for trusted in ([], ["192.0.2.1"]):
        with served(store, trusted_proxies=trusted) as address, httpx.Client() as client:
            headers = {"x-forwarded-proto": "https"}
            entered = client.get(f"{address}/enter", params={"token": token_of(store, "r1")}, headers=headers)
            assert "Secure" not in entered.headers["set-cookie"]
            assert "server" not in entered.headers
    store.close()


def test_a_path_that_ends_with_a_slash_is_refused() -> None:
    with pytest.raises(UserError, match="root-path"):
        Address(root_path="/a/")
