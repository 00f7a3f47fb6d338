"""PPO finds optima that are known in closed form, through Ray actors, vLLM and DeepSpeed."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.optima.problems import PROBLEMS
from examples.optima.verify import verify


@pytest.mark.parametrize("name", ["a-ppo", pytest.param("a-qlora", marks=pytest.mark.slow)])
def test_the_optimum_is_found(name: str, tmp_path: Path) -> None:
    """A Llama, and adapters of one in 4 bits. ``make verify`` runs all problems and algorithms, with three seeds."""
    found = verify(PROBLEMS[name], seed=0, root=tmp_path)
    assert len(found) > 4
    assert [check for check in found if not check.holds] == []
