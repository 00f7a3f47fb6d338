"""``python -m benchmarks.page`` writes the generated tables of docs/performance.md from the newest results.

Each table is between ``<!-- numbers:NAME -->`` and ``<!-- /numbers -->``; the text around them is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import fit, scale
from benchmarks.gpu_figures import gpu_table
from benchmarks.results import Results, load, newest
from benchmarks.table import ratio_table, step_table, to_markdown
from rlhf.storage.jsonl import read_lines

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BLOCK = re.compile(r"(<!-- numbers:([\w-]+) -->\n).*?(<!-- /numbers -->)", re.DOTALL)
UNMEASURED = "Unmeasured.\n"
CONTROLLER_GOAL = 50.0
"""Microseconds a sample that the controller may take, assumed where it was not measured."""
PREDICTED = (
    "model, GPUs, batch",
    "rollout",
    "longest response",
    "score",
    "update",
    "ZeRO-3 gathers",
    "rows filled",
    "publish",
    "step",
    "samples per GPU and hour",
)


def render(page: str, tables: Mapping[str, str]) -> str:
    """The page with these tables in its blocks."""
    return BLOCK.sub(lambda block: f"{block[1]}{tables[block[2]]}{block[3]}", page)


def make_tables(results: Results | None, gpu: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """All tables by name, from the newest results of a CPU and a GPU, if there are any."""
    return {
        "steps": UNMEASURED if results is None else f"{_where(results)}\n{step_table(results)}",
        "ratios": UNMEASURED if results is None else ratio_table(results),
        "held-out": UNMEASURED if results is None else held_out_table(results),
        "gpu": gpu_table(gpu) if gpu else UNMEASURED,
        "scale": prediction_table(scale.asked()),
        "weak": prediction_table(scale.weak()),
        "strong": prediction_table(scale.strong()),
        "controller": controller_table(scale.weak(), _controller(results)),
    }


def _where(results: Results) -> str:
    machine, options = results.machine, results.options
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, no GPU. "
        f"Date: {results.date}. Rounds: {options['rounds']}; timed steps of each: {options['steps']}. "
        f"Python {machine['python']}, {versions}.\n"
    )


def held_out_table(results: Results) -> str:
    """Measured and predicted steps, of the workloads that were fitted and of those that were not."""
    constants = fit.fit_results(results)
    if constants is None:
        return UNMEASURED
    rows = []
    for names, kind in ((fit.FITTED, "fitted"), (fit.HELD_OUT, "held out")):
        for name in fit.timed(results, names):
            measured = fit.measured_phases(results, name)
            predicted = constants.predict(fit.counts_of(results, name))
            cells = [f"{measured[p]:.2f} / {predicted[p]:.2f}" for p in (*fit.PHASES, "step")]
            rows.append([name, kind, *cells, f"{predicted['step'] / measured['step'] - 1:+.0%}"])
    return to_markdown(("workload", "", *fit.PHASES, "step", "error"), rows)


def prediction_table(predictions: Sequence[scale.Prediction]) -> str:
    """Seconds by phase, with what limits them."""
    rows = [
        [
            p.title,
            f"{p.phase('rollout'):.0f}",
            f"{p.longest_response:.0f}",
            f"{p.phase('score'):.0f}",
            f"{p.phase('update'):.0f}",
            f"{p.gathers:.0f}",
            f"{p.filled:.0%}",
            f"{p.phase('publish'):.0f}",
            f"{p.plan.step_seconds:.0f}",
            f"{p.samples_per_gpu_hour:.0f}",
        ]
        for p in predictions
    ]
    return to_markdown(PREDICTED, rows)


def controller_table(predictions: Sequence[scale.Prediction], us_per_sample: float) -> str:
    """The controller's part of a step."""
    rows = [
        [p.title, f"{1e-6 * us_per_sample * p.batch.samples:.2f}", f"{p.controller_share(us_per_sample):.2%}"]
        for p in predictions
    ]
    return f"Assuming {us_per_sample:.0f} µs a sample:\n\n" + to_markdown(
        ("model, GPUs, batch", "seconds", "of the step"), rows
    )


def _controller(results: Results | None) -> float:
    """Microseconds a sample, as simulated with many."""
    line = results.controller if results else None
    return CONTROLLER_GOAL if line is None else float(line["controller_us_per_sample"])


def current_tables() -> dict[str, str]:
    """The tables of the newest results."""
    path, gpu = newest(), newest(pattern="gpu-*.jsonl")
    return make_tables(load(path) if path else None, read_lines(gpu) if gpu else [])


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), current_tables()), encoding="utf-8")
