"""Tests of a publish with engines that fail: actors that take weights, die or hang, without a model."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import ray
import torch

from actors.weight_client import EngineClient
from rlhf.errors import LostError, MachineryError
from rlhf.weights.aborts import ABORTED
from rlhf.weights.memory_file import MemoryFile
from rlhf.weights.shared_memory import write_chunk


class Engine:
    """Fake engine that takes weights; ``fault`` is what it does at the second chunk instead."""

    def __init__(self, fault: str) -> None:
        self.fault, self.calls = fault, []  # type: ignore[var-annotated]

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.calls.append(init_info)

    async def start_weight_update(self) -> None:
        self.calls.append("start")

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        self.calls.append(update_info)
        if update_info["chunk"] == 1:
            await self._fail()

    async def _fail(self) -> None:
        if self.fault == "dies":
            os._exit(1)
        if self.fault == "hangs":
            await asyncio.sleep(60)
        if self.fault == "child dies":
            raise LostError("vLLM failed", ("rollout engine 0",), "died")
        if self.fault == "bug":
            raise MachineryError("a tensor of another shape")

    async def finish_weight_update(self) -> None:
        self.calls.append("finish")

    async def seen(self) -> list[Any]:
        return self.calls


def publish(faults: list[str], seconds: float = 30) -> tuple[EngineClient, list[Any]]:
    """An update of two chunks to engines with these faults; the client, and the engines that are left."""
    engines = [ray.remote(Engine).options(num_cpus=0).remote(fault) for fault in faults]
    ray.get([engine.seen.remote() for engine in engines], timeout=60)
    client = EngineClient(engines, 2, 30)
    client.init_weight_transfer_engine({"rank_offset": 1})
    client.seconds = seconds
    client.start_weight_update()
    for chunk in (0, 1):
        client.update_weights({"chunk": chunk})
    client.finish_weight_update()
    return client, engines


def test_engines_that_are_lost_are_told_by_place_with_how_and_asked_no_more(local_ray: None) -> None:
    client, engines = publish(["dies", "hangs", "", "child dies"], seconds=2)
    assert client.left_out == {0: "died", 1: "stalled", 3: "died"}
    started = [{"rank_offset": 5}, "start", {"chunk": 0}, {"chunk": 1}]
    assert ray.get(engines[2].seen.remote(), timeout=30) == [*started, "finish"]
    assert ray.get(engines[1].seen.remote(), timeout=30)[1:] == started[1:], "it is late, and not asked to finish"


class Host:
    """Takes chunks; ``sees_files`` as an engine on the sender's own host does."""

    def __init__(self, sees_files: bool) -> None:
        self.sees_files, self.taken = sees_files, []  # type: ignore[var-annotated]

    async def update_weights(self, update_info: dict[str, Any], content: np.ndarray | None = None) -> bool:
        self.taken.append(None if content is None else content.tolist())
        return self.sees_files or content is not None

    async def seen(self) -> list[Any]:
        return self.taken


def test_engines_on_other_hosts_are_sent_what_is_in_the_file(local_ray: None) -> None:
    engines = [ray.remote(Host).options(num_cpus=0).remote(sees_files) for sees_files in (True, False)]
    client, file = EngineClient(engines, 1, 30), MemoryFile()
    for chunk in ([1, 2], [3]):
        client.update_weights(asdict(write_chunk(file, [("bytes", torch.tensor(chunk, dtype=torch.uint8))])))
    file.close()
    assert ray.get(engines[0].seen.remote(), timeout=30) == [None, None]
    assert ray.get(engines[1].seen.remote(), timeout=30) == [None, [1, 2], [3]], "asked once whether it sees files"


def test_where_nobody_is_lost_nobody_is_left_out(local_ray: None) -> None:
    assert publish(["", ""])[0].left_out == {}


def test_a_bug_in_an_engine_is_no_loss(local_ray: None) -> None:
    with pytest.raises(ray.exceptions.RayTaskError, match="a tensor of another shape"):
        publish(["", "bug"])


class Member:
    """An engine of a group: it receives when all do, or ends its wait when it is told to or its limit is over."""

    def __init__(self, fault: str) -> None:
        self.fault, self.calls, self.aborted = fault, list[str](), asyncio.Event()

    async def init_weight_transfer_engine(self, init_info: dict[str, Any], seconds: float) -> None:
        self.calls.append(f"init {init_info['rank_offset']} within {seconds:.1f}")

    async def start_weight_update(self) -> None:
        self.calls.append("start")
        if self.fault == "dies at start":
            os._exit(1)

    async def update_weights(self, update_info: dict[str, Any], content: None, seconds: float) -> bool:
        self.calls.append(f"update within {seconds:.1f}")
        if self.fault == "dies":
            os._exit(1)
        if self.fault == "hangs":
            await asyncio.sleep(60)
        if self.fault:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.aborted.wait(), seconds)
            raise LostError("ended", (), ABORTED)
        return True

    async def abort_transfer(self) -> None:
        self.calls.append("abort")
        self.aborted.set()

    async def finish_weight_update(self) -> None:
        self.calls.append("finish")

    async def seen(self) -> list[Any]:
        return self.calls


def publish_to_group(faults: list[str], seconds: float) -> tuple[EngineClient, list[Any], list[str]]:
    """An update of a group; the client, the engines, and what the sender was told."""
    engines, told = [ray.remote(Member).options(num_cpus=0).remote(fault) for fault in faults], list[str]()
    ray.get([engine.seen.remote() for engine in engines], timeout=60)
    client = EngineClient(engines, 2, 40, is_group=True)
    client.init_weight_transfer_engine({"rank_offset": 1})
    client.seconds, client.on_loss = seconds, told.append
    client.start_weight_update()
    client.update_weights({"names": []})
    client.finish_weight_update()
    return client, engines, told


def test_in_a_group_the_loss_of_one_ends_the_wait_of_all(local_ray: None) -> None:
    begun = time.monotonic()
    client, engines, told = publish_to_group(["waits", "dies"], 30)
    assert time.monotonic() - begun < 20
    assert client.left_out == {0: ABORTED, 1: "died"}
    assert len(told) == 1 and "engine 1 of 2 died" in told[0]
    calls = ["init 1 within 36.0", "start", "update within 27.0", "abort"]
    assert ray.get(engines[0].seen.remote(), timeout=30) == calls, "its update stays open: the next one closes it"


def test_in_a_group_one_that_hangs_is_late_and_those_that_wait_for_it_are_not(local_ray: None) -> None:
    client, _, told = publish_to_group(["waits", "hangs"], 2)
    assert client.left_out == {0: ABORTED, 1: "stalled"}
    assert len(told) == 1 and "no answer within 2 s" in told[0]


def test_in_a_group_nothing_is_sent_once_one_is_lost(local_ray: None) -> None:
    client, engines, told = publish_to_group(["", "dies at start"], 30)
    assert client.left_out == {1: "died"} and len(told) == 1
    assert ray.get(engines[0].seen.remote(), timeout=30)[1:] == ["start"]
    client.leave_out_others()
    assert client.left_out == {0: ABORTED, 1: "died"}


def test_a_group_of_sound_engines_receives_as_others_do(local_ray: None) -> None:
    client, engines, told = publish_to_group(["", ""], 30)
    assert (client.left_out, told) == ({}, [])
    assert ray.get(engines[1].seen.remote(), timeout=30) == [
        "init 3 within 36.0",
        "start",
        "update within 27.0",
        "finish",
    ]
