"""Every recipe in ``recipes/`` can run on the hardware that its header names, and is refused on less."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from launch.plan.cluster import parse_cluster
from launch.plan.report import make_plan
from rlhf.config.load import load_recipe
from rlhf.config.schema import Recipe
from rlhf.errors import UserError
from rlhf.placement.machine import Machine
from rlhf.placement.pools import NodeGPUs
from rlhf.validate import validate

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "recipes").glob("*.yaml"))
GPUS = {"qwen_0.5b_1gpu": 1, "llama_8b_8gpu": 8, "llama_70b_cluster": 64}
"""Recipe → GPUs that it needs; the others run on the CPU."""
STAGES = ("sft", "reward", "dpo", "ppo", "pipeline")


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # recipes name files of the project as a user in its folder does


def load(file: Path, tmp_path: Path) -> Recipe:
    """The recipe with data that exists: rows are made or given by the user."""
    rows = tmp_path / "rows.jsonl"
    rows.touch()
    keys = ("demonstrations", "preferences", "prompts")
    return load_recipe(file, ["data.path=null", *(f"data.{key}={rows}" for key in keys)])


def machine(file: Path) -> Machine:
    gpus = GPUS.get(file.stem, 0)
    nodes = (NodeGPUs(gpus=min(gpus, 8)),) * math.ceil(gpus / 8)
    return Machine(gpus=gpus, cpus=2, nodes=nodes, context_length=32768)


def test_there_are_recipes_and_the_table_knows_them():
    assert {"quickstart", "hh_cpu", "gsm8k_cpu", *GPUS} == {file.stem for file in FILES}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_can_run_on_the_hardware_of_its_header(file, stage, tmp_path):
    validate(load(file, tmp_path), stage, machine(file))


@pytest.mark.parametrize("name", GPUS)
def test_it_is_refused_with_fewer_gpus(name, tmp_path):
    recipe = load(ROOT / "recipes" / f"{name}.yaml", tmp_path)
    for fewer in {GPUS[name] - 1, 0}:
        with pytest.raises(UserError, match=f"needs {GPUS[name]} GPUs and there are {fewer}|there is no GPU"):
            validate(recipe, "pipeline", Machine(gpus=fewer, cpus=2))


@pytest.mark.parametrize("name", ["hh_cpu", "gsm8k_cpu", *GPUS])
def test_it_asks_for_the_users_data(name):
    with pytest.raises(UserError, match="the sft stage has no data"):
        validate(load_recipe(ROOT / "recipes" / f"{name}.yaml"), "sft", Machine(gpus=64, cpus=2))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_header_names_command_hardware_and_data(file):
    header = re.match(r"(#.*\n)+", file.read_text(encoding="utf-8")).group()
    assert f"rlhf pipeline recipes/{file.name}" in header
    assert "# Hardware: " in header and "Data: " in header


@pytest.mark.parametrize("name", GPUS)
def test_it_fits_on_the_clusters_that_its_header_names(name):
    file = ROOT / "recipes" / f"{name}.yaml"
    named = re.findall(rf"^#   rlhf plan recipes/{file.name}(.*) --cluster (\S+)$", file.read_text(), re.MULTILINE)
    assert parse_cluster(named[0][1]).total == GPUS[name]
    for settings, cluster in named:
        plan = make_plan(load_recipe(file, settings.split()), "pipeline", parse_cluster(cluster))
        assert plan.fits, [problem for stage in plan.stages for problem in stage.placed.problems]


def test_the_quickstarts_model_has_the_stated_size(tmp_path):
    scratch = load(ROOT / "recipes" / "quickstart.yaml", tmp_path).model.scratch
    width = scratch.hidden_size
    layer = 4 * width**2 + 3 * width * scratch.intermediate_size + 2 * width
    assert 1.0e6 < scratch.layers * layer + scratch.vocab_size * width + width < 1.2e6
