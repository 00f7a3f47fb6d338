from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

from rlhf.weights import shared_memory
from rlhf.weights.memory_file import MemoryFile, mapped
from rlhf.weights.sender import make_sender
from rlhf.weights.shared_memory import (
    SharedMemoryInit,
    SharedMemoryReceiver,
    SharedMemoryUpdate,
    chunk_content,
    is_here,
    local_copy,
    split_content,
    write_chunk,
)

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


def read(update: SharedMemoryUpdate) -> list[tuple[str, Tensor]]:
    """Copies of a chunk's tensors."""
    return [(name, tensor.clone()) for name, tensor in split_content(update, mapped(update.path))]


@pytest.fixture
def file() -> Iterator[MemoryFile]:
    """A file with other content, longer than that of the tests."""
    file = MemoryFile()
    write_chunk(file, [("other", torch.full((1024,), 7.0))])
    yield file
    file.close()


def test_a_chunk_comes_back_as_it_was_written(file: MemoryFile) -> None:
    update = write_chunk(file, ODD)
    assert update.nbytes == sum(tensor.nbytes for _, tensor in ODD)
    assert update.dtypes[:3] == ["bfloat16", "float32", "int8"] and update.shapes[-2] == [5, 2]
    assert_same(read(update), ODD)


def test_a_chunk_of_empty_tensors_comes_back() -> None:
    file = MemoryFile()
    assert_same(read(write_chunk(file, ODD[4:5])), ODD[4:5])
    file.close()


def test_a_chunk_of_another_host_is_a_file_here_for_a_moment(file: MemoryFile) -> None:
    update = asdict(write_chunk(file, ODD))
    content = chunk_content(update).copy()
    assert len(content) == sum(tensor.nbytes for _, tensor in ODD), "without the rest of a longer one"
    file.close()
    assert not is_here(update)
    with local_copy(update, content) as here:
        assert is_here(here)
        assert_same(read(SharedMemoryUpdate(**here)), ODD)
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
        self.chunks.append(read(SharedMemoryUpdate(**update_info)))

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


class Halves(nn.Module):
    """A layer of vLLM's kind: its parameter is loaded in two halves, and processed when both are there."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 4), requires_grad=False)
        self.weight.weight_loader = self.load  # type: ignore[attr-defined]

    @staticmethod
    def load(param: Tensor, loaded_weight: Tensor, half: int) -> None:
        param.data[half] = loaded_weight


class Loading(nn.Module):
    """A model of such layers, in which tensor ``n.half`` is a half of layer n."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Halves() for _ in range(layers)])

    def load_weights(self, weights: list[tuple[str, Tensor]]) -> None:
        for name, tensor in weights:
            layer, half = map(int, name.split("."))
            parameter = self.layers[layer].weight
            parameter.weight_loader(parameter, tensor, half)


