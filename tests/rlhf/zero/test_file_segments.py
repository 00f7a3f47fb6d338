"""Files of ``torch.save`` whose segments are views of the saved tensors, and snapshots of a rank's own shard."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlhf.config.schema import OptimizerConfig, RoleConfig
from rlhf.zero import checkpoint
from rlhf.zero.engine import ZeroEngine
from rlhf.zero.file_segments import SMALL, MemoryFiles, SegmentFile, file_bytes, save_to_segments, write_segments
from rlhf.zero.process_group import Rank, join
from tests.rlhf.ranks import Crew

LARGE = SMALL  # numbers of a float32 tensor of four times the size from which tensors are not copied


@pytest.mark.parametrize("mmap", [False, True])
def test_the_file_is_that_of_torch_save(mmap: bool, tmp_path: Path) -> None:
    flat = torch.randn(3 * LARGE, requires_grad=True)
    state = {
        "part": flat[LARGE : 2 * LARGE],
        "nested": [(torch.randn(LARGE, 2).bfloat16(), "text"), {"step": torch.tensor(3.0)}],
        "turned": torch.randn(300, 500).t(),
        "shape": torch.Size([2, 3]),
        "empty": torch.zeros(0, 4),
    }
    write_segments(save_to_segments(state), tmp_path / "own.pt")
    torch.save(state, tmp_path / "plain.pt")
    own, plain = (torch.load(tmp_path / name, mmap=mmap) for name in ("own.pt", "plain.pt"))
    assert own["shape"] == plain["shape"] and type(own["shape"]) is torch.Size
    assert own["nested"][0][1] == "text" and type(own["nested"][0]) is tuple
    pairs = [(own[name], plain[name]) for name in ("part", "turned", "empty")]
    pairs += [(own["nested"][0][0], plain["nested"][0][0]), (own["nested"][1]["step"], plain["nested"][1]["step"])]
    for one, other in pairs:
        assert one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
        assert not one.requires_grad


def test_large_tensors_are_neither_copied_nor_saved_with_their_storage() -> None:
    flat = torch.zeros(3 * LARGE)
    content = save_to_segments({"a": flat[:LARGE], "b": flat[2 * LARGE :], "small": flat[:4]})
    views = [segment for segment in content if np.shares_memory(segment, flat.numpy())]
    assert [view.nbytes for view in views] == [4 * LARGE, 4 * LARGE]
    assert file_bytes(content) - 8 * LARGE < 4096
    flat.fill_(1.0)
    assert all(np.all(view.view(np.float32) == 1) for view in views)


def test_files_in_memory_are_loaded_as_they_were_saved() -> None:
    state = {"large": torch.randn(LARGE, 2), "small": torch.tensor(3.0), "text": ["x", 1]}
    memory = MemoryFiles()
    memory.save(state, "some/folder/name.pt")
    assert memory.files.keys() == {"name.pt"}
    found = MemoryFiles(memory.files).load("another/name.pt", map_location="cpu")
    assert torch.equal(found["large"], state["large"]) and found["small"] == 3 and found["text"] == ["x", 1]
    state["large"].zero_()
    assert found["large"].any(), "it is a copy: a snapshot outlives the training that goes on from it"


def test_segments_are_read_as_one_file() -> None:
    content = [np.frombuffer(part, np.uint8) for part in (b"abc", b"", b"defgh", b"i")]
    file = SegmentFile(content)
    assert file.read() == b"abcdefghi" and file.read(1) == b""
    assert (file.seek(2), file.read(3), file.tell()) == (2, b"cde", 5)
    assert (file.seek(-2, os.SEEK_END), file.read(9), file.seek(-4, os.SEEK_CUR), file.read(2)) == (7, b"hi", 5, b"fg")
    assert SegmentFile([]).read() == b""


class Square(nn.Linear):
    """A square matrix."""

    def __init__(self) -> None:
        super().__init__(512, 512, bias=False)

    def external_parameters(self) -> list[nn.Parameter]:
        return []


def own_bytes(rank: Rank, stage: int) -> dict[str, int]:
    """Bytes of each file of a rank's snapshot, after an update."""
    place = join(rank)
    engine = ZeroEngine(Square(), RoleConfig(zero_stage=stage), "float32", rank, place, OptimizerConfig(), 1)

    def loss(rows: Tensor) -> Tensor:
        return engine.engine(rows).sum()

    engine.update([torch.ones(2, 512)], loss, 2)
    return {name: file_bytes(content) for name, content in checkpoint.snapshot(engine).items()}


@pytest.mark.parametrize(
    ("stage", "first", "other"),
    [(0, 4 + 8, 0), (1, 4 + 12 / 2, 12 / 2), (3, 12 / 2, 12 / 2)],
)
def test_a_snapshot_is_the_ranks_own_shard(stage: int, first: float, other: float, two_ranks: Crew) -> None:
    """Bytes per weight of two ranks: weights, and of the optimizer 12 over the ranks; at stage 0 the first has all."""
    for rank, (files, expected) in enumerate(zip(two_ranks.run(own_bytes, stage), (first, other), strict=True)):
        assert f"rank_{rank}.pt" in files
        size = sum(size for name, size in files.items() if not name.startswith(("rank_", "topology")))
        assert 0 <= size - expected * 512 * 512 < 32_768
