"""Snapshots are taken as often as keeps their cost under a fiftieth of the time."""

from __future__ import annotations

from rlhf.recovery.snapshot_pace import SnapshotPace


def test_the_first_snapshot_is_due_at_once() -> None:
    assert SnapshotPace().is_due(0.0)


def test_one_of_two_seconds_is_followed_after_a_hundred() -> None:
    pace = SnapshotPace()
    pace.took(10.0, 12.0)
    assert not pace.is_due(111.5)
    assert pace.is_due(112.0)


def test_steps_of_ten_seconds_with_snapshots_of_one_second() -> None:
    """Simulated: one snapshot in five steps, and the total cost is 2%."""
    pace, now, taken = SnapshotPace(), 0.0, []
    for step in range(100):
        now += 10.0
        if pace.is_due(now):
            pace.took(now, now + 1.0)
            now += 1.0
            taken.append(step)
    assert taken == list(range(0, 100, 5))


def test_the_last_duration_counts() -> None:
    """After a slow snapshot, as the first is, a fast one brings the pace back."""
    pace = SnapshotPace()
    pace.took(0.0, 4.0)
    assert not pace.is_due(200.0) and pace.is_due(204.0)
    pace.took(204.0, 204.5)
    assert pace.is_due(229.5)
