from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

from rlhf.recovery import leftovers
from rlhf.weights import shared_memory
from rlhf.weights.sender import make_sender
from rlhf.weights.shared_memory import SharedMemoryUpdate, local_copy, read_chunk, write_chunk

ODD = [
    ("a", torch.tensor([1.5, -2.5, 3.5], dtype=torch.bfloat16)),
    ("b", torch.arange(7, dtype=torch.float32) / 3),
    ("one.byte", torch.tensor([-1], dtype=torch.int8)),
    ("scalar", torch.tensor(2.75)),
    ("empty", torch.zeros(0, 4)),
    ("c", torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)),
    ("transposed", torch.arange(10, dtype=torch.float32).reshape(2, 5).T),
    ("half", torch.tensor([[0.1]], dtype=torch.float16)),
]
"""Sizes after which the next tensor of a wider dtype does not begin at a multiple of its width."""


def assert_same(found: list[tuple[str, Tensor]], expected: list[tuple[str, Tensor]]) -> None:
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (name, one), (_, other) in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other), name


def test_a_chunk_comes_back_as_it_was_written(tmp_path: Path) -> None:
    update = write_chunk(tmp_path / "chunk", ODD)
    assert (tmp_path / "chunk").stat().st_size == sum(tensor.nbytes for _, tensor in ODD)
    assert update.dtypes[:3] == ["bfloat16", "float32", "int8"] and update.shapes[-2] == [5, 2]
    assert_same(read_chunk(update), ODD)


def test_what_was_read_outlives_the_file(tmp_path: Path) -> None:
    found = read_chunk(write_chunk(tmp_path / "chunk", ODD))
    write_chunk(tmp_path / "chunk", [("other", torch.full((40,), 9.0))])
    (tmp_path / "chunk").unlink()
    assert_same(found, ODD)


def test_a_chunk_of_another_host_is_a_file_here_for_a_moment(tmp_path: Path) -> None:
    update = asdict(write_chunk(tmp_path / "chunk", ODD))
    content = np.fromfile(tmp_path / "chunk", dtype=np.uint8)
    (tmp_path / "chunk").unlink()
    with local_copy(update, content) as here:
        assert_same(read_chunk(SharedMemoryUpdate(**here)), ODD)
    assert not Path(here["path"]).exists()


class ListSource(WeightSource):
    """A source of given tensors that records whether it was iterated."""

    def __init__(self, tensors: list[tuple[str, Tensor]]) -> None:
        self.tensors, self.reads = tensors, 0

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self.reads += 1
        yield from self.tensors


class ReadingClient:
    """The engine's side of the protocol: reads each chunk while its file exists, and records the order of calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.chunks: list[list[tuple[str, Tensor]]] = []
        self.files: list[Path] = []

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.calls.append("init")

    def start_weight_update(self) -> None:
        self.calls.append("start")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.calls.append("update")
        self.files.append(Path(update_info["path"]))
        self.chunks.append(read_chunk(SharedMemoryUpdate(**update_info)))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.calls.append("finish")


def send(source: ListSource, rank: int = 0) -> ReadingClient:
    client = ReadingClient()
    make_sender("shared_memory", rank, 1, client, source, "127.0.0.1", 0).send_weights()
    return client


def test_an_update_is_a_start_its_chunks_and_a_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "CHUNK_BYTES", 40)
    tensors = [(f"t{i}", torch.full((size,), float(i))) for i, size in enumerate((4, 4, 4, 100, 1, 2))]
    client = send(ListSource(tensors))
    assert client.calls == ["init", "start", "update", "update", "update", "finish"]
    assert [[name for name, _ in chunk] for chunk in client.chunks] == [["t0", "t1", "t2"], ["t3"], ["t4", "t5"]]
    assert_same([named for chunk in client.chunks for named in chunk], tensors)


class WaitingClient(ReadingClient):
    """Loads the first chunk only once the second one is being gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.is_gathering, self.was_gathered = Event(), False

    def update_weights(self, update_info: dict[str, Any]) -> None:
        if not self.chunks:
            self.was_gathered = self.is_gathering.wait(30)
        super().update_weights(update_info)


def test_a_chunk_is_gathered_while_the_engines_load_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "CHUNK_BYTES", 40)
    client = WaitingClient()

    class Source(ListSource):
        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            for name, tensor in self.tensors:
                if name == "t1":
                    client.is_gathering.set()
                yield name, tensor

    tensors = [(f"t{i}", torch.full((10,), float(i))) for i in range(3)]
    make_sender("shared_memory", 0, 1, client, Source(tensors), "127.0.0.1", 0).send_weights()
    assert client.was_gathered
    assert_same([named for chunk in client.chunks for named in chunk], tensors)
    assert [file.exists() for file in client.files] == [False] * 3


def test_a_failed_call_ends_the_transfer_and_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shared_memory, "CHUNK_BYTES", 40)
    monkeypatch.setattr(leftovers, "roomy_folder", lambda size: str(tmp_path))
    client = ReadingClient()

    def fail(update_info: dict[str, Any]) -> None:
        raise RuntimeError("refused")

    monkeypatch.setattr(client, "update_weights", fail)
    source = ListSource([(f"t{i}", torch.zeros(10)) for i in range(3)])
    with pytest.raises(RuntimeError, match="refused"):
        make_sender("shared_memory", 0, 1, client, source, "127.0.0.1", 0).send_weights()
    assert client.calls == ["init", "start"] and list(tmp_path.iterdir()) == []


def test_a_small_model_is_one_chunk_and_leaves_no_file_behind() -> None:
    client = send(ListSource(ODD))
    assert client.calls.count("update") == 1
    assert_same(client.chunks[0], ODD)
    assert [file.exists() for file in client.files] == [False]


def test_other_ranks_read_their_source_and_call_nobody() -> None:
    """Under ZeRO-3 gathering a tensor is collective: a rank that does not iterate would block the others."""
    source = ListSource(ODD)
    assert send(source, rank=1).calls == []
    assert source.reads == 1


def test_the_backend_is_registered_once_however_often_it_is_asked() -> None:
    shared_memory.register()
    shared_memory.register()
    assert shared_memory.NAME in WeightTransferEngineFactory._registry
    assert shared_memory.NAME in WeightTransferTrainerFactory._registry
