"""What the user sees of PPO outside its steps: the held-out answers and the model that is saved."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors import ppo
from rlhf.tracking.console import Console, Report


def test_answers_and_the_save_are_phases_and_answers_have_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers_of(engines: object, indices: Sequence[int], folder: Path, report: Report) -> list[str]:
        report(len(indices), {})
        return ["yes"] * len(indices)

    monkeypatch.setattr(ppo, "answers_of", answers_of)
    out, phases = io.StringIO(), list[str]()
    session: Any = SimpleNamespace(
        console=Console(out), policy_start=tmp_path, tokenizer=SimpleNamespace(save_pretrained=lambda folder: None)
    )
    actors: Any = SimpleNamespace(
        engines=None,
        save=lambda folder, context: phases.append(f"saved in {context.phase}"),
        supervisor=SimpleNamespace(enter_phase=lambda context: phases.append(context.phase)),
    )
    policy = ppo._policy(session, actors, range(5, 8))
    assert policy.answers() == ["yes"] * 3
    policy.save(tmp_path)
    assert phases == ["answers", "save", "saved in save"]
    assert out.getvalue().startswith("Answering held-out prompts  3/3")
