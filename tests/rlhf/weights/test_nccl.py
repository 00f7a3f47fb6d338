"""The sender over NCCL: vLLM's code around a group without a GPU, which hangs, fails and is aborted as NCCL's would.

That NCCL itself behaves so has not been tried.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.distributed.weight_transfer import nccl_engine
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from rlhf.weights.aborts import ABORTED
from rlhf.weights.held import HeldWeights
from rlhf.weights.nccl import NCCLSender

NAMES = ("a", "b", "c")


class Group:
    """A communicator; ``fault`` is what happens at the second tensor: it hangs until it is aborted, or fails."""

    def __init__(self, fault: str = "") -> None:
        self.fault, self.sent, self.aborted = fault, list[int](), threading.Event()

    def broadcast(self, tensor: Tensor, src: int, stream: Any = None) -> None:
        if self.aborted.is_set():
            return  # as vLLM's does
        if len(self.sent) == 1 and self.fault == "hangs":
            assert self.aborted.wait(30), "nobody has ended it"
        if len(self.sent) == 1 and self.fault == "fails":
            raise RuntimeError("NCCL error: remote process exited")
        self.sent.append(int(tensor[0]))

    def destroy(self) -> None:
        self.aborted.set()


class Source(WeightSource):
    """Three tensors, and how many of them were asked for."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.asked = fails, 0

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, torch.float32, (1,)) for name in NAMES]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for index, name in enumerate(NAMES):
            self.asked += 1
            if self.fails and index == 1:
                raise RuntimeError("gloo: connection closed by peer")
            yield name, torch.full((1,), float(index))


class Client:
    """Two engines, of which ``lost`` tells when and how one is lost: it is left out, and who waits is told."""

    def __init__(self, seconds: float = 30, lost: tuple[str, str] | None = None) -> None:
        self.seconds, self.lost, self.calls = seconds, lost, list[str]()
        self.left_out: dict[int, str] = {}
        self.on_loss: Callable[[str], None] | None = None

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.lost is not None and self.lost[0] == name:
            self.left_out[1] = self.lost[1]
            if self.on_loss is not None:
                self.on_loss("engine 1 died")

    def leave_out_others(self) -> None:
        self.left_out |= {index: ABORTED for index in (0, 1) if index not in self.left_out}

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call("init")

    def start_weight_update(self) -> None:
        self._call("start")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._call("update")

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call("finish")

    def load_adapter(self, adapter: Any) -> None:
        """There is none."""


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's code asks for the GPU's stream."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)


def sender_of(client: Client, group: Group | None, source: WeightSource) -> NCCLSender:
    sender = NCCLSender(client=client, source=source, packed=False)
    sender.model_update_group = group  # type: ignore[assignment]
    return sender


@pytest.mark.usefixtures("streams")
def test_without_a_fault_it_is_vllms_sender() -> None:
    client, group, source = Client(), Group(), Source()
    sender = sender_of(client, group, source)
    for _ in range(2):
        sender.send_weights()
    assert client.calls == ["start", "update", "finish"] * 2
    assert (group.sent, client.left_out, group.aborted.is_set()) == ([0, 1, 2] * 2, {}, False)
    assert sender.model_update_group is group and client.on_loss is None
    sender.shutdown()
    assert group.aborted.is_set(), "left when the engines are connected anew"


@pytest.mark.usefixtures("streams")
@pytest.mark.parametrize(
    ("fault", "lost", "seconds", "left_out"),
    [
        ("hangs", ("update", "died"), 30.0, {0: ABORTED, 1: "died"}),
        ("hangs", ("start", "stalled"), 30.0, {0: ABORTED, 1: "stalled"}),
        ("hangs", None, 0.1, {0: ABORTED, 1: ABORTED}),
        ("fails", None, 30.0, {0: ABORTED, 1: ABORTED}),
    ],
)
def test_a_transfer_that_breaks_ends_with_who_was_lost_and_the_source_is_read_to_its_end(
    fault: str, lost: tuple[str, str] | None, seconds: float, left_out: dict[int, str]
) -> None:
    """The other ranks of the trainer gather every tensor with this one, whatever becomes of it."""
    client, group, source, begun = Client(seconds, lost), Group(fault), Source(), time.monotonic()
    sender = sender_of(client, group, source)
    sender.send_weights()
    assert time.monotonic() - begun < 10
    assert (client.left_out, source.asked, group.aborted.is_set()) == (left_out, 3, True)
    assert sender.model_update_group is None and client.on_loss is None
    source.asked = 0
    sender.send_weights()
    assert source.asked == 3, "without a group nothing is sent, and the others gather as before"


