"""The figures of ``benchmarks.gpu``, from its lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.table import to_markdown

Lines = Iterable[Mapping[str, Any]]
MISSING = "–"


def gpu_figures(lines: Lines, size: str) -> dict[str, float | None]:
    """The figures of a size; None where a part is missing.

    ``step_over_floor`` divides by the sum of bare vLLM's generation and bare PyTorch's scoring and updates;
    ``publish_over_copy`` by the seconds of one copy of the weights at the measured bandwidth.
    """
    parts = {line["part"]: line for line in lines if line["size"] == size and "error" not in line}
    copy, bare, train, run = (parts.get(part, {}) for part in ("copy", "generate", "train", "run"))
    floor = _sum(bare.get("generate"), train.get("score"), train.get("update"))
    copied = _over(copy.get("weight_bytes"), copy.get("copy_bytes_per_second"))
    rate, publish = run.get("perf/rollout_tokens_per_second"), run.get("weights/sync_seconds")
    return {
        "rollout tokens/s": rate,
        "bare vLLM tokens/s": bare.get("tokens_per_second"),
        "rollout over bare vLLM": _over(rate, bare.get("tokens_per_second")),
        "update MFU": run.get("perf/mfu"),
        "update TFLOP/s": run.get("perf/model_tflops"),
        "publish s": publish,
        "copy of the weights s": copied,
        "publish over copy": _over(publish, copied),
        "step s": run.get("step"),
        "floor s": floor,
        "step over floor": _over(run.get("step"), floor),
    }


def gpu_table(lines: Lines) -> str:
    """All sizes side by side, under the name of the GPU."""
    found = list(lines)
    sizes = list(dict.fromkeys(line["size"] for line in found))
    columns = {size: gpu_figures(found, size) for size in sizes}
    rows = [[name, *(_number(columns[size][name]) for size in sizes)] for name in next(iter(columns.values()))]
    made = next((line for line in found if line["part"] == "make" and "error" not in line), {})
    where = f"{made.get('gpu') or 'no GPU'}, torch {made.get('torch')}, {made.get('date')}\n\n"
    return where + to_markdown(("figure", *sizes), rows)


def _sum(*values: float | None) -> float | None:
    return None if any(value is None for value in values) else sum(value for value in values if value is not None)


def _over(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
