"""Layout of a W&B workspace: the panels of ``rlhf.metrics`` by question, with histograms and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.metrics import LEARNING, PANELS, QUESTIONS, STABLE, Panel

HISTOGRAMS: Mapping[str, tuple[str, ...]] = {
    LEARNING: ("histogram/scores", "histogram/advantages"),
    STABLE: ("histogram/log_ratio_to_reference", "histogram/log_ratio_to_engine", "histogram/response_length"),
}
TABLES: Mapping[str, tuple[str, ...]] = {LEARNING: ("samples",)}


@dataclass(frozen=True, kw_only=True)
class Section:
    """One question, with the curves, histograms and tables that answer it, by the names under which they are logged."""

    question: str
    curves: tuple[Panel, ...]
    histograms: tuple[str, ...]
    tables: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """All logged names that it shows."""
        return [*(name for panel in self.curves for name in panel.lines), *self.histograms, *self.tables]


def sections() -> list[Section]:
    """Sections of the workspace, in display order."""
    return [
        Section(
            question=question,
            curves=tuple(panel for panel in PANELS if panel.question == question),
            histograms=HISTOGRAMS.get(question, ()),
            tables=TABLES.get(question, ()),
        )
        for question in QUESTIONS
    ]


def definition() -> dict[str, Any]:
    """The workspace as JSON, to create it by other means."""
    return {"name": "rlhf", "sections": [_section(section) for section in sections()]}


def _section(section: Section) -> dict[str, Any]:
    return {"name": section.question, "panels": list(_panels(section))}


def _panels(section: Section) -> Iterator[dict[str, Any]]:
    for panel in section.curves:
        yield {
            "type": "line",
            "title": panel.title,
            "unit": panel.unit,
            "metrics": list(panel.lines),
            "logarithmic": panel.logarithmic,
        }
    for name in section.histograms:
        yield {"type": "histogram", "title": name, "metrics": [name]}
    for name in section.tables:
        yield {"type": "table", "title": name, "table": name}
