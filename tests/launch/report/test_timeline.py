from __future__ import annotations

import re
from pathlib import Path

import pytest

from launch.report.panels import utilisation_chart
from launch.report.strip import draw_strip
from launch.report.timeline import Bar, Timeline, merge_intervals, read_timeline
from rlhf.tracking.spans import Span
from rlhf.tracking.trace import TraceFile
from tests.launch.report.folder import HOSTILE, timeline_of


@pytest.fixture
def timeline(tmp_path: Path) -> Timeline:
    timeline_of(tmp_path, steps=3)
    found = read_timeline(tmp_path / "trace.json")
    assert found is not None
    return found


def test_each_actor_is_busy_for_its_share_of_every_step(timeline: Timeline) -> None:
    assert timeline.steps == {0: (1e9, 1e9 + 10), 1: (1e9 + 10, 1e9 + 20), 2: (1e9 + 20, 1e9 + 30)}
    assert timeline.busy("rollout engine 0") == pytest.approx(dict.fromkeys(range(3), 0.4))
    assert timeline.busy("policy rank 0") == pytest.approx(dict.fromkeys(range(3), 0.5))
    assert {bar.name for bar in timeline.phases} == {"rollout", "update"}  # neither steps nor waits


def test_a_bubble_has_a_length_a_step_and_a_phase(timeline: Timeline) -> None:
    assert timeline.bubbles("policy rank 0") == [(5.0, step, "rollout") for step in range(3)]
    assert timeline.bubbles("rollout engine 0") == [(6.0, step, "update") for step in range(3)]


def test_overlaps_count_once_and_what_sticks_out_of_a_step_is_cut() -> None:
    bars = [Bar(name="a", begin=-5, end=2), Bar(name="b", begin=1, end=3), Bar(name="c", begin=8, end=99)]
    timeline = Timeline(steps={4: (0.0, 10.0), 5: (200.0, 210.0)}, phases=[], actors={"x": bars, "idle": []})
    assert timeline.busy("x") == {4: 0.5, 5: 0.0}
    assert timeline.bubbles("x") == [(5.0, 4, "between phases"), (10.0, 5, "between phases")]
    assert timeline.busy("idle") == {4: 0.0, 5: 0.0}
    assert merge_intervals([(3, 4), (0, 2), (1, 2.5)]) == [(0, 2.5), (3, 4)]


def test_rows_of_one_actor_and_steps_that_were_done_again_are_one(tmp_path: Path) -> None:
    trace = TraceFile(tmp_path / "trace.json")
    for begin in (0.0, 100.0):  # the run was killed in between, and step 3 done again
        trace.add("controller", "controller", [Span(name="step", begin=begin, end=begin + 10, step=3)])
    trace.add("n", "engine 0", [Span(name="a", begin=100, end=104), Span(name="b", begin=102, end=106)])
    (tmp_path / "trace-1.json").write_text("[]")
    found = read_timeline(trace.path)
    assert found is not None
    assert (found.steps, found.older) == ({3: (100.0, 110.0)}, 1)
    assert found.busy("engine 0") == {3: pytest.approx(0.6)}


@pytest.mark.parametrize(
    "event",
    [
        '{"ph": "X", "name": "step", "ts": 1e400, "dur": 1, "args": {"step": 1}}',
        '{"ph": "X", "name": "step", "ts": 1, "dur": NaN, "args": {"step": 1}}',
        '{"ph": "X", "name": "step", "ts": 1, "dur": -4, "args": {"step": 1}}',
        '{"ph": "X", "name": "step", "ts": 1, "dur": 0, "args": {"step": 1}}',
        '{"ph": "X", "name": "step", "ts": 1, "dur": 5, "args": [1]}',
        '{"ph": "X", "name": "step", "ts": 1' + "0" * 400 + ', "dur": 5, "args": {"step": 1}}',
        '{"name": "thread_name", "tid": [1], "args": null}',
        "[[[",
        "\0\0",
    ],
)
def test_what_is_no_step_is_left_out(tmp_path: Path, event: str) -> None:
    (tmp_path / "trace.json").write_text(f"[\n{event}")
    assert read_timeline(tmp_path / "trace.json") is None


def test_the_strip_has_a_row_for_each_and_hostile_names_stay_text(timeline: Timeline) -> None:
    drawn = draw_strip(timeline)
    assert drawn.count('<text class="y"') == 4  # phases, engine, policy, and the hostile one
    # from 150 to 960 over 30 s: step 1's update, from 15 s to 20 s, begins at 555 and is 135 wide
    for y in (22, 62):  # in the rows of the phases and of the policy
        assert f'<rect class="dot-0" x="555.0" y="{y}" width="135.0"' in drawn
    assert "<script>" not in drawn and HOSTILE not in drawn


def test_many_short_calls_are_few_bars() -> None:
    bars = [Bar(name="scores", begin=k / 1000, end=(k + 0.9) / 1000) for k in range(100_000)]
    timeline = Timeline(steps={0: (0.0, 100.0)}, phases=[], actors={"reward rank 0": bars})
    assert draw_strip(timeline).count('<rect class="dot-') <= 2


def test_a_step_is_named_as_far_as_there_is_room() -> None:
    """810 units over 100 s, and 6.6 a letter at most: 3 s have room for a number, 1 s for none."""
    drawn = draw_strip(Timeline(steps={8: (0.0, 1.0), 9: (1.0, 4.0), 10: (4.0, 100.0)}, phases=[], actors={}))
    assert re.findall(r">([^<]*)</text>", drawn)[:3] == ["", "9", "step 10, 96 s"]


def test_curves_are_by_role(timeline: Timeline) -> None:
    points = {line.name: line.points for line in utilisation_chart(timeline).lines}
    assert points["policy"] == ((0.0, 0.5), (1.0, 0.5), (2.0, 0.5))


def test_a_bar_of_no_time_is_left_out() -> None:
    bars = [Bar(name="rollout", begin=1.0, end=1.00001), Bar(name="update", begin=2.0, end=3.0)]
    drawn = draw_strip(Timeline(steps={0: (0.0, 4.0)}, phases=bars, actors={}))
    assert "rollout, 0 s" not in drawn and "update, 1 s" in drawn
