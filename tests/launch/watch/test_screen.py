"""The picture has the size of the terminal, shows the essentials, and cannot move the cursor."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from launch.watch.describe import describe_event
from launch.watch.folder import FolderWatch, WatchedFolder
from launch.watch.lines import Lines
from launch.watch.screen import picture
from launch.watch.spark import sparkline
from launch.watch.view import ActorRow, Ending, RunView
from rlhf.tracking.console import one_line
from tests.launch.watch.pretend import HOSTILE, Pretend


@pytest.fixture
def view(tmp_path: Path) -> RunView:
    run = Pretend(tmp_path / "demo", steps=4)
    for step in range(3):
        run.step(step, HOSTILE)
    run.event("actor_died", member="critic rank 0", step=2, phase="update", cause=f"killed {HOSTILE}")
    run.event("alert", message="[red]KL is high[/red]")
    run.status("update", 3, dead="critic rank 0")
    found = FolderWatch(WatchedFolder.of(tmp_path / "demo")).poll()
    assert found is not None
    return found


def drawn(view: RunView, width: int, height: int) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, color_system=None)
    console.print(picture(view, width, height), height=height)
    return out.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40), (300, 90), (40, 10), (60, 12)])
def test_it_fills_the_terminal_and_no_more(view: RunView, width: int, height: int) -> None:
    lines = drawn(view, width, height)
    assert len(lines) == height
    assert {cell_len(line) for line in lines} == {width}


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40)])
def test_it_says_what_matters(view: RunView, width: int, height: int) -> None:
    text = "\n".join(drawn(view, width, height))
    for part in (
        "demo",
        "step 3 of 4",
        "75%",
        "about 0:02 left",
        " update 0:00 ",
        "score",
        "0.5 ",
        "▁▅█",
        "critic rank 0",
    ):
        assert part in text, part
    for part in ("dead", "16 samples/s", "best · score 0.5 · KL 1", "› Where is it?", "critic rank 0 died in update"):
        assert part in text, part
    assert "[red]KL is high[/red]" in text  # as it was written: it is no markup


def test_a_model_cannot_move_the_cursor(view: RunView) -> None:
    text = "".join(drawn(view, 140, 40))
    assert "[2J[31mred5Agnp.exe]0;owned [bold]markup[/bold]? end" in text
    assert [hex(ord(c)) for c in text if ord(c) < 32 or 127 <= ord(c) < 160 or c == "\u202e"] == []
    lines = "".join(Lines().new(view))
    assert [hex(ord(c)) for c in lines if ord(c) < 32 or 127 <= ord(c) < 160 or c == "\u202e"] == []


def test_many_members_are_grouped_by_role_with_failures_first(view: RunView) -> None:
    members = [ActorRow(name=f"policy rank {i}", state="serving", node=f"10.0.0.{i // 8}") for i in range(64)]
    members[17] = replace(members[17], state="stalled")
    text = "\n".join(drawn(replace(view, members=tuple(members)), 100, 30))
    assert text.index("policy rank 17") < text.index("policy ×63")
    assert "on 8 nodes" in text


def test_members_of_a_run_that_has_ended_are_grouped_too(view: RunView) -> None:
    members = tuple(ActorRow(name=f"policy rank {i}", state="gone", node="10.0.0.1") for i in range(64))
    text = "\n".join(drawn(replace(view, members=members), 100, 30))
    assert "policy ×64" in text and "gone" in text


def test_how_a_run_ended_is_shown_to_its_last_word(view: RunView) -> None:
    """The checkpoint from which it goes on stands at the end of a text of two lines; a small terminal has one."""
    text = f"process 4711 on a-node-with-a-long-name {'ended without a message ' * 5}resumes from checkpoints/step_3"
    for ending, warning in ((Ending(text=text, good=False), ""), (None, text)):
        ended = replace(view, ending=ending, warning=warning)
        lines = drawn(ended, 120, 40)
        assert len(lines) == 40 and {cell_len(line) for line in lines} == {120}
        assert "resumes from checkpoints/step_3" in " ".join(line.strip("│ ") for line in lines)
        assert len(drawn(ended, 40, 10)) == 10


def test_a_run_of_which_nothing_is_known_can_be_drawn() -> None:
    text = "\n".join(drawn(RunView(title="new", source="runs/new", stage="sft"), 80, 24))
    assert "no step done yet" in text
    assert "starting" in text


def test_sparkline() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 2, None, None, 4, 8], 3) == "▁ █"  # means 1, none, 6
    assert sparkline([3.0, 3.0], 8) == "▁▁"
    assert sparkline([None], 8) == ""
    assert sparkline([], 8) == ""


def test_events_and_texts_are_lines() -> None:
    assert describe_event({"kind": "actor_replaced", "member": "critic rank 0", "seconds": 12.986}) == (
        "critic rank 0 replaced: after 13.0 s"
    )
    lost = {"member": "critic rank 0", "phase": "update", "step": 4}
    assert describe_event({"kind": "actor_replaced", **lost, "seconds": 3.0}) == (
        "critic rank 0 replaced: after 3.0 s, lost in update of step 4"
    )
    assert describe_event({"kind": "actor_died", **lost, "cause": "killed", "advice": "find out\nby whom"}) == (
        "critic rank 0 died in update of step 4: killed; what to do: find out by whom"
    )
    restored = {"step": 3, "source": "the snapshot", "steps_repeated": 2, "seconds": 1.5}
    assert describe_event({"kind": "restored", **restored}) == (
        "restored at step 3: source the snapshot, steps repeated 2, seconds 1.5"
    )
    assert describe_event({"kind": "metric_not_finite", "step": 3, "metrics": {"lr": "nan"}}) == (
        "metric not finite at step 3: metrics {'lr': 'nan'}"
    )
    assert describe_event({}) == "event"
    assert one_line("a\n\tb\u2028c \x1b d") == "a b c d"


def test_lines_tell_each_step_and_event_once(tmp_path: Path) -> None:
    run, lines = Pretend(tmp_path / "demo", steps=40), Lines()
    watch = FolderWatch(WatchedFolder.of(tmp_path / "demo"))

    def new() -> list[str]:
        view = watch.poll()
        assert view is not None
        return list(lines.new(view))

    for step in range(12):
        run.step(step)
    assert [line.split("  ")[1] for line in new()[1:]] == [f"{step}/40" for step in range(3, 13)]  # the last ten
    run.step(12)
    run.event("checkpoint", step=13, path="step_13")
    step, event = new()
    assert step == "ppo  13/40  score 3  KL 6  length 20  2 s  about 0:54 left"
    assert event.endswith("  ppo  checkpoint at step 13: step_13")
    assert new() == []
    run.run.metrics.write_text("")
    run.step(5)
    assert new() == ["ppo  resumed after step 5"]
    run.step(6)
    assert [line.split("  ")[1] for line in new()] == ["7/40"]
