"""Tests of an actor's heartbeat, with a clock that is set by hand."""

from __future__ import annotations

from actors.process import Activity, Heartbeat
from rlhf.progress import Progress


def test_a_heartbeat_tells_the_progress_of_the_current_activity_alone() -> None:
    now = [100.0]
    progress = Progress(lambda: now[0])
    progress.part_done()
    activity = Activity(progress)
    assert (activity.heartbeat().parts, activity.heartbeat().idle_seconds) == (0, None)
    with activity("update"):
        assert (activity.heartbeat().activity, activity.heartbeat().parts) == ("update", 0)
        progress.part_done()
        progress.part_done()
        now[0] += 4
        beat = activity.heartbeat()
        assert (beat.parts, beat.idle_seconds) == (2, 4.0)
    assert (activity.heartbeat().activity, activity.heartbeat().parts) == ("", 0)
    told = str(Heartbeat(activity="update", seconds=300.2, parts=12, idle_seconds=4.4))
    assert told == "update for 300 s, 12 parts done, the last 4 s ago"
    assert str(Heartbeat(activity="", seconds=3.0)) == "nothing for 3 s"
