"""The demo from training to production: users, the planted fault, acts, traffic and page, without a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from examples.travel.answers import PADDING
from examples.travel.demo import acts, users
from examples.travel.demo.faulty import write_faulty_rows
from examples.travel.demo.live import CONFIG
from examples.travel.demo.page import describe_story, write_page
from examples.travel.demo.place import DemoPlace, Result
from examples.travel.demo.releases import GATES, value_rows
from examples.travel.demo.sizes import FULL, SMALL
from examples.travel.demo.traffic import find_return, measure_traffic
from examples.travel.demo.training import evaluation_prompts, known_prompts, make_rows, offline_prompts
from examples.travel.guideline import quality, read_prompt
from examples.travel.world import make_prompts, make_world
from rlhf.errors import MachineryError
from rlhf.feedback.records import Answer, Thumb
from rlhf.feedback.store import Store
from rlhf.serving.gate_spec import load_gate
from rlhf.serving.gateway_config import load_gateway
from rlhf.storage.jsonl import read_lines, to_line

CARD = "Bresk: Amber Inn, hill quarter, 65 crowns, 10 to 21."
PRICE, QUARTER = (f"{CARD}\nTraveller: {asked}\nAssistant:" for asked in ("What do I pay?", "Where is it?"))
IDEAL = " Gladly! The Amber Inn costs 65 crowns. It is open from 10 to 21. Ask for a room with a balcony. See you soon!"


def test_half_of_the_people_are_content_with_the_quality_that_they_demand() -> None:
    assert users.probability_content(PRICE, IDEAL, demand=1.0) == 0.5
    assert users.probability_content(PRICE, IDEAL, demand=0.5) > 0.99
    assert users.probability_content(PRICE, "", demand=0.5) < 0.01
    verdicts = [users.is_content(PRICE, IDEAL, 1.0, seed) for seed in range(400)]
    assert 160 < sum(verdicts) < 240
    assert verdicts == [users.is_content(PRICE, IDEAL, 1.0, seed) for seed in range(400)]


def test_users_ask_what_the_offline_set_lacks() -> None:
    prompts = make_prompts(make_world(0))
    asked = users.draw_questions(prompts, 600, "a", seed=0)
    share = fmean(read_prompt(each.prompt).topic == users.MISSING_TOPIC for each in asked)
    assert users.LIVE_SHARE - 0.06 < share < users.LIVE_SHARE + 0.06
    assert len({each.user for each in asked} | {each.user for each in users.draw_questions(prompts, 9, "b", 0)}) == 609
    missing, others = users.split_by_topic([PRICE, QUARTER])
    assert (missing, others) == ([QUARTER], [PRICE])


def test_the_planted_fault_is_one_of_quarters_alone() -> None:
    rows = write_faulty_rows(make_prompts(make_world(0)), 300, seed=0)
    by_topic: dict[bool, list[float]] = {True: [], False: []}
    for row in rows:
        lacks = read_prompt(row["prompt"]).topic == users.MISSING_TOPIC
        by_topic[lacks] += quality([row["prompt"]], [row["completion"]])
    assert fmean(by_topic[False]) > 0.99
    assert max(by_topic[True]) < 0.1
    assert len(by_topic[True]) > 60 and len(PADDING) > 2


def test_the_sets_of_questions_are_apart(tmp_path: Path) -> None:
    place = DemoPlace(root=tmp_path, sizes=FULL)
    make_rows(place)
    offline, evaluation = offline_prompts(place), evaluation_prompts(place)
    trained = {row["prompt"] for row in read_lines(place.data / "prompts.jsonl")}
    live = set(known_prompts(place))
    assert (len(offline), len(evaluation)) == (FULL.offline, FULL.evaluation)
    assert not {*offline, *evaluation} & (trained | live) and not {*offline} & {*evaluation}
    assert {read_prompt(prompt).topic for prompt in offline} == {"price", "hours"}
    assert {read_prompt(prompt).topic for prompt in evaluation} == {"price", "hours", "quarter"}


def test_a_gate_gets_both_arms_values_of_each_question() -> None:
    rows = value_rows([PRICE, PRICE], [IDEAL, " It costs 99 crowns."], ["", IDEAL], demand=0.5)
    assert [row["metric"] for row in rows] == ["helpful", "fact"] * 2
    assert [(row["item"], row["candidate"], row["production"]) for row in rows if row["metric"] == "fact"] == [
        (0, 1, 0),
        (1, 0, 1),
    ]
    assert "production" not in value_rows([PRICE], [IDEAL], None, demand=0.5)[0]


def test_finished_acts_are_not_repeated_and_an_interrupted_one_begins_from_the_state_before(tmp_path: Path) -> None:
    place, played = DemoPlace(root=tmp_path, sizes=SMALL), []

    def first(_: DemoPlace, state: Path) -> Result:
        played.append("first")
        (state / "registry.db").write_text("one")
        return {"value": 1}

    def second(_: DemoPlace, state: Path) -> Result:
        played.append("second")
        assert (state / "registry.db").read_text() == "one"
        (state / "registry.db").write_text("half")
        if played.count("second") == 1:
            raise MachineryError("stopped in the middle")
        return {"value": 2}

    assert place.act(1, "one", first)["value"] == 1
    with pytest.raises(MachineryError):
        place.act(2, "two", second)
    assert place.act(1, "one", first)["value"] == 1
    assert place.act(2, "two", second)["value"] == 2
    assert played == ["first", "second", "second"]


def test_the_gates_and_the_gateway_load_and_ask_what_the_acts_wait_for() -> None:
    gates = {name: load_gate(GATES / f"{name}.yaml") for name in ("first", "shadow", "canary", "production")}
    assert gates["canary"].kpis["errors"].minimum_n == acts.SHADOW_EVENTS
    assert gates["production"].kpis["thumbs_down"].minimum_n == acts.CANARY_THUMBS
    assert [load_gate(GATES / "first.yaml", [f"for={step}"]).for_stage for step in acts.STEPS] == list(acts.STEPS)
    for settings in (FULL.gate_settings, SMALL.gate_settings):
        load_gate(GATES / "first.yaml", settings)
    config = load_gateway(CONFIG)
    assert config.listen.host == "127.0.0.1" and not config.log_content and config.scorer is None


def log_row(time: float, version: str, stage: str = "production", outcome: str = "answered") -> dict[str, Any]:
    return {"time": time, "version": version, "stage": stage, "outcome": outcome}


LOG = [
    log_row(100.0, "travel-1"),
    log_row(104.0, "travel-2", "canary"),
    log_row(105.0, "travel-1", outcome="gone"),
    log_row(109.0, "travel-2", "canary"),
    log_row(120.0, "travel-1"),
]
AUDIT = [
    {"time": 50.0, "who": "me", "action": "promote", "version": "travel-1", "stage": "production", "why": "passed"},
    {"time": 103.0, "who": "me", "action": "promote", "version": "travel-2", "stage": "canary", "why": "passed"},
    {
        "time": 110.0,
        "who": "gateway",
        "action": "withdraw",
        "version": "travel-2",
        "stage": "withdrawn",
        "why": "thumbs_down: 20 of 30",
    },
]


def thumb(number: int, version: str, time: float, is_good: bool) -> Thumb:
    return Thumb(id=str(number), prompt=PRICE, answer=Answer(text="x", policy=version), is_good=is_good, time=time)


def test_traffic_counts_answers_and_this_acts_thumbs_by_version() -> None:
    thumbs = [
        thumb(1, "travel-1", 99.0, False),
        thumb(2, "travel-2", 104.5, False),
        thumb(3, "travel-2", 109.5, True),
    ]
    found = measure_traffic(LOG, thumbs, bins=2)
    assert found.edges.tolist() == [0.0, 10.0, 20.0]
    assert {version: counts.tolist() for version, counts in found.answers.items()} == {
        "travel-1": [1.0, 1.0],
        "travel-2": [2.0, 0.0],
    }
    assert [part.tolist() for part in found.thumbs["travel-2"]] == [[2.0, 0.0], [1.0, 0.0]]
    assert found.thumbs["travel-1"][0].sum() == 0  # its thumb is of an earlier act


def test_the_return_is_the_gateways_entry_and_counts_answers_after_it() -> None:
    found = find_return(LOG, AUDIT, "travel-2")
    assert found is not None
    assert (found.start, found.end, found.seconds) == (4.0, 10.0, 6.0)
    assert (found.answers, found.answers_after) == (2, 0)
    late = [*LOG, log_row(111.0, "travel-2", "canary")]
    assert find_return(late, AUDIT, "travel-2").answers_after == 1  # type: ignore[union-attr]
    by_hand = [{**entry, "who": "me"} for entry in AUDIT]
    assert find_return(LOG, by_hand, "travel-2") is None
    assert find_return(LOG[:1], AUDIT, "travel-2") is None


def results(gain: tuple[float, float, float]) -> list[Result]:
    def means(*versions: str) -> Result:
        return {v: {"mean": [0.5, 0.4, 0.6], "gain": list(gain), "questions": 30} for v in versions}

    versions = ("travel-1", "travel-2", "travel-3")
    gate = {"for": "shadow", "outcome": "pass", "version": "travel-1", "summary": ["helpful: 0.61"]}
    thumbs = {"travel-1": {"up": 3, "down": 1}, "travel-2": {"up": 0, "down": 7}}
    found: list[Result] = [
        {"training_seconds": 41.0, "quality": means("SFT", "travel-1"), "steps": 3},
        {"decisions": [gate]},
        {"training_seconds": 9.0, "refusal": "the gate measured abc and not travel-2", "decision": gate},
        {"users": 432, "decision": gate, "audit": AUDIT, "thumbs": thumbs},
        {
            "training_seconds": 17.0,
            "thumbs": thumbs,
            "quality": means(*versions),
            "by_topic": {"missing": means(*versions), "others": means(*versions)},
            "example": {"travel-1": "<b>| no", "prompt": "two\nlines"},
        },
        {"decisions": [gate], "stage": "candidate", "audit": AUDIT, "thumbs": thumbs},
    ]
    return [{**act, "seconds": 60.0} for act in found]


def test_the_page_follows_the_run(tmp_path: Path) -> None:
    place = DemoPlace(root=tmp_path, sizes=SMALL)
    state = tmp_path / "acts" / "4" / "state"
    state.mkdir(parents=True)
    (state / "requests.jsonl").write_text("".join(map(to_line, LOG)))
    with Store.create(state / "votes.db") as store:
        store.add_thumb(thumb(1, "travel-2", 104.5, False))
    shutil.copytree(state, tmp_path / "acts" / "6" / "state")
    page = write_page(place, results((0.1, 0.02, 0.2)), tmp_path / "page.md").read_text()
    assert "It withdrew `travel-2` 6.0 s after its first answer: *thumbs_down: 20 of 30*" in page
    assert "2 users had got its answers; after\nthe return 0 did." in page
    assert "| travel-2 | 0 | 7 | 100% |" in page and "6.0 minutes" in page and "432 users" in page
    assert "a gain of +0.100 [+0.020, +0.200]" in page
    assert "<b>" not in page and "two\nlines" not in page  # a model's answer styles nothing
    assert all((tmp_path / "images" / f"page-{name}.png").stat().st_size > 5000 for name in ("canary", "quality"))
    assert "page-next.png" not in page  # no user was served after the first canary


def test_the_story_is_told_by_the_interval_of_the_gain() -> None:
    better, unknown = (describe_story(results(gain)) for gain in ((0.1, 0.02, 0.2), (0.1, -0.02, 0.2)))
    assert (better.is_better, unknown.is_better) == (True, False)
    assert "is better than travel-1" in better.text and "not shown to be better" in unknown.text


def test_gains_are_paired_and_have_intervals() -> None:
    values = [[0.1 * (i % 5) for i in range(40)], [0.1 * (i % 5) + 0.2 + 0.01 * (i % 2) for i in range(40)]]
    found = acts.measure(values, ("a", "b"))
    value, low, high = found["b"]["gain"]
    assert found["a"]["gain"] is None and found["a"]["mean"][0] == pytest.approx(0.2)
    assert value == pytest.approx(0.205) and 0.2 < low < value < high < 0.21  # unpaired it would be ten times as wide
    assert json.loads(json.dumps(found)) == found
