"""Markdown tables of the results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.contestants import SAME_FLOOR
from benchmarks.floor import PARTS
from benchmarks.results import FLOOR, OURS, TRL, Results, default_over_best, figures, ratio

HEAD = (
    "workload",
    "program",
    *PARTS,
    "step",
    "shortest, longest",
    "of the floor",
    "samples/s",
    "tokens each",
    "peak GiB",
)
ANCHOR = "fixed-ppo"


def step_table(results: Results) -> str:
    """Medians of the steps' parts in seconds, with the ratio to the workload's floor, rate and peak memory."""
    return to_markdown(HEAD, [row for work in results.entries for row in _rows(results, work)])


def _rows(results: Results, work: str) -> list[list[str]]:
    floor = SAME_FLOOR.get(work, work), FLOOR
    return [
        [
            work,
            name,
            *(f"{entry.median(part):.2f}" for part in (*PARTS, "step")),
            "{:.2f}, {:.2f}".format(*entry.spread),
            _number(ratio(results.entries, (work, name), floor)),
            f"{entry.samples_per_second:.1f}",
            f"{entry.median('tokens') / entry.median('samples'):.0f}",
            f"{entry.peak_gib:.1f}",
        ]
        for name, entry in results.entries[work].items()
    ]


def ratio_table(results: Results) -> str:
    """The ratios by which the project is judged."""
    entries, found = results.entries, figures(results.entries)
    rows = [
        [f"step over its floor, {work}", _number(ratio(entries, (work, OURS), (SAME_FLOOR.get(work, work), FLOOR)))]
        for work in found
    ]
    rows += [
        [f"samples/s over TRL's, {work}", _number(ratio(entries, (work, TRL), (work, OURS)))]
        for work in found
        if TRL in entries[work]
    ]
    rows += [
        ["default `micro_batch_tokens` over the best", _number(default_over_best(entries))],
        ["float32 step over bfloat16 step", _number(ratio(entries, (ANCHOR, OURS), ("bf16-ppo", OURS)))],
        ["publish over step, largest", _number(_largest(found, "weights_sync_over_step"), digits=3)],
        ["controller's process, µs of CPU a sample, largest", _number(_largest(found, "controller_us_per_sample"), 0)],
        *([] if results.controller is None else [_controller(results.controller)]),
    ]
    return to_markdown(("figure", "value"), [row for row in rows if row[1] != "–"])


def _controller(line: dict[str, Any]) -> list[str]:
    """A row for the simulated controller."""
    figure = f"controller, µs of CPU a sample, simulated with {line['samples']:,} samples and {line['ranks']} ranks"
    return [figure, _number(line["controller_us_per_sample"], digits=0)]


def _largest(found: dict[str, dict[str, Any]], figure: str) -> float | None:
    return max((each[figure] for each in found.values() if each[figure] is not None), default=None)


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def to_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, with a line break at its end."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
