"""Tests of answers as text, with prompts that have no answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors import answering
from actors.answering import _unrecorded, answers_of, running_engines
from actors.rollout import BlockSummary
from actors.supervisor import Supervisor
from actors.waiting import PhaseContext
from rlhf.config.schema import Recipe, RecoveryConfig
from rlhf.errors import LostError, MachineryError
from rlhf.tracking.console import ignore_progress

TOLD = (
    BlockSummary(stream="", tokens=0, positions=(3, 0), set_aside=(), faults=()),
    BlockSummary(
        stream="", tokens=0, positions=(1, 2), set_aside=(2,), faults=((72, "the prompt terminated the engine"),)
    ),
    BlockSummary(stream="", tokens=0, positions=(4,), set_aside=(4,), faults=((74, "too long"),)),
)


class Engines:
    """Answers that are written down, under a real supervisor."""

    def __init__(self, bad_samples: int) -> None:
        self.events: list[tuple[str, Any, Any]] = []
        recipe = Recipe(name="x", recovery=RecoveryConfig(bad_samples=bad_samples))
        self.supervisor = Supervisor(recipe, self._report)

    def _report(self, kind: str, **details: Any) -> None:
        self.events.append((kind, details["prompt"], details["reason"]))

    def generate(
        self, indices: Sequence[int], seeds: Sequence[int], context: PhaseContext
    ) -> Iterator[tuple[int, BlockSummary]]:
        yield from enumerate(TOLD)

    def decode(self, tokenizer_folder: Path, block: int, context: PhaseContext) -> dict[int, str]:
        """A set-aside sample is text as well: whatever its end token is."""
        return {place: f"answer {place}" for place in TOLD[block].positions}


def answers(engines: Any) -> list[str]:
    return answers_of(engines, range(70, 75), Path(), ignore_progress)


def test_a_prompt_that_was_set_aside_has_an_empty_answer_and_is_reported() -> None:
    engines = Engines(bad_samples=2)
    assert answers(engines) == ["answer 0", "answer 1", "", "answer 3", ""]
    assert engines.events == [
        ("sample_set_aside", 72, "the prompt terminated the engine"),
        ("sample_set_aside", 74, "too long"),
    ]


def test_there_is_a_limit_to_that() -> None:
    with pytest.raises(MachineryError, match=r"2 samples were quarantined, more than recovery\.bad_samples = 1"):
        answers(Engines(bad_samples=1))


def test_a_command_without_a_record_says_which_prompt_has_no_answer(capsys: pytest.CaptureFixture[str]) -> None:
    _unrecorded("sample_set_aside", prompt=72, reason="too long", phase="answers", step=None)
    assert capsys.readouterr().err == "no answer to prompt 72: too long\n"


def test_a_loss_is_shown_to_whoever_waits_for_the_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines, name = list[str](), "rollout engine 0"
    recipe = Recipe(name="x", recovery=RecoveryConfig(backoff_seconds=0.0))
    session: Any = SimpleNamespace(
        recipe=recipe, device="cpu", gpus=0, longest=8, end_tokens=lambda folder: [1], check=lambda: None,
        console=SimpleNamespace(notice=lines.append),
    )  # fmt: skip
    nothing = {"ready": lambda prompts: None, "stop": lambda: None, "release": lambda: None}
    monkeypatch.setattr(answering, "Placement", lambda *_: SimpleNamespace(**nothing))
    monkeypatch.setattr(answering, "Engines", lambda *given, publishes: SimpleNamespace(**nothing, supervisor=given[6]))
    with running_engines(session, tmp_path, [], tmp_path) as engines:
        engines.supervisor.started(name, None)
        engines.supervisor.handle_loss(
            LostError("it died", (name,), "died", "it died", (name,)), PhaseContext(phase="x")
        )
    assert len(lines) == 1 and lines[0].startswith(f"{name} died during x")
