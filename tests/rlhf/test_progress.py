"""Tests of the count of a process's progress, with a clock that is set by hand."""

from __future__ import annotations

import numpy as np
import torch

from rlhf.progress import PROGRESS, Progress
from rlhf.roles import role as role_module
from rlhf.roles.role import forward_part


def test_the_time_since_the_last_part_is_told() -> None:
    now = [100.0]
    progress = Progress(lambda: now[0])
    now[0] += 5
    assert (progress.parts, progress.idle()) == (0, 5.0)
    progress.part_done()
    now[0] += 2
    assert (progress.parts, progress.idle()) == (1, 2.0)


def test_each_micro_batch_of_a_forward_pass_is_a_part(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(role_module, "pack_row", lambda sequences, samples, device: len(samples))
    before, seen = PROGRESS.parts, list[int]()

    def compute(row: object) -> torch.Tensor:
        seen.append(PROGRESS.parts - before)
        return torch.full((int(row),), 2.0)  # type: ignore[call-overload]

    found = forward_part(None, [[3, 1], [0], [2]], torch.device("cpu"), compute)  # type: ignore[arg-type]
    assert (seen, PROGRESS.parts - before) == ([0, 1, 2], 3)
    assert found.samples.tolist() == [3, 1, 0, 2] and np.all(found.values == 2.0)
