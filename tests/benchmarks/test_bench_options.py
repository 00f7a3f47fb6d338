"""Options of the benchmark, and the recipes of its workloads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from benchmarks.__main__ import QUICK, chosen_workloads, make_folders, parse
from benchmarks.contestants import FLOORS, SAME_FLOOR, contestants
from benchmarks.models import end_probability
from benchmarks.workload import WORKLOADS, Workload, recipe
from rlhf.config.load import load_recipe
from rlhf.placement.machine import Machine
from rlhf.validate import validate


@pytest.mark.parametrize("work", WORKLOADS.values(), ids=WORKLOADS)
@pytest.mark.parametrize("budget", [None, 320, 8192])
def test_every_recipe_is_valid(work: Workload, budget: int | None, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    (tmp_path / "prompts.jsonl").write_text("", encoding="utf-8")
    for role in ("policy", "reward"):
        (tmp_path / work.models / role).mkdir(parents=True)
    path.write_text(yaml.safe_dump(recipe(work, tmp_path, "run", budget, 3)), encoding="utf-8")
    loaded = load_recipe(path)
    validate(loaded, "ppo", Machine(gpus=0, cpus=2))
    assert loaded.ppo.steps == 3
    assert loaded.algorithm.name == work.algorithm
    assert loaded.ppo.samples_per_prompt == (8 if work.algorithm == "grpo" else 1)
    assert loaded.placement.reference.micro_batch_tokens == (budget or 4096)
    assert loaded.ppo.batch_size // loaded.algorithm.minibatches == work.minibatch


def test_workloads_cover_what_the_benchmark_promises() -> None:
    works = WORKLOADS.values()
    assert {(work.algorithm, work.mean) for work in works} == {
        (algorithm, mean) for algorithm in ("ppo", "grpo") for mean in (None, 64)
    }
    assert {work.size for work in works} == {"3M", "25M"}
    assert {work.dtype for work in works} == {"float32", "bfloat16"}
    assert {work.staleness for work in works} == {0, 1}
    assert set(SAME_FLOOR) | FLOORS == set(WORKLOADS) - {"long-ppo"}
    stale, same = WORKLOADS["stale-ppo"], WORKLOADS[SAME_FLOOR["stale-ppo"]]
    assert replace(stale, name=same.name, staleness=0) == same


def test_a_workload_survives_the_command_line() -> None:
    assert all(Workload.from_argument(work.to_argument()) == work for work in WORKLOADS.values())


def test_quick_takes_one_step_of_few_workloads() -> None:
    options = parse(["--quick", "--samples", "32"])
    assert (options.rounds, options.steps, options.budgets) == (1, 1, ())
    assert [(work.name, work.samples) for work in chosen_workloads(options)] == [(name, 32) for name in QUICK]


def test_default_takes_every_workload() -> None:
    assert chosen_workloads(parse([])) == list(WORKLOADS.values())


def test_unknown_workload_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--only", "fixed-ppp"])
    assert "fixed-ppp" in capsys.readouterr().err


def test_contestants_take_turns() -> None:
    def names(work: str, packages: Path | None = Path("trl")) -> list[str]:
        return [contestant.name for contestant in contestants(WORKLOADS[work], (320, 8192), packages)]

    assert names("fixed-ppo") == ["floor", "rlhf", "rlhf 320", "rlhf 8192"]
    assert names("real-grpo") == ["floor", "rlhf", "TRL"]
    assert names("real-grpo", packages=None) == ["floor", "rlhf"]
    assert names("stale-ppo") == names("long-ppo") == ["rlhf"]


def test_end_probability_by_hand() -> None:
    """With p = 0.5 at most three tokens have a mean of 1 + 0.5 + 0.25."""
    assert end_probability(1.75, 3) == pytest.approx(0.5)


@pytest.mark.parametrize("given", [["--samples", "5"], ["--samples", "0"], ["--rounds", "0"], ["--steps", "0"]])
def test_counts_that_cannot_be_timed_are_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(given)
    assert given[0] in capsys.readouterr().err.splitlines()[-1]


def test_a_place_that_cannot_be_written_to_is_told_before_anything_is_timed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for option in ("--folder", "--out"):
        other = {"--folder": "--out", "--out": "--folder"}[option]
        with pytest.raises(SystemExit, match="fix: --folder and --out"):
            make_folders(parse([option, str(tmp_path / "file/under/it"), other, str(tmp_path / "there")]))