class Receiving(ReadingClient):
    """An engine's worker with vLLM's layerwise reload."""

    def __init__(self, layers: int) -> None:
        from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

        super().__init__()
        self.model = Loading(layers)
        record_metadata_for_reloading(self.model)
        self.receiver = object.__new__(SharedMemoryReceiver)
        self.receiver.model, self.receiver.model_config = self.model, SimpleNamespace(dtype=torch.float32)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.receiver.init_transfer_engine(SharedMemoryInit())

    def start_weight_update(self) -> None:
        self.receiver.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.files.append(Path(update_info["path"]))
        self.receiver.receive_weights(SharedMemoryUpdate(**update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.receiver.finish_weight_update()

    def held(self) -> Tensor:
        return torch.stack([layer.weight.clone() for layer in self.model.layers])


@pytest.mark.parametrize("chunk_bytes", [16, 48, 10_000])
def test_a_layer_may_come_in_chunks_of_which_the_first_is_overwritten(
    chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first halves of all layers come before the second ones, in files that are written again in between."""
    monkeypatch.setattr(shared_memory, "CHUNK_BYTES", chunk_bytes)
    values, client = torch.zeros(5, 2, 4), Receiving(layers=5)
    source = ListSource([(f"{layer}.{half}", values[layer, half]) for half in range(2) for layer in range(5)])
    sender = make_sender("shared_memory", 0, 1, client, source, "127.0.0.1", 0)
    for version in range(3):
        values.copy_(torch.arange(40.0).reshape(5, 2, 4) + 100 * version)
        sender.send_weights()
        assert torch.equal(client.held(), values)


def test_a_receiver_keeps_the_memory_of_open_files_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a sender stay mapped; a copy from another host, or a sender that is gone, leaves nothing."""
    monkeypatch.setattr(shared_memory, "CHUNK_BYTES", 40)
    client, source = (
        Receiving(layers=2),
        ListSource([(f"{i // 2}.{i % 2}", torch.full((4,), 1.0 + i)) for i in range(4)]),
    )
    sender = make_sender("shared_memory", 0, 1, client, source, "127.0.0.1", 0)
    sender.send_weights()
    first = {place: content.data_ptr() for place, content in client.receiver._contents.items()}
    sender.send_weights()
    assert len(first) == 2 and first == {place: each.data_ptr() for place, each in client.receiver._contents.items()}

    file = MemoryFile()
    update = asdict(write_chunk(file, source.tensors))
    client.start_weight_update()
    with local_copy(update, chunk_content(update)) as here:
        client.update_weights(here)
        assert len(client.receiver._contents) == 3
    client.finish_weight_update()
    assert client.receiver._contents.keys() == first.keys()
    sender.shutdown()
    client.start_weight_update()
    client.update_weights(update)
    client.finish_weight_update()
    assert [place for place, _ in client.receiver._contents] == [file.path]
    client.receiver.shutdown()
    assert not client.receiver._contents
    file.close()


def test_a_file_that_has_grown_is_mapped_anew() -> None:
    client, file = Receiving(layers=2), MemoryFile()
    client.init_weight_transfer_engine({})
    for count in (1, 4):
        tensors = [(f"{i // 2}.{i % 2}", torch.full((4,), 1.0 + i)) for i in range(count)]
        client.start_weight_update()
        client.update_weights(asdict(write_chunk(file, tensors)))
        client.finish_weight_update()
    assert torch.equal(client.held()[1, 1], torch.full((4,), 4.0))
    file.close()


def test_copies_of_chunks_from_another_host_are_held_one_at_a_time(file: MemoryFile) -> None:
    """Each is a file by itself: with all of them an engine would hold the whole model twice until the end."""
    client = Receiving(layers=3)
    client.init_weight_transfer_engine({})
    client.start_weight_update()
    for layer in range(3):
        halves = [(f"{layer}.{half}", torch.full((4,), 1.0 + layer)) for half in range(2)]
        update = asdict(write_chunk(file, halves))
        with local_copy(update, chunk_content(update)) as here:
            client.update_weights(here)
            assert [path for path, _ in client.receiver._contents] == [here["path"]]
    client.finish_weight_update()
    assert client.receiver._contents == {}
    assert torch.equal(client.held()[:, 0, 0], torch.tensor([1.0, 2.0, 3.0]))


def test_what_waits_for_the_rest_of_its_layer_is_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary that vLLM pads waits until the end, through all chunks."""
    monkeypatch.setattr(shared_memory, "CHUNK_BYTES", 16)
    client, copies = Receiving(layers=4), []
    clone = Tensor.clone
    monkeypatch.setattr(Tensor, "clone", lambda self: copies.append(self) or clone(self))
    names = ["0.0", *(f"{layer}.{half}" for layer in range(1, 4) for half in range(2)), "0.1"]
    source = ListSource([(name, torch.full((4,), float(i))) for i, name in enumerate(names)])
    make_sender("shared_memory", 0, 1, client, source, "127.0.0.1", 0).send_weights()
    assert len(client.files) == 8
    assert len(copies) == 4, "the first half of each layer"
