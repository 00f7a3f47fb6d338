"""``rlhf plan`` on the command line: its output, its exit codes, and that it imports neither Ray nor torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main

ROOT = Path(__file__).parents[3]
RECIPE = str(ROOT / "recipes/llama_70b_cluster.yaml")
CLUSTER = ("--cluster", "nodes=8,gpus=8,gpu=h100-80")


def test_the_70b_recipe_fits_on_the_hardware_that_its_header_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", RECIPE, *CLUSTER, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["fits"] and list(values["stages"]) == ["sft", "reward", "ppo"]
    ppo = values["stages"]["ppo"]
    assert ppo["models"]["policy"]["parameters"] == 70_553_706_496
    assert sum(len(slot["gpus"]) for slot in ppo["places"]) == 64


def test_the_same_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", RECIPE, "rollout.engines=1", *CLUSTER, "--stage", "ppo"]) == 0
    said = capsys.readouterr().out
    assert "rollout        1 engine of 8 GPUs: node 5 GPU 0-7" in said
    assert "\nIt fits the GPUs. Not judged: " in said


def test_what_does_not_fit_is_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", RECIPE, "--cluster", "nodes=2,gpus=8,gpu=h100-80", "--stage", "sft"]) == 0
    assert "the run needs 32 GPUs and there are 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cluster", "nodes=2"), "gpus= is missing"),
        (("--cluster", "gpus=8,gpu=h10-80"), "did you mean h100-80?"),
        ((*CLUSTER, "model.path=meta-llama/Llama-3.1-71B"), "did you mean meta-llama/Llama-3.1-70B?"),
        ((*CLUSTER, "ppo.batch_sise=4"), "ppo.batch_size"),
        ((*CLUSTER, "placement.device=cpu"), "a plan is for GPUs"),
    ],
)
def test_mistakes_end_with_2(arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [each for each in arguments if "=" in each and "," not in each and each != "nodes=2"]
    options = [each for each in arguments if each not in settings]
    assert main(["plan", RECIPE, *settings, *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"model_type": "unheard_of"}', "unheard_of"),
        ('{"hidden_size": 64}', "model_type"),
        ('{"model_type": "llama", "hidden_size": 0}', "describes no causal language model"),
        ('{"model_type": "llama", "hidden_size": "many"}', "hidden_size"),
    ],
)
def test_a_config_without_a_known_model_ends_with_2(
    config: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(config)
    assert main(["plan", RECIPE, f"model.path={tmp_path}", *CLUSTER]) == 2
    shown = capsys.readouterr().err
    assert said in shown and "fix: " in shown


def test_neither_ray_nor_torch_is_imported() -> None:
    code = (
        "import sys; from launch.cli import main; "
        f"assert main(['plan', {RECIPE!r}, '--cluster', 'nodes=2,gpus=8,gpu=h100-80']) == 0; "
        "heavy = {'torch', 'ray', 'vllm', 'deepspeed', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
