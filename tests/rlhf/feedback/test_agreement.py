"""Agreement of votes: who counts, published data, undefined cases, intervals and speed."""

from __future__ import annotations

import json
import time
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from rlhf.feedback.agreement import ONE_CATEGORY, agreement
from rlhf.feedback.records import Answer, Choice, Item, Purpose, Vote
from rlhf.feedback.simulate import SimulatedRater, simulate_items, simulate_votes

PANDALM = Path(__file__).parents[4] / "shared" / "data" / "pandalm"
F, T, S, B, SKIP = Choice.FIRST_MUCH, Choice.TIE, Choice.SECOND_SLIGHTLY, Choice.BOTH_BAD, Choice.SKIP


def item(name: str, **changes) -> Item:
    return Item(id=name, prompt=name, answers=(Answer(text="a"), Answer(text="b")), **changes)


def vote(of: str, rater: str, choice: Choice, **changes) -> Vote:
    return Vote(id=f"{of}{rater}{choice}{changes}", item=of, rater=rater, choice=choice, **changes)


def table(rows: dict[str, list[Choice | None]], **changes) -> list[Vote]:
    """Votes of raters r0, r1, ... on each item; None where a rater has none."""
    return [vote(of, f"r{r}", c, **changes) for of, row in rows.items() for r, c in enumerate(row) if c is not None]


def test_two_raters_by_hand() -> None:
    """Outcomes FF, FS, SS, TT: ¾ agree, by chance (2·1 + 1·2 + 1·1)/16 = 5/16, kappa (3/4 − 5/16)/(11/16) = 7/11."""
    votes = table({"a": [F, F], "b": [F, S], "c": [S, S], "d": [T, T]})
    found = agreement([item(name) for name in "abcd"], votes)
    assert found.overall.raw.value == 0.75
    assert found.overall.unanimous.value == 0.75
    assert found.pairs[0].raters == ("r0", "r1")
    assert found.pairs[0].kappa.value == pytest.approx(7 / 11)
    assert found.raters[1].kappa.value == pytest.approx(7 / 11)
    # alpha: n = 8, n_c = 3, 2, 3, observed disagreement 2, expected (64 − 9 − 4 − 9)/7 = 6
    assert found.overall.nominal.value == pytest.approx(1 - 2 / 6)


def test_both_bad_is_a_category_and_in_order_a_tie() -> None:
    votes = table({"a": [T, B], "b": [F, F], "c": [S, S]})
    found = agreement([item(name) for name in "abc"], votes).overall
    assert found.raw.value == pytest.approx(2 / 3)
    assert (found.ordinal.value, found.interval.value) == (1.0, 1.0)
    assert found.nominal.value is not None and found.nominal.value < 1


def test_a_rater_is_compared_with_each_other_vote() -> None:
    """On a one of two others agrees, on b both: (½ + 1)/2."""
    found = agreement([item("a"), item("b")], table({"a": [F, F, S], "b": [S, S, S]}))
    assert found.raters[0].raw.value == 0.75
    assert found.raters[0].raw.items == 2
    assert [pair.raw.value for pair in found.pairs] == [1.0, 0.5, 0.5]


def test_votes_that_are_no_judgements_do_not_count() -> None:
    items = [item("a"), item("g", purpose=Purpose.GOLD, gold=F), item("c", purpose=Purpose.CALIBRATION, gold=F)]
    others = [
        vote("a", "r0", S, is_repeat=True),
        vote("a", "r2", S, is_suspended=True),
        vote("a", "r3", S, is_adjudication=True),
        vote("a", "r4", SKIP),
        vote("g", "r0", S),
        vote("c", "r0", S),
        vote("elsewhere", "r0", S),
        vote("a", "r0", S),
    ]
    found = agreement(items, [*others, vote("a", "r0", F), vote("a", "r1", F)])
    assert found.overall.raw.value == 1.0
    assert found.left_out == {
        "repeat": 1,
        "suspended rater": 1,
        "adjudication": 1,
        "skip": 1,
        "other purpose": 2,
        "unknown item": 1,
        "replaced by a later vote": 1,
    }


