"""The workspace shows only names that are logged."""

from __future__ import annotations

from rlhf.metrics import unknown_metrics
from rlhf.tracking.workspace import sections
from tests.rlhf.tracking.test_histogram import experience, experience_histograms


def test_every_name_in_the_workspace_is_logged() -> None:
    assert unknown_metrics([panel.lines for section in sections() for panel in section.curves]) == set()
    shown = {name for section in sections() for name in section.histograms}
    assert shown == set(experience_histograms(experience([True, True, True])))
    assert {name for section in sections() for name in section.tables} == {"samples"}


def test_every_question_has_an_answer_and_no_curve_is_drawn_twice() -> None:
    assert all(section.curves for section in sections())
    titles = [panel.title for section in sections() for panel in section.curves]
    assert len(set(titles)) == len(titles)
