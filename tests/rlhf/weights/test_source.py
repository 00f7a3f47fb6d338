from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.config.schema import OptimizerConfig, RoleConfig
from rlhf.models.policy import PolicyNet
from rlhf.weights.fingerprint import Fingerprint, fingerprint
from rlhf.weights.source import ZeroSource
from rlhf.zero.engine import ZeroEngine
from rlhf.zero.process_group import Rank, join
from tests.rlhf.ranks import Crew
from tests.rlhf.tiny import tiny_model


@dataclass(frozen=True)
class Streamed:
    """What a source gave: tensors in float32 by name, its metadata, and its fingerprint."""

    tensors: dict[str, np.ndarray]
    metadata: list[tuple[str, str, tuple[int, ...]]]
    dtypes: list[str]
    fingerprint: Fingerprint


def stream(rank: Rank, architecture: str, stage: int, dtype: str) -> Streamed:
    """Read a trained model's source twice; a source is read anew at each publish."""
    place = join(rank)
    lm = tiny_model(AutoModelForCausalLM, architecture)
    lm.register_buffer("table", torch.ones(3))  # not a parameter: the engine makes its own
    engine = ZeroEngine(PolicyNet(lm), RoleConfig(zero_stage=stage), "float32", rank, place, OptimizerConfig(), 1)
    source = ZeroSource(engine, lm, getattr(torch, dtype))
    list(source)
    tensors = dict(source)
    return Streamed(
        tensors={name: tensor.float().numpy() for name, tensor in tensors.items()},
        metadata=[(meta.name, str(meta.dtype), tuple(meta.shape)) for meta in source.metadata()],
        dtypes=[str(tensor.dtype) for tensor in tensors.values()],
        fingerprint=source.fingerprint,
    )


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [1, 3])
def test_every_parameter_is_sent_whole_with_the_fingerprint_of_its_state(
    architecture: str, dtype: str, stage: int, two_ranks: Crew
) -> None:
    cast = getattr(torch, dtype)
    state = {
        name: tensor.to(cast) for name, tensor in tiny_model(AutoModelForCausalLM, architecture).state_dict().items()
    }
    assert "lm_head.weight" in state
    for rank, streamed in enumerate(two_ranks.run(stream, architecture, stage, dtype)):
        assert streamed.tensors.keys() == state.keys()  # tied (qwen2) or not, the head has its own name
        for name, tensor in state.items():
            np.testing.assert_array_equal(streamed.tensors[name], tensor.float().numpy(), err_msg=name)
        assert streamed.metadata == [(n, f"torch.{dtype}", t.shape) for n, t in streamed.tensors.items()]
        assert set(streamed.dtypes) == {f"torch.{dtype}"}
        assert streamed.fingerprint == (fingerprint(state.items()) if rank == 0 else {})
