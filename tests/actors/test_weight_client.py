"""Tests of a publish with engines that fail: actors that take weights, die or hang, without a model."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors.weight_client import EngineClient
from rlhf.errors import LostError, MachineryError


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


def test_engines_on_other_hosts_are_sent_what_is_in_the_file(local_ray: None, tmp_path: Path) -> None:
    engines = [ray.remote(Host).options(num_cpus=0).remote(sees_files) for sees_files in (True, False)]
    client = EngineClient(engines, 1, 30)
    for chunk in (bytes([1, 2]), bytes([3])):
        (tmp_path / "chunk").write_bytes(chunk)
        client.update_weights({"path": str(tmp_path / "chunk")})
    assert ray.get(engines[0].seen.remote(), timeout=30) == [None, None]
    assert ray.get(engines[1].seen.remote(), timeout=30) == [None, [1, 2], [3]], "asked once whether it sees files"


def test_where_nobody_is_lost_nobody_is_left_out(local_ray: None) -> None:
    assert publish(["", ""])[0].left_out == {}


def test_a_bug_in_an_engine_is_no_loss(local_ray: None) -> None:
    with pytest.raises(ray.exceptions.RayTaskError, match="a tensor of another shape"):
        publish(["", "bug"])