@pytest.mark.usefixtures("streams")
def test_an_error_of_the_trainers_own_ranks_is_raised() -> None:
    client, group = Client(), Group()
    with pytest.raises(RuntimeError, match="gloo: connection closed"):
        sender_of(client, group, Source(fails=True)).send_weights()
    assert client.left_out == {} and client.on_loss is None


INFO = NCCLTrainerInitInfo(rank=0, master_address="127.0.0.1", master_port=1, world_size=3, packed=False)


@pytest.mark.parametrize(
    ("lost", "error", "left_out"),
    [
        (("init", "died"), None, {0: ABORTED, 1: "died"}),
        (None, RuntimeError("NCCL error: unhandled system error"), {0: ABORTED, 1: ABORTED}),
    ],
)
def test_a_rendezvous_to_which_an_engine_does_not_come_is_given_up(
    lost: tuple[str, str] | None, error: Exception | None, left_out: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()

    def meet(info: Any) -> Any:
        if error is not None:
            raise error
        never.wait(30)

    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", meet)
    client, source, begun = Client(lost=lost), Source(), time.monotonic()
    sender = NCCLSender.trainer_init(INFO, client=client, source=source)
    assert time.monotonic() - begun < 10
    assert sender.model_update_group is None and client.left_out == left_out
    sender.send_weights()
    assert source.asked == 3 and client.calls == ["init"]
    never.set()


@pytest.mark.usefixtures("streams")
def test_a_rendezvous_that_succeeds_gives_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    group, client = Group(), Client()
    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda info: group)
    sender = NCCLSender.trainer_init(INFO, client=client, source=Source())
    sender.send_weights()
    assert (group.sent, client.calls) == ([0, 1, 2], ["init", "start", "update", "finish"])


class Worker(HeldWeights):
    """vLLM's worker as far as it receives: from a group that hangs where it has a ``fault``."""

    def __init__(self, fault: str = "") -> None:
        self.group, self.calls = Group(fault), list[str]()
        self.weight_transfer_engine = SimpleNamespace(shutdown=self.shutdown)

    def shutdown(self) -> None:
        self.calls.append("shutdown")
        self.group.destroy()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.calls.append("init")
        if self.group.fault == "hangs":
            threading.Event().wait(2)
        if self.group.fault == "fails":
            raise RuntimeError("the store timed out")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        if self.group.fault == "bug":
            raise RuntimeError("a tensor of another shape")
        for index in range(3):
            self.group.broadcast(torch.full((1,), float(index)), src=0)


def test_a_worker_receives_or_ends_its_wait() -> None:
    assert Worker().receive_within({}, 30) is True
    for fault, seconds in (("hangs", 0.1), ("fails", 30.0)):
        worker = Worker(fault)
        assert worker.receive_within({}, seconds) is False
        assert worker.calls == ["shutdown"], "its communicator is destroyed"
    with pytest.raises(RuntimeError, match="another shape"):
        Worker("bug").receive_within({}, 30)


def test_a_worker_that_waits_for_another_engine_is_told_that_this_one_is_lost() -> None:
    worker, begun = Worker("hangs"), time.monotonic()
    worker.abort_receiving()  # nothing waits yet
    thread = threading.Timer(0.1, worker.abort_receiving)
    thread.start()
    assert worker.receive_within({}, 30) is False and time.monotonic() - begun < 10


def test_a_worker_leaves_its_last_group_before_it_joins_another() -> None:
    worker = Worker()
    assert worker.join_sender({}, None) and worker.join_sender({}, 30)
    assert worker.calls == ["shutdown", "init"] * 2
    assert not Worker("hangs").join_sender({}, 0.1)
    failing = Worker("fails")
    assert not failing.join_sender({}, 30)
    assert failing.calls == ["shutdown", "init", "shutdown"]
