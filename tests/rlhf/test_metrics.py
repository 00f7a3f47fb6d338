"""The table of metrics: it has exactly the names that the code records, and its page shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlhf.metrics import INTERVAL, METRICS, PAGE, PANEL, PANELS, QUESTIONS, labelled, render, unknown_metrics
from rlhf.tracking.memory import ActorMemory, by_role

ROOT = Path(__file__).parents[2]
SHOWING = (
    "metrics",
    "tracking/plots",
    "tracking/outcome",
    "tracking/alerts",
    "evaluation/progress",
)
"""Files of ``rlhf`` that only refer to names recorded elsewhere."""
SHOWING_FILES = {ROOT / f"rlhf/{name}.py" for name in SHOWING}
SOURCE = "".join(
    file.read_text(encoding="utf-8")
    for floor in ("rlhf", "actors")
    for file in sorted(ROOT.glob(f"{floor}/**/*.py"))
    if file not in SHOWING_FILES
)
GROUPS = r"(?:objective|policy|critic|val|loss|rollout|weights|train|eval|rewards|logps|perf|health|holdout)"


def is_recorded(name: str) -> bool:
    """Whether the code that records metrics mentions the name, as a whole or by its two parts."""
    group, _, rest = name.partition("/")
    if group == "time":
        constant = re.search(rf'^(?:\w+, )*[A-Z]+(?:, \w+)* = .*"{rest}"', SOURCE, flags=re.MULTILINE)
        return bool(re.search(rf'(timer|phase)\("{rest}"', SOURCE) or constant)
    if group == "memory":
        return name.replace("<role>", "policy") in by_role({"policy rank 0": ActorMemory(host=1.0, peak=1.0)})
    if f'"{name}"' in SOURCE or f'f"{name.replace("<part>", "{name}")}"' in SOURCE:
        return True
    return f'f"{group}/{{name}}"' in SOURCE and f'"{rest}"' in SOURCE


def test_every_metric_of_the_table_is_recorded() -> None:
    assert len(METRICS) > 70
    assert [name for name in METRICS if not is_recorded(name)] == []
    assert not any(map(is_recorded, ("objective/kll", "time/lunch", "holdout/lunch", "lunches")))


def test_every_metric_that_the_code_records_is_in_the_table() -> None:
    """Names in quotes that look like metrics; ``weights/fingerprint`` is a check, and no number."""
    quoted = set(re.findall(rf'"({GROUPS}/\w+)"', SOURCE)) - {"weights/fingerprint"}
    assert len(quoted) > 40
    assert unknown_metrics([dict.fromkeys(quoted)]) == set()


def test_names_are_known_alone_as_intervals_and_as_members_of_families() -> None:
    memory = by_role({"reward model rank 0": ActorMemory(host=1.0, peak=1.0)})
    known = {"step": 3, "lr": 1, "objective/scores/quality": 1, **memory}
    known |= {f"eval/accuracy{end}": 0.5 for end in ("", *INTERVAL)}
    assert unknown_metrics([known, {"time/step": 1.0}]) == set()
    wrong = {"objective/kll", "objective/kl_ci_low", "objective/scores/a/b", "memory/policy", "time/lunch", "lr/x"}
    assert unknown_metrics([known | dict.fromkeys(wrong)]) == wrong


def test_panels_show_metrics_of_the_table() -> None:
    assert unknown_metrics([panel.lines for panel in PANELS]) == set()
    assert {panel.question for panel in PANELS} == set(QUESTIONS)
    assert len(PANEL) == len(PANELS)
    assert (PANEL["Loss"].better, PANEL["Score"].better, PANEL["KL to the reference"].better) == (
        "lower",
        "higher",
        None,
    )


def test_labels_are_unique() -> None:
    labels = [metric.label for metric in METRICS.values() if metric.label]
    assert len(set(labels)) == len(labels)
    assert labelled("train/loss", "objective/kl") == {"loss": "train/loss", "KL": "objective/kl"}


def test_the_committed_page_is_the_generated_one() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run python -m rlhf.metrics"


@pytest.mark.parametrize("row", [row for row in render().splitlines() if row.startswith("|")])
def test_every_row_has_four_cells(row: str) -> None:
    assert row.replace("\\|", "").count("|") == 5