def test_undefined_values_are_none_with_a_reason() -> None:
    nothing = agreement([], []).overall.raw
    assert (nothing.value, nothing.low, nothing.items) == (None, None, 0)
    assert nothing.reason
    alone = agreement([item("a")], table({"a": [F]}))
    assert alone.overall.nominal.value is None and alone.raters[0].kappa.value is None and alone.pairs == ()
    same = agreement([item("a"), item("b")], table({"a": [F, F], "b": [F, F]})).overall
    assert same.raw.value == 1.0 and same.raw.low is None and "every resample" in same.raw.reason
    assert (same.nominal.value, same.nominal.reason) == (None, ONE_CATEGORY)
    assert "NaN" not in json.dumps(agreement([], []).as_json())


def test_versions_of_the_guidelines_are_apart() -> None:
    old = table({"a": [F, S], "b": [S, F]}, guideline=1)
    new = table({"c": [F, F], "d": [S, S]}, guideline=2)
    found = agreement([item(name) for name in "abcd"], [*old, *new, vote("a", "r2", F)])
    assert {version: part.raw.value for version, part in found.guidelines.items()} == {1: 0.0, 2: 1.0, None: None}


def test_the_interval_covers_the_truth_and_is_reproducible() -> None:
    """Two raters at 80%: they agree on 0.8² + 0.2² = 68% of the items; 95% intervals over 40 experiments."""
    raters = [SimulatedRater(name="a"), SimulatedRater(name="b")]
    covered = 0
    for seed in range(40):
        simulated = simulate_items(100, seed=seed)
        votes = simulate_votes(simulated, raters, overlap=2, seed=seed)
        raw = agreement(simulated.items, votes, resamples=200).overall.raw
        covered += raw.low < 0.68 < raw.high
    assert 34 <= covered < 40
    again = agreement(simulated.items, votes, resamples=200).overall.raw
    assert (again.low, again.high) == (raw.low, raw.high)


def test_items_of_one_prompt_widen_the_interval() -> None:
    """50 items in 5 groups, in each of which all pairs agree or none does."""
    rows = {f"{g}-{i}": [F, F if g % 2 else S] for g in range(5) for i in range(10)}
    apart = agreement([item(name) for name in rows], table(rows)).overall.raw
    together = agreement([item(name, group=name[0]) for name in rows], table(rows)).overall.raw
    assert apart.value == together.value == 0.4
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_the_three_annotators_of_pandalm() -> None:
    """999 comparisons, of which 879 are unanimous; alpha by the definition, pair by pair."""
    if not PANDALM.exists():
        pytest.skip("the real data of PandaLM is not beside this repository")
    rows = json.loads((PANDALM / "testset-v1.json").read_text())
    choices = {0: T, 1: F, 2: S}
    labels = [[row[f"annotator{k}"] for k in (1, 2, 3)] for row in rows]
    votes = table({str(i): [choices[label] for label in row] for i, row in enumerate(labels)})
    found = agreement([item(str(i)) for i in range(len(rows))], votes, resamples=200).overall
    assert found.raw.items == 999
    assert found.unanimous.value == pytest.approx(879 / 999)
    observed = np.mean([a != b for row in labels for a, b in permutations(row, 2)])
    values = [label for row in labels for label in row]
    n, each = len(values), [values.count(label) for label in choices]
    expected = (n * n - sum(c * c for c in each)) / (n * (n - 1))
    assert found.nominal.value == pytest.approx(1 - observed / expected)
    assert found.nominal.low < found.nominal.value < found.nominal.high


def test_twenty_thousand_votes_take_seconds() -> None:
    simulated = simulate_items(6667)
    votes = simulate_votes(simulated, [SimulatedRater(name=f"r{i}") for i in range(10)])
    start = time.process_time()
    found = agreement(simulated.items, votes)
    assert time.process_time() - start < 10
    assert len(found.pairs) == 45
