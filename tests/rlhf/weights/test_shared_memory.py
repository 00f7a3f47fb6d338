from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from resource import RLIMIT_FSIZE, RUSAGE_SELF, getrlimit, getrusage, setrlimit
from subprocess import run
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

from rlhf.weights import shared_memory
from rlhf.weights.sender import make_sender
from rlhf.weights.shared_memory import MemoryFile, SharedMemoryUpdate, is_here, local_copy, read_chunk, write_chunk

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


@pytest.fixture
def file() -> Iterator[MemoryFile]:
    """A file with other content, longer than that of the tests."""
    file = MemoryFile()
    file.write([np.full(4096, 7, dtype=np.uint8)])
    yield file
    file.close()


def test_a_chunk_comes_back_as_it_was_written(file: MemoryFile) -> None:
    update = write_chunk(file, ODD)
    assert Path(file.path).stat().st_size == sum(tensor.nbytes for _, tensor in ODD)
    assert update.dtypes[:3] == ["bfloat16", "float32", "int8"] and update.shapes[-2] == [5, 2]
    assert_same(read_chunk(update), ODD)


def test_what_was_read_outlives_the_file(file: MemoryFile) -> None:
    found = read_chunk(write_chunk(file, ODD))
    write_chunk(file, [("other", torch.full((40,), 9.0))])
    file.close()
    assert_same(found, ODD)


def test_another_process_reads_it_and_nothing_of_it_lies_in_a_folder(file: MemoryFile) -> None:
    file.write([np.frombuffer(b"content", dtype=np.uint8)])
    assert run(["cat", file.path], capture_output=True, check=True).stdout == b"content"
    assert not list(Path("/dev/shm").glob(f"*{file.name}*"))


def test_new_content_takes_the_pages_of_the_old(file: MemoryFile) -> None:
    """They are still mapped: 64 MiB of new ones would take a page fault for each 16."""
    file.write([np.full(2**26, 1, dtype=np.uint8)])
    mapped, others = np.memmap(file.path, mode="r"), np.full((2, 2**25), 2, dtype=np.uint8)
    assert mapped.sum() == 2**26
    faults = getrusage(RUSAGE_SELF).ru_minflt
    file.write(others)
    assert mapped.sum() == 2 * 2**26
    assert getrusage(RUSAGE_SELF).ru_minflt - faults < 500


def test_a_failed_write_leaves_nothing_for_the_next_one(file: MemoryFile) -> None:
    limits = getrlimit(RLIMIT_FSIZE)
    try:
        setrlimit(RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            write_chunk(file, [("a", torch.ones(30))])
        small = write_chunk(file, ODD[:2])
    finally:
        setrlimit(RLIMIT_FSIZE, limits)
    assert_same(read_chunk(small), ODD[:2])


def test_a_chunk_of_another_host_is_a_file_here_for_a_moment(file: MemoryFile) -> None:
    update = asdict(write_chunk(file, ODD))
    content = np.fromfile(file.path, dtype=np.uint8)
    file.close()
    assert not is_here(update)
    with local_copy(update, content) as here:
        assert is_here(here)
        assert_same(read_chunk(SharedMemoryUpdate(**here)), ODD)
    assert not is_here(here)


def test_a_file_is_known_by_its_name_and_not_by_its_path(file: MemoryFile, tmp_path: Path) -> None:
    """On another host a process of the same number may have another file of the same number."""
    update = asdict(write_chunk(file, ODD))
    assert is_here(update)
    file.close()
    other = MemoryFile()
    assert other.path == update["path"] and not is_here(update)
    other.close()
    with (tmp_path / update["file"]).open("wb") as on_disk:
        assert not is_here({**update, "path": f"/proc/self/fd/{on_disk.fileno()}"})


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
    tensors = [(f"t{i}", torch.full((size,), float(i))) for i, size in enumerate((4, 4, 4, 1, 100, 1, 2))]
    client = send(ListSource(tensors))
    assert client.calls == ["init", "start", "update", "update", "update", "update", "finish"]
    chunks = [[name for name, _ in chunk] for chunk in client.chunks]
    assert chunks == [["t0", "t1", "t2"], ["t3"], ["t4"], ["t5", "t6"]], "a large tensor is a chunk by itself"
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


def test_two_files_serve_all_chunks_and_transfers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "CHUNK_BYTES", 40)
    client, source = ReadingClient(), ListSource([(f"t{i}", torch.full((10,), float(i))) for i in range(5)])
    sender = make_sender("shared_memory", 0, 1, client, source, "127.0.0.1", 0)
    for _ in range(2):
        sender.send_weights()
    one, other = client.files[:2]
    assert one != other and client.files == 2 * [one, other, one, other, one]
    assert_same([named for chunk in client.chunks for named in chunk], 2 * source.tensors)
    sender.shutdown()
    assert not one.exists() and not other.exists()


def test_a_failed_call_ends_the_transfer_and_the_next_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "CHUNK_BYTES", 40)
    client = ReadingClient()

    def fail(update_info: dict[str, Any]) -> None:
        raise RuntimeError("refused")

    source = ListSource([(f"t{i}", torch.full((10,), float(i))) for i in range(3)])
    sender = make_sender("shared_memory", 0, 1, client, source, "127.0.0.1", 0)
    with monkeypatch.context() as failing:
        failing.setattr(client, "update_weights", fail)
        with pytest.raises(RuntimeError, match="refused"):
            sender.send_weights()
    assert client.calls == ["init", "start"]
    sender.send_weights()
    assert_same([named for chunk in client.chunks for named in chunk], source.tensors)


def test_a_small_model_is_one_chunk() -> None:
    client = send(ListSource(ODD))
    assert client.calls.count("update") == 1
    assert_same(client.chunks[0], ODD)


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
