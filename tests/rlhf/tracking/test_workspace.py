"""Tests that every panel shows logged names: each name is searched in the code that logs it."""

from __future__ import annotations

import re
from pathlib import Path

from rlhf.tracking.memory import ActorMemory, by_role
from rlhf.tracking.workspace import sections
from tests.rlhf.tracking.test_histogram import experience, experience_histograms

ROOT = Path(__file__).parents[3]
SHOWING = ("launch/report", "rlhf/tracking/workspace.py", "rlhf/tracking/plots.py", "rlhf/tracking/outcome.py")
"""Files that only refer to names logged elsewhere."""
FILES = [file for floor in ("rlhf", "actors") for file in sorted(ROOT.glob(f"{floor}/**/*.py"))]
SOURCE = "".join(
    file.read_text(encoding="utf-8") for file in FILES if not str(file.relative_to(ROOT)).startswith(SHOWING)
)
PARTS = ("rollout engine 0", "policy rank 0", "critic rank 0", "reference rank 0", "reward model rank 0")


def is_logged(name: str) -> bool:
    group, _, rest = name.partition("/")
    if group == "time":
        named = re.search(rf'(timer|phase)\("{rest}"', SOURCE)
        return bool(named) or bool(re.search(rf'\b[A-Z]+\b.* = .*"{rest}"', SOURCE))
    if group == "memory":
        return name in by_role({part: ActorMemory(host=1.0, peak=1.0) for part in PARTS})
    if group == "histogram":
        return name in experience_histograms(experience([True, True, True]))
    if group == "holdout":  # made of its group and what was judged
        return 'f"holdout/{name}"' in SOURCE and f'"{rest}"' in SOURCE
    return f'"{name}"' in SOURCE


def test_every_name_in_a_panel_is_logged() -> None:
    names = [name for section in sections() for name in section.names]
    assert len(names) > 30
    assert [name for name in names if not is_logged(name)] == []


def test_a_name_that_nobody_logs_is_found() -> None:
    wrong = ("objective/kll", "time/lunch", "memory/cook_host_gib", "histogram/kl", "holdout/lunch", "lunches")
    assert not any(map(is_logged, wrong))


def test_every_question_has_an_answer_and_no_curve_is_drawn_twice() -> None:
    assert all(section.curves for section in sections())
    titles = [panel.title for section in sections() for panel in section.curves]
    assert len(set(titles)) == len(titles)
