"""What a journal says: finished steps, the open round, and the model that a round improves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.cycle.journal import (
    CycleStep,
    Journal,
    JournalEntry,
    StepState,
    has_other_attempt,
    last_end,
    open_round,
    read_journal,
    starting_policy,
)
from rlhf.cycle.rounds import read_rounds
from rlhf.errors import UserError

BEGUN, WAITING, FINISHED = StepState


def entry(round: int, step: CycleStep, state: StepState = FINISHED, inputs: str = "a", **fields: Any) -> JournalEntry:
    return JournalEntry(time=fields.pop("time", 1.0), round=round, step=step, state=state, inputs=inputs, **fields)


def ended_round(number: int, outcome: str) -> list[JournalEntry]:
    return [
        entry(number, CycleStep.PPO, result={"model": f"/model{number}"}),
        entry(number, CycleStep.GATE, result={"outcome": outcome, "artefact": f"digest{number}"}),
        entry(number, CycleStep.PROMOTE),
    ]


START = entry(0, CycleStep.START, result={"model": "/sft"})


def test_lines_are_read_back_and_a_torn_one_is_no_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", clock=lambda: 5.0)
    assert journal.entries() == ()
    journal.add(1, CycleStep.SAMPLE, BEGUN, "a")
    journal.add(1, CycleStep.SAMPLE, FINISHED, "a", {"pairs": 3}, {"seconds": 2})
    with journal.path.open("a") as file:
        file.write('{"time": 6, "round"')
    assert journal.entries() == (
        entry(1, CycleStep.SAMPLE, BEGUN, time=5.0),
        entry(1, CycleStep.SAMPLE, time=5.0, result={"pairs": 3}, cost={"seconds": 2.0}),
    )


@pytest.mark.parametrize("line", ['{"round": 1}', '{"time": 1, "round": 1, "step": "fly", "state": "begun"}', "[]"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "journal.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match="line 1"):
        read_journal(tmp_path / "journal.jsonl")


def test_a_step_is_finished_with_the_inputs_of_its_newest_end() -> None:
    entries = [entry(1, CycleStep.ANSWER, inputs="a"), entry(1, CycleStep.ANSWER, inputs="b")]
    assert last_end(entries, 1, CycleStep.ANSWER, "b") is entries[1]
    assert last_end(entries, 1, CycleStep.ANSWER) is entries[1]
    assert last_end(entries, 1, CycleStep.ANSWER, "a") is None, "an earlier end was overwritten"
    assert last_end(entries, 2, CycleStep.ANSWER) is None
    assert last_end([entry(1, CycleStep.ANSWER, BEGUN)], 1, CycleStep.ANSWER) is None


def test_what_lies_there_is_of_the_newest_attempt() -> None:
    entries = [entry(1, CycleStep.ANSWER, BEGUN, "a")]
    assert not has_other_attempt([], 1, CycleStep.ANSWER, "a")
    assert not has_other_attempt(entries, 1, CycleStep.ANSWER, "a")
    assert has_other_attempt(entries, 1, CycleStep.ANSWER, "b")
    entries.append(entry(1, CycleStep.ANSWER, BEGUN, "b"))
    assert has_other_attempt(entries, 1, CycleStep.ANSWER, "a")


def test_a_round_is_open_until_its_last_step_ends() -> None:
    assert open_round([START]) == 1
    assert open_round([START, entry(1, CycleStep.PROMOTE, BEGUN)]) == 1
    assert open_round([START, *ended_round(1, "fail"), entry(2, CycleStep.SAMPLE)]) == 2


def test_a_round_improves_what_passed_last_and_was_not_found_bad() -> None:
    entries = [START, *ended_round(1, "pass"), *ended_round(2, "fail"), *ended_round(3, "pass")]
    assert starting_policy(entries, 1, []) == Path("/sft")
    assert starting_policy(entries, 3, []) == Path("/model1"), "the second round failed"
    assert starting_policy(entries, 4, []) == Path("/model3")
    assert starting_policy(entries, 4, ["digest3"]) == Path("/model1")
    assert starting_policy(entries, 4, ["digest3", "digest1"]) == Path("/sft")
    with pytest.raises(UserError):
        starting_policy([], 1, [])


def test_costs_of_repeated_steps_add_up_and_the_newest_line_is_the_state() -> None:
    entries = [
        entry(1, CycleStep.ANSWER, cost={"seconds": 2.0}, time=1.0, result={"digest": "x"}),
        entry(1, CycleStep.ANSWER, cost={"seconds": 3.0}, time=2.0, inputs="b"),
        entry(1, CycleStep.COMPARE, WAITING, time=3.0, result={"what": "4 votes are missing"}),
    ]
    [record] = read_rounds(entries)
    assert record.total("seconds") == 5.0
    assert record.state == "compare: 4 votes are missing"
    assert record.result(CycleStep.COMPARE) == {}, "it is not finished"
    assert read_rounds([*entries, entry(1, CycleStep.PROMOTE, time=4.0)])[0].state == "finished"
