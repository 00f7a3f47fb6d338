"""Setup of the weight sender, as far as it can be tested without a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.distributed.weight_transfer.base import ParamMeta
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

from rlhf.weights.sender import _init_info


@pytest.mark.parametrize(
    ("vocabulary", "hidden", "size"), [(152_064, 3584, 1_089_994_752), (61, 64, 2**30)], ids=["qwen 7b", "tiny"]
)
def test_the_largest_tensor_fits_into_the_buffer_of_cuda_ipc(
    vocabulary: int, hidden: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM refuses one that does not; its buffer is 1 GiB, and the embedding of Qwen2.5 7B takes 16 MB more."""
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "0")  # it is set here, and put back after the test
    shapes = ((vocabulary, hidden), (hidden,))
    metadata = [ParamMeta(str(shape), torch.bfloat16, shape) for shape in shapes]
    source: Any = SimpleNamespace(metadata=lambda: metadata)
    info = _init_info("ipc", 0, source)
    assert isinstance(info, IPCTrainerInitInfo) and info.packed
    assert info.packed_buffer_size_bytes == size
