"""The device script: its recipes fit one H100, a part that fails stops no other, and figures follow from its lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.gpu import TINY, Parts, gpu_recipe, measure, parse, workload
from benchmarks.gpu_figures import gpu_figures, gpu_table
from launch.plan.cluster import parse_cluster
from launch.plan.members import Shapes
from launch.plan.plan import plan_stage
from launch.plan.public import find_shape
from rlhf.config.load import load_recipe
from rlhf.config.schema import Recipe
from rlhf.placement.machine import Machine
from rlhf.validate import validate


def load(path: Path, made: dict[str, Any]) -> Recipe:
    file = path / "recipe.yaml"
    file.write_text(yaml.safe_dump(made), encoding="utf-8")
    return load_recipe(file)


@pytest.mark.parametrize("size", ["0.5B", "1.5B"])
def test_a_recipe_fits_one_h100(size: str, tmp_path: Path) -> None:
    recipe = load(tmp_path, gpu_recipe(workload(size), tmp_path, "cuda"))
    shapes = Shapes(recipe, lambda path: find_shape(f"Qwen/Qwen2.5-{size}"))
    plan = plan_stage(recipe, "ppo", parse_cluster("gpus=1,gpu=h100-80"), shapes)
    assert plan.placed.strategy == "colocated"
    assert plan.placed.problems == ()


def test_the_recipe_without_a_gpu_is_valid(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("", encoding="utf-8")
    for role in ("policy", "reward"):
        (tmp_path / TINY.models / role).mkdir(parents=True)
    recipe = load(tmp_path, gpu_recipe(TINY, tmp_path, "cpu"))
    validate(recipe, "ppo", Machine(gpus=0, cpus=2))
    assert recipe.model.dtype == "bfloat16"


def test_options() -> None:
    assert parse([]).device == "cuda"
    assert list(parse([]).sizes) == ["1.5B", "0.5B"]
    assert parse(["--sizes", "0.5B"]).sizes == ["0.5B"]


def test_a_failing_part_is_reported_and_the_others_follow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def part(self: Parts, name: str) -> dict[str, Any]:
        if name == "generate":
            raise SystemExit("out of memory")
        return {"done": name}

    monkeypatch.setattr(Parts, "_part", part)
    monkeypatch.setattr(Parts, "run", lambda self: {"step": 1.0})
    lines: list[dict[str, Any]] = []
    measure(Parts(work=TINY, folder=tmp_path, device="cpu"), lines.append)
    assert [line["part"] for line in lines] == ["make", "copy", "generate", "train", "run"]
    assert lines[2]["error"] == "out of memory"
    assert lines[4]["step"] == 1.0


LINES: list[dict[str, Any]] = [
    {"size": "1.5B", "part": "make", "gpu": "NVIDIA H100 80GB HBM3", "torch": "2.13.0", "date": "2026-01-02"},
    {"size": "1.5B", "part": "copy", "copy_bytes_per_second": 1e12, "weight_bytes": 3e9},
    {"size": "1.5B", "part": "generate", "generate": 6.0, "tokens_per_second": 20000.0},
    {"size": "1.5B", "part": "train", "score": 1.0, "update": 3.0},
    {
        "size": "1.5B",
        "part": "run",
        "step": 11.0,
        "perf/rollout_tokens_per_second": 19000.0,
        "perf/mfu": 0.41,
        "perf/model_tflops": 405.0,
        "weights/sync_seconds": 0.3,
    },
    {"size": "0.5B", "part": "make", "gpu": "NVIDIA H100 80GB HBM3", "torch": "2.13.0", "date": "2026-01-02"},
    {"size": "0.5B", "part": "train", "error": "out of memory"},
]


def test_figures_by_hand() -> None:
    """19,000 of 20,000 tokens/s; 0.3 s beside the 3 ms of a copy of 3 GB at 1 TB/s; 11 s beside 6 + 1 + 3."""
    found = gpu_figures(LINES, "1.5B")
    assert found["rollout over bare vLLM"] == pytest.approx(0.95)
    assert found["publish over copy"] == pytest.approx(100.0)
    assert found["step over floor"] == pytest.approx(1.1)
    assert set(gpu_figures(LINES, "0.5B").values()) == {None}


def test_table_names_the_gpu_and_leaves_missing_cells_open() -> None:
    table = gpu_table(LINES)
    assert table.startswith("NVIDIA H100 80GB HBM3, torch 2.13.0, 2026-01-02\n")
    assert "| step over floor | 1.1 | – |" in table
    assert "| rollout tokens/s | 19,000 | – |" in table
