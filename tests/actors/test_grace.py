"""The comparison of checkpoints with the grace period, by what the stage's folder says of earlier ones."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.grace import GraceCheck
from rlhf.config.schema import CheckpointConfig
from rlhf.tracking.alerts import Alert
from rlhf.tracking.run_folder import RunFolder


class Seen:
    """What the check told: texts on the screen, and alerts."""

    def __init__(self, folder: Path) -> None:
        self.texts, self.alerts = list[str](), list[Alert]()
        self.run = RunFolder(folder, "ppo")
        self.run.path.mkdir(parents=True)
        session: Any = SimpleNamespace(
            recipe=SimpleNamespace(checkpoint=CheckpointConfig(grace_seconds=100.0)),
            stop=None,
            console=SimpleNamespace(print=self.texts.append),
        )
        tracker: Any = SimpleNamespace(alert=lambda step, alert: self.alerts.append(alert))
        self.check = GraceCheck(session, self.run, tracker)


@pytest.fixture
def seen(tmp_path: Path) -> Seen:
    return Seen(tmp_path)


def test_the_last_measured_checkpoint_of_an_earlier_command_is_compared(seen: Seen) -> None:
    events = [{"kind": "checkpoint", "seconds": seconds} for seconds in (10, 51)]
    seen.run.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    seen.check.begin(3, size=1)
    assert len(seen.texts) == len(seen.alerts) == 1
    assert "one takes 51 s (the last one of an earlier command)" in seen.texts[0]


def test_without_one_the_size_of_the_snapshot_is(seen: Seen) -> None:
    """26 GB at 500 MB/s are 52 s; 25 GB are 50 s, and twice that fits into 100 s."""
    seen.check.begin(0, size=25 * 10**9)
    assert not seen.texts
    seen.check.begin(0, size=26 * 10**9)
    assert "one takes 52 s (estimated from its 24 GiB)" in seen.texts[0]


def test_damaged_events_do_not_refuse_a_resume(seen: Seen) -> None:
    seen.run.events.write_text('{"kind": "checkpoint", "seconds": 51}\n{"kind": "check\n{}\n')
    seen.check.begin(3, size=26 * 10**9)
    assert "estimated from its 24 GiB" in seen.texts[0]
