"""Saves the project's workspace in W&B: ``python -m launch.wandb_workspace --entity ME --project rlhf``.

``wandb-workspaces`` is no requirement, because no run needs it: ``pip install wandb-workspaces`` once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rlhf.errors import RLHFError, UserError
from rlhf.metrics import LEARNING, PANELS, QUESTIONS, STABLE

HISTOGRAMS: Mapping[str, tuple[str, ...]] = {
    LEARNING: ("histogram/scores", "histogram/advantages"),
    STABLE: ("histogram/log_ratio_to_reference", "histogram/log_ratio_to_engine", "histogram/response_length"),
}
TABLES: Mapping[str, tuple[str, ...]] = {LEARNING: ("samples",)}
COLUMNS, ROWS = 3, 3
"""Size of a section's grid of visible panels."""


def definition() -> dict[str, Any]:
    """The workspace as JSON: a section for each question, with its curves, histograms and tables by logged name."""
    return {"name": "rlhf", "sections": [{"name": name, "panels": list(_panels(name))} for name in QUESTIONS]}


def _panels(question: str) -> Iterator[dict[str, Any]]:
    for panel in PANELS:
        if panel.question == question:
            yield {
                "type": "line",
                "title": panel.title,
                "unit": panel.unit,
                "metrics": list(panel.lines),
                "logarithmic": panel.logarithmic,
            }
    for name in HISTOGRAMS.get(question, ()):
        yield {"type": "histogram", "title": name, "metrics": [name]}
    for name in TABLES.get(question, ()):
        yield {"type": "table", "title": name, "table": name}


def build(entity: str, project: str, workspaces: Any, reports: Any) -> Any:
    """Build the workspace as an object of W&B's library, without saving it.

    Args:
        workspaces: the module ``wandb_workspaces.workspaces``.
        reports: the module ``wandb_workspaces.reports.v2``.
    """
    layout = workspaces.SectionLayoutSettings(columns=COLUMNS, rows=ROWS)
    whole = definition()
    sections = [
        workspaces.Section(
            name=section["name"],
            panels=[_build_panel(panel, reports) for panel in section["panels"]],
            is_open=True,
            layout_settings=layout,
        )
        for section in whole["sections"]
    ]
    return workspaces.Workspace(entity=entity, project=project, name=whole["name"], sections=sections)


def _build_panel(panel: Mapping[str, Any], reports: Any) -> Any:
    if panel["type"] == "table":
        return reports.WeavePanelSummaryTable(table_name=panel["table"])
    curve = {"title_y": panel["unit"], "log_y": panel["logarithmic"]} if panel["type"] == "line" else {}
    return reports.LinePlot(title=panel["title"], y=panel["metrics"], **curve)


def save(entity: str, project: str) -> str:
    """Save the workspace under its name; returns its URL.

    Raises:
        UserError: W&B's library is not installed, or the server refused.
    """
    try:
        workspaces, reports = (import_module(f"wandb_workspaces.{name}") for name in ("workspaces", "reports.v2"))
    except ImportError as error:
        raise UserError(
            "W&B's library of workspaces is not installed",
            str(error),
            "pip install wandb-workspaces; or --json FILE writes its definition",
        ) from error
    try:
        return str(build(entity, project, workspaces, reports).save().url)
    except Exception as error:  # many types: no key, no network, no such project
        raise UserError(
            f"cannot save the workspace in {entity}/{project}",
            f"{type(error).__name__}: {error}",
            "run `wandb login`, and log one run to the project first",
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Save the workspace, or write its definition; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m launch.wandb_workspace", description=__doc__.partition("\n")[0])
    parser.add_argument("--entity", help="W&B user or team")
    parser.add_argument("--project", default="rlhf", help="W&B project (default: rlhf)")
    parser.add_argument("--json", type=Path, help="write the definition to this file, and save nothing")
    options = parser.parse_args(arguments)
    if options.json is not None:
        options.json.write_text(json.dumps(definition(), indent=1) + "\n", encoding="utf-8")
        return 0
    if options.entity is None:
        parser.error("--entity is needed: your user or team in W&B")
    try:
        print(save(options.entity, options.project))
    except RLHFError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
