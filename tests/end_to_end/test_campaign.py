"""What is made of a run's marks, events and exit codes, and how the page shows it: without a run."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.end_to_end.campaign import Command, Ended, Result, stated_exit
from tests.end_to_end.chaos import CHAOS_PHASES, KINDS, draw
from tests.end_to_end.fault_plan import CONTROLLER, PHASES, Aim, Marks, Order, Strike
from tests.end_to_end.matrix import Tried, every_cell, page, read_results, runs_of, write_results
from tests.end_to_end.matrix_page import BEGIN, END, cell, insert

REWARD = Aim(role="reward", phase="update", fault="SIGKILL")


class Story:
    """A run of two steps that ends well after ten seconds, to which things are done."""

    def __init__(self, folder: Path, *plan: Aim) -> None:
        self.path, self.marks = folder / "ppo", Marks(folder)
        (self.path / "model").mkdir(parents=True)
        (self.path / "model" / "model.safetensors").touch()
        self.plan, self.commands = plan, [Command(begun=0.0, ended=10.0, code=0, said="done")]
        self.rows: list[dict[str, float]] = [
            {"step": step, "rollout/dropped": 0, "rollout/set_aside": 0} for step in range(2)
        ]

    def strike(self, time: float, member: str, aim: int = 0) -> None:
        self.marks.struck(Strike(aim=aim, time=time, members=(member,), processes=(1,)))

    def replaced(self, time: float, member: str) -> None:
        at = datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds")
        with (self.path / "events.jsonl").open("a") as file:
            file.write(json.dumps({"time": at, "kind": "actor_replaced", "member": member}) + "\n")

    def results(self) -> list[Result]:
        (self.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        ended = Ended(path=self.path, plan=self.plan, steps=2, marks=self.marks, commands=self.commands)
        return ended.results()


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path, REWARD)


def test_a_replaced_actor_is_counted_from_the_fault_to_its_replacement(story: Story) -> None:
    story.replaced(2.0, "reward e rank 0")  # of an earlier fault
    story.strike(3.0, "reward e rank 0")
    story.replaced(4.0, "critic rank 0")
    story.replaced(5.5, "reward e rank 0")
    [result] = story.results()
    assert result.passed and result.code == 0 and result.seconds == pytest.approx(2.5)
    assert cell(result) == "2.5"


def test_nobody_needs_an_actor_at_the_end(story: Story) -> None:
    story.strike(9.0, "reward e rank 0")
    [result] = story.results()
    assert result.passed and cell(result) == "–"


def test_an_order_that_an_idle_actor_never_came_to(story: Story) -> None:
    story.marks.give("reward e rank 0", Order(aim=0, fault="device", method="any", also={}))
    assert [result.passed for result in story.results()] == [True]


def test_a_fault_that_did_not_happen_is_not_passed(story: Story) -> None:
    [result] = story.results()
    assert not result.passed and result.why == "it did not happen" and cell(result) == "**failed**"


def test_a_command_that_ends_where_it_should_go_on_has_failed(story: Story) -> None:
    story.strike(3.0, "reward e rank 0")
    story.commands = [
        Command(begun=0.0, ended=5.0, code=3, said="rlhf ppo: a bug"),
        Command(begun=5.0, ended=10.0, code=0, said=""),
    ]
    [result] = story.results()
    assert result.why == "exit code 3: rlhf ppo: a bug" and result.code == 3


def test_a_command_that_hangs_has_failed(story: Story) -> None:
    story.strike(3.0, "reward e rank 0")
    story.commands = [Command(begun=0.0, ended=5.0, code=None, said=""), Command(begun=5.0, ended=9.0, code=0, said="")]
    assert story.results()[0].why.startswith("the command hung")


def test_a_stated_exit_is_counted_until_the_next_command_is_as_far(tmp_path: Path) -> None:
    story = Story(tmp_path, Aim(role=CONTROLLER, phase="update", fault="SIGKILL"))
    story.strike(3.0, CONTROLLER)
    (tmp_path / "whole.jsonl").write_text('{"aim": 0, "time": 23.5}\n{"aim": 0, "time": 30.0}\n')
    story.commands = [Command(begun=0.0, ended=3.1, code=-9, said=""), Command(begun=4.0, ended=30.0, code=0, said="")]
    [result] = story.results()
    assert result.passed and cell(result) == "killed; 20.5"


@pytest.mark.parametrize("what", ["steps", "samples", "model", "code"])
def test_a_run_that_is_not_whole_passes_nothing(what: str, story: Story) -> None:
    story.strike(3.0, "reward e rank 0")
    story.replaced(5.0, "reward e rank 0")
    if what == "steps":
        story.rows.append(story.rows[-1])
    elif what == "samples":
        story.rows[1]["rollout/set_aside"] = 1
    elif what == "model":
        (story.path / "model" / "model.safetensors").unlink()
    else:
        story.commands.append(Command(begun=10.0, ended=11.0, code=3, said=""))
    assert not story.results()[0].passed


def test_what_a_command_may_end_at() -> None:
    codes = {
        (role, phase, fault): stated_exit(Aim(role=role, phase=phase, fault=fault))
        for role, phase, fault in (
            ("policy", "update", "SIGKILL"),
            ("policy", "update", "SIGSTOP"),
            ("policy", "start", "SIGKILL"),
            (CONTROLLER, "update", "SIGKILL"),
            (CONTROLLER, "update", "SIGSTOP"),
            (CONTROLLER, "update", "SIGTERM"),
        )
    }
    assert list(codes.values()) == [0, 0, 3, -9, 0, 75]


def test_no_cell_is_left_out() -> None:
    """Seven roles, four faults, four settings, eleven phases."""
    every = list(every_cell(["s0z1", "s1z1", "s0z3", "s1z3"]))
    assert len({cell.name for cell in every}) == len(every) == 7 * 4 * 4 * 11
    assert {cell.aim.phase for cell in every} == set(PHASES)
    runs = list(runs_of(every, 30))
    assert Counter(cell.name for run in runs for cell in run) == Counter(cell.name for cell in every)
    assert all(len(run) <= 30 and len({cell.group for cell in run}) == 1 for run in runs)
    assert [cell.name for cell in every_cell(["s1z3"], ["policy/save", "x"])] == [
        f"s1z3/policy/save/{fault}" for fault in ("SIGKILL", "device", "SIGSTOP", "memory")
    ]


def test_results_are_kept_and_the_page_shows_what_was_not_run(tmp_path: Path) -> None:
    save = replace(REWARD, phase="save")
    results = {
        "s0z1/reward/update/SIGKILL": Tried(commit="abc", result=Result(aim=REWARD, code=0, seconds=2.5)),
        "s0z1/reward/save/SIGKILL": Tried(commit="abc", result=Result(aim=save, code=None, why="hung\n*")),
    }
    write_results(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == results
    text = page(results)
    assert "**2 of 1232 cells tried: 1 recovered, 0 ended as stated, 1 failed.** Commits: `abc`." in text
    [row] = [line for line in text.splitlines() if "| 2.5 |" in line]
    assert row.startswith("| reward | SIGKILL | not run |") and row.count("not run") == 9 and "**failed**" in row
    assert "- reward, SIGKILL, save: hung *" in text


def test_the_part_replaces_itself_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("# Survival\n\n## 50 faults\n")
    insert(file, "first")
    file.write_text(file.read_text() + "\n## After\n")
    insert(file, "second\n")
    assert file.read_text() == f"# Survival\n\n## 50 faults\n\n{BEGIN}\n\nsecond\n\n{END}\n\n## After\n"


def test_chaos_comes_to_every_phase_equally_often() -> None:
    drawn = draw(list(KINDS), faults=50, steps=30, seed=0)
    times = Counter(aim.phase for _, aim in drawn)
    assert set(times) == set(CHAOS_PHASES) and set(times.values()) <= {5, 6}
    steps = [aim.step for _, aim in drawn]
    assert steps == sorted(steps) and steps[0] == 1 and steps[-1] < 28
    assert all(aim.role == KINDS[name].role for name, aim in drawn)
    assert len({name for name, _ in drawn}) > 6
