"""In bfloat16 the rotary embedding's frequencies stay in float32, at every ZeRO stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.config.schema import ModelConfig, PlacementConfig, Recipe, RoleConfig
from rlhf.roles.policy import PolicyRole
from rlhf.zero.process_group import Rank
from tests.rlhf.ranks import Crew
from tests.rlhf.tiny import tiny_model


def frequencies(rank: Rank, folder: str, stage: int) -> tuple[torch.dtype, list[float]]:
    """The rotary embedding's frequencies of the policy on this rank."""
    placement = PlacementConfig(policy=RoleConfig(ranks=rank.world, zero_stage=stage))
    recipe = Recipe(name="test", model=ModelConfig(path=folder, dtype="bfloat16"), placement=placement)
    rotary = PolicyRole(recipe, folder, rank).lm.model.rotary_emb
    return rotary.inv_freq.dtype, rotary.inv_freq.tolist()


@pytest.mark.parametrize("stage", [0, 3])
def test_positions_are_not_rounded(stage: int, crews: dict[int, Crew], tmp_path: Path) -> None:
    """The frequencies are 10000^(−2i/32) for heads 32 wide; rounded to bfloat16 they are off by up to .4%."""
    tiny_model(AutoModelForCausalLM, "llama").save_pretrained(tmp_path)
    right = [10000 ** (-2 * i / 32) for i in range(16)]
    for dtype, found in crews[2].run(frequencies, str(tmp_path), stage):
        assert dtype == torch.float32
        assert found == pytest.approx(right, rel=1e-6)
