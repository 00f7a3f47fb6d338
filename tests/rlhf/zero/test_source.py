from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf.config.schema import LoRAConfig, OptimizerConfig, RoleConfig
from rlhf.models.lora import adapters, add_adapters
from rlhf.models.policy import PolicyNet
from rlhf.weights.fingerprint import Fingerprint, fingerprint
from rlhf.zero.engine import ZeroEngine
from rlhf.zero.process_group import Rank, join
from rlhf.zero.source import ZeroSource
from tests.architectures import small_model
from tests.rlhf.ranks import Crew
from tests.rlhf.tiny import tiny_model


@dataclass(frozen=True)
class Streamed:
    """The result of iterating a source: tensors in float32 by name, metadata, fingerprint."""

    tensors: dict[str, np.ndarray]
    metadata: list[tuple[str, str, tuple[int, ...]]]
    dtypes: list[str]
    fingerprint: Fingerprint


def adapted_model(architecture: str, targets: tuple[str, ...]) -> PreTrainedModel:
    """A model with trained adapters."""
    lm = tiny_model(AutoModelForCausalLM, architecture)
    add_adapters(lm, LoRAConfig(rank=4, targets=targets), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for adapter in adapters(lm).values():
            adapter.b.add_(torch.randn(adapter.b.shape, generator=generator))
    return lm


def rename_head(lm: PreTrainedModel, name: str) -> None:
    """Rename the output head, as in a model with custom code."""
    head = lm.lm_head
    del lm.lm_head
    setattr(lm, name, head)
    lm.get_output_embeddings = lambda: head


def stream(
    rank: Rank, architecture: str, stage: int, dtype: str, targets: tuple[str, ...] = (), head: str = ""
) -> Streamed:
    """Iterate a trained model's source twice, as two weight transfers do."""
    place = join(rank)
    lm = adapted_model(architecture, targets) if targets else tiny_model(AutoModelForCausalLM, architecture)
    if head:
        rename_head(lm, head)
    lm.register_buffer("table", torch.ones(3))  # not a parameter: the engine makes its own
    engine = ZeroEngine(PolicyNet(lm), RoleConfig(zero_stage=stage), "float32", rank, place, OptimizerConfig(), 1)
    return read_source(ZeroSource(engine, lm, getattr(torch, dtype)))


def read_source(source: ZeroSource) -> Streamed:
    """The result of the source's second iteration."""
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


def test_the_output_head_has_the_engines_name_in_the_fingerprint(one_rank: Crew) -> None:
    """Custom model code may use another name (InternLM2: ``output``); vLLM calls every head ``lm_head``."""
    as_held = fingerprint(tiny_model(AutoModelForCausalLM, "llama").state_dict().items())
    assert "lm_head.weight" in as_held
    [renamed] = one_rank.run(stream, "llama", 1, "float32", (), "output")
    assert "output.weight" in renamed.tensors and "lm_head.weight" not in renamed.tensors
    assert renamed.fingerprint == as_held


def peft_merged(architecture: str, targets: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The state of a plain model into which PEFT merged the adapters."""
    lm = adapted_model(architecture, targets)
    for layer in list(lm.modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
    return {name.replace("base_layer.", ""): tensor for name, tensor in lm.state_dict().items() if "lora_" not in name}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize(
    ("architecture", "targets"),
    [("llama", ("all-linear",)), ("qwen2", ("layers.1.self_attn.v_proj", "o_proj")), ("gpt2", ("c_attn",))],
)
def test_adapters_are_sent_merged_under_the_plain_names(
    architecture: str, targets: tuple[str, ...], dtype: str, stage: int, two_ranks: Crew
) -> None:
    """In all layers, or some; biases, tied heads and transposed layers as in the plain model. The sum is in float32."""
    cast = getattr(torch, dtype)
    plain = tiny_model(AutoModelForCausalLM, architecture).state_dict()
    expected = peft_merged(architecture, targets)
    assert list(expected) == list(plain)
    changed = [name for name in plain if not torch.equal(plain[name], expected[name])]
    assert len(changed) == {"llama": 14, "qwen2": 3, "gpt2": 2}[architecture]
    for rank, streamed in enumerate(two_ranks.run(stream, architecture, stage, dtype, targets)):
        assert streamed.metadata == [(name, f"torch.{dtype}", tensor.shape) for name, tensor in plain.items()]
        assert list(streamed.tensors) == list(plain)
        sent = {name: torch.from_numpy(array).to(cast) for name, array in streamed.tensors.items()}
        for name, tensor in expected.items():
            torch.testing.assert_close(sent[name], tensor.to(cast), msg=name)
            assert name in changed or torch.equal(sent[name], plain[name].to(cast)), name
        assert streamed.fingerprint == (fingerprint(sent.items()) if rank == 0 else {})


def stream_small_model(rank: Rank, name: str, stage: int) -> Streamed:
    """The source of a model of ``tests/architectures.py``."""
    place, lm = join(rank), small_model(name)
    engine = ZeroEngine(PolicyNet(lm), RoleConfig(zero_stage=stage), "float32", rank, place, OptimizerConfig(), 1)
    return read_source(ZeroSource(engine, lm, torch.float32))


@pytest.mark.parametrize("stage", [1, 3])
def test_experts_are_sent_as_a_saved_model_has_them(stage: int, two_ranks: Crew, tmp_path: Path) -> None:
    """In memory transformers stores the experts of a Mixtral as one tensor per layer."""
    small_model("Mixtral").save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert any(".experts.3.w2." in name for name in saved)
    for rank, streamed in enumerate(two_ranks.run(stream_small_model, "Mixtral", stage)):
        assert streamed.tensors.keys() == saved.keys()
        for name, tensor in saved.items():
            np.testing.assert_array_equal(streamed.tensors[name], tensor.numpy(), err_msg=name)
        assert streamed.metadata == [(n, "torch.float32", t.shape) for n, t in streamed.tensors.items()]
        assert streamed.fingerprint == (fingerprint(saved.items()) if rank == 0 else {})


def test_an_output_head_that_is_saved_under_another_name_has_the_engines_name_in_the_fingerprint(
    one_rank: Crew, tmp_path: Path
) -> None:
    """transformers saves a GPT-NeoX's ``lm_head`` as ``embed_out``."""
    lm = small_model("GPT-NeoX")
    lm.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert "embed_out.weight" in saved
    [streamed] = one_rank.run(stream_small_model, "GPT-NeoX", 1)
    assert streamed.tensors.keys() == saved.keys()
    held = {("lm_head.weight" if name == "embed_out.weight" else name): tensor for name, tensor in saved.items()}
    assert streamed.fingerprint == fingerprint(held.items())
