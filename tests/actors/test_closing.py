"""Tests of a pipeline's final report with missing results."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from actors.closing import _compare, _headline
from rlhf.config.schema import EvaluationConfig, Recipe
from rlhf.evaluation.comparison import write_answers


def test_without_held_out_prompts_there_is_no_comparison(tmp_path: Path) -> None:
    """Data of one prompt have none: the answers are there, and there are none of them."""
    (tmp_path / "ppo").mkdir()
    write_answers(tmp_path / "ppo", [], [], [])
    recipe = Recipe(name="t", evaluation=EvaluationConfig(scorer="nobody.py:asks"))
    session: Any = SimpleNamespace(recipe=recipe, root=tmp_path)
    assert _compare(session) is None


def test_a_run_whose_samples_were_all_dropped_ends_with_what_is_known(tmp_path: Path) -> None:
    shown = _headline(tmp_path, {"reward": {"held-out accuracy": 0.75}, "ppo": {}}, tmp_path / "curves.png", 12.0)
    assert shown["reward model, held-out accuracy"] == 0.75 and shown["seconds of this command"] == 12.0
    assert "PPO's gain in standard deviations" not in shown
    assert f"rlhf report {tmp_path}" in shown.values(), "the next command"
    learned = {"gain in standard deviations": 1.5, "sequence KL at the end, nats": 0.0}
    shown = _headline(tmp_path, {"ppo": learned}, tmp_path / "curves.png", 12.0)
    assert (shown["PPO's gain in standard deviations"], shown["sequence KL at the end, nats"]) == (1.5, 0.0)
