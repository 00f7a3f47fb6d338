"""Tests of the count of a process's progress, with a clock that is set by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.progress import PROGRESS, Progress
from rlhf.roles import role as role_module
from rlhf.roles.role import forward_part
from rlhf.zero.engine import ZeroEngine


class Counted:
    """Notes how many parts were complete at each call."""

    def __init__(self) -> None:
        self.before, self.seen = PROGRESS.parts, list[int]()

    def note(self) -> None:
        self.seen.append(PROGRESS.parts - self.before)


def test_the_time_since_the_last_part_is_told() -> None:
    now = [100.0]
    progress = Progress(lambda: now[0])
    now[0] += 5
    assert (progress.parts, progress.idle()) == (0, 5.0)
    progress.part_done()
    now[0] += 2
    assert (progress.parts, progress.idle()) == (1, 2.0)


def test_each_micro_batch_of_a_forward_pass_is_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(role_module, "pack_row", lambda sequences, samples, device: samples)
    counted = Counted()

    def compute(row: Any) -> torch.Tensor:
        counted.note()
        return torch.full((len(row),), 2.0)

    found = forward_part(None, [[3, 1], [0], [2]], torch.device("cpu"), compute)  # type: ignore[arg-type]
    assert counted.seen == [0, 1, 2] and PROGRESS.parts == counted.before + 3
    assert found.samples.tolist() == [3, 1, 0, 2] and np.all(found.values == 2.0)


def test_each_micro_batch_of_an_update_is_a_part() -> None:
    counted, nothing = Counted(), lambda *_: None
    engine: Any = SimpleNamespace(
        set_gradient_accumulation_boundary=nothing,
        backward=lambda loss: counted.note(),
        get_lr=lambda: [0.1],
        step=nothing,
        get_global_grad_norm=lambda: 1.0,
    )
    made: Any = object.__new__(ZeroEngine)
    made.engine, made.world, made.tensor_ranks, made.stage = engine, 1, 1, 1
    made.offloader, made.finite = SimpleNamespace(reload=nothing), SimpleNamespace(require=nothing)
    assert made.update([1.0, 2.0, 3.0], torch.tensor, 1) == 1.0
    assert counted.seen == [0, 1, 2] and PROGRESS.parts == counted.before + 3
