"""One part of ``benchmarks.gpu``, in a process of its own: ``python -m benchmarks.gpu_parts PART FOLDER WORK DEVICE``.

The last line of the output is a JSON object. Seconds are medians over the steps after the first.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import models
from benchmarks.floor import Engine, Floor, PartsClock, prompt_tokens
from benchmarks.gpu import STEPS
from benchmarks.workload import Workload
from rlhf.device import Device, gpu_of_process, peak_memory_gib, wait_for_device

COPIED = {"cuda": 4 * 2**30, "cpu": 2**28}
"""Bytes of the copy."""


def make(folder: Path, work: Workload, device: Device) -> dict[str, Any]:
    """Write the models; returns the machine."""
    models.make(work, folder, device)
    gpu = gpu_of_process(device)
    return {"gpu": gpu[0] if gpu else None, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}


def copy(folder: Path, work: Workload, device: Device) -> dict[str, Any]:
    """Bytes per second of a copy within the device's memory, and the bytes of the policy's weights."""
    source = torch.ones(COPIED[device], dtype=torch.uint8, device=device)
    target, seconds = torch.empty_like(source), []
    for _ in range(5):
        wait_for_device(source.device)
        begin = time.perf_counter()
        target.copy_(source)
        wait_for_device(source.device)
        seconds.append(time.perf_counter() - begin)
    weights = sum(path.stat().st_size for path in (folder / work.models / "policy").glob("*.safetensors"))
    return {"copy_bytes_per_second": COPIED[device] / min(seconds), "weight_bytes": weights}


def generate(folder: Path, work: Workload, device: Device) -> dict[str, Any]:
    """Seconds and tokens of bare vLLM."""
    engine, prompts = Engine(folder / work.models, work, device), prompt_tokens(folder / work.models, work)
    seconds = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        responses = engine.generate(prompts)
        seconds.append(time.perf_counter() - begin)
    median, tokens = statistics.median(seconds[1:]), sum(map(len, responses))
    return {"generate": median, "tokens_per_second": tokens / median}


def train(folder: Path, work: Workload, device: Device) -> dict[str, Any]:
    """Seconds of scoring and updates in bare PyTorch, on random responses of the longest length."""
    floor, prompts, found = Floor(folder / work.models, work, device), prompt_tokens(folder / work.models, work), []
    draw = torch.Generator().manual_seed(0)
    responses = torch.randint(2, floor.policy.config.vocab_size, (work.samples, work.new), generator=draw).tolist()
    for _ in range(STEPS):
        clock = PartsClock(floor.device)
        experience = floor.experience(*floor.pad(prompts, responses))
        clock.mark("score")
        floor.update(experience)
        clock.mark("update")
        found.append(clock.parts)
    medians = {part: statistics.median(each[part] for each in found[1:]) for part in ("score", "update")}
    return {**medians, "peak_gib": peak_memory_gib(device)}


PARTS = {"make": make, "copy": copy, "generate": generate, "train": train}

if __name__ == "__main__":
    _name, _folder, _work, _device = sys.argv[1:]
    print(json.dumps(PARTS[_name](Path(_folder), Workload.from_argument(_work), _device)))  # type: ignore[arg-type]
