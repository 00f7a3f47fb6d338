"""The best of n answers: how it is chosen, what is written, and that SFT reads it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import launch.best_of
from actors.answering import SampledAnswers
from actors.session import Session
from launch.best_of import best_answers, demonstration, generate_best_of, read_best_of
from rlhf.config.load import load_recipe
from rlhf.config.schema import DataConfig, RewardSourceConfig, ScratchConfig
from rlhf.data.formats import load_demonstrations
from rlhf.errors import UserError
from rlhf.models.scratch import make_scratch
from rlhf.records import Message, PromptRow, RowLocation
from rlhf.tracking.console import Console
from rlhf.types import FinishReason, Prompt, Rollout, RolloutBlock
from tests.end_to_end.small import RECIPE, make_small_data, overrides

NOWHERE = RowLocation(file="p.jsonl", line=1)


def test_the_best_finished_answer_of_each_prompt_is_chosen_and_of_equal_ones_the_first() -> None:
    """Prompt 0: 1, 3, 3; prompt 1: the 9 is truncated, 2 remains; prompt 2: none is finished; prompt 3: negative."""
    scores = np.array([1, 3, 3, 9, 2, 5, -4, -3.0])
    prompts, finished = np.array([0, 0, 0, 1, 1, 2, 3, 3]), np.array([1, 1, 1, 0, 1, 0, 1, 1], dtype=bool)
    assert best_answers(scores, prompts, finished) == [1, 4, 7]
    assert best_answers(scores, prompts, np.zeros(8, dtype=bool)) == []


def test_rows_are_those_that_sft_reads(tmp_path: Path) -> None:
    chat = (Message("system", "Be brief."), Message("user", "Why?"))
    variables = {"tools": [{"type": "function"}], "enable_thinking": False}
    rows = [
        PromptRow("Once", NOWHERE),
        PromptRow(chat, NOWHERE),
        PromptRow(chat, NOWHERE, variables=variables),
    ]
    lines = [json.dumps(demonstration(row, f"answer {i}", i / 2)) for i, row in enumerate(rows)]
    (tmp_path / "best.jsonl").write_text("\n".join(lines) + "\n")
    read = load_demonstrations(DataConfig(demonstrations=str(tmp_path / "best.jsonl"))).rows
    assert [row.prompt for row in read] == ["Once", chat, chat]
    assert [row.completion for row in read] == ["answer 0", *(Message("assistant", f"answer {i}") for i in (1, 2))]
    assert [dict(row.variables) for row in read] == [{}, {}, variables]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and a model folder."""
    path = tmp_path_factory.mktemp("best")
    make_small_data(path)
    make_scratch(ScratchConfig(hidden_size=32, layers=1, heads=1, vocab_size=258), [], path / "policy", seed=0)
    (path / "two.jsonl").write_text('{"prompt": "One"}\n{"prompt": "Two"}\n')
    return path


PARTS = "rewards={good: {function: '@:f', weight: 2}, short: {function: '@:g'}, gold: {function: '@:h', weight: 0}}"
"""Where @ is the file of the functions."""


def session(root: Path, *settings: str) -> Session:
    (root / "judge.py").write_text("f = g = h = lambda prompts, responses: [0.0 for _ in responses]\n")
    parts = PARTS.replace("@", f"{root}/judge.py")
    recipe = load_recipe(RECIPE, [*overrides(root, "x"), parts, *settings])
    return Session(recipe=recipe, console=Console(sys.stdout), device="cpu", gpus=0)


def answered(prompts: tuple[Prompt, ...], each: int, reasons: list[FinishReason]) -> SampledAnswers:
    rollouts = [
        Rollout(
            prompt=prompts[i // each],
            tokens=np.array([i], dtype=np.int32),
            logprobs=np.zeros(1, dtype=np.float32),
            mask=np.ones(1, dtype=bool),
            weight_version=0,
            finish_reason=reason,
            seed=i,
        )
        for i, reason in enumerate(reasons)
    ]
    return SampledAnswers(rollouts=RolloutBlock.pack(rollouts), texts=tuple(f"text {i}" for i in range(len(rollouts))))


def choose(root: Path, monkeypatch: pytest.MonkeyPatch, reasons: list[FinishReason], out: str) -> list[dict[str, Any]]:
    """Three answers to each of two prompts. Scores are 2 · good + short; ``gold`` has no weight and is not computed."""
    scores = {"good": [1, 2, 0, 5, np.nan, 4], "short": [0, 0, 5, 0, 9, 3]}

    def sample(session: Any, folder: Path, prompts: Any, each: int, seed: int, logs: Path) -> SampledAnswers:
        assert (each, [prompt.id for prompt in prompts]) == (3, [0, 1])
        return answered(prompts, each, reasons)

    def score(session: Any, source: RewardSourceConfig, answers: Any, prompts: Any, logs: Path, title: str) -> Any:
        return np.array(scores[title.removeprefix("Scores ")], dtype=np.float32)

    monkeypatch.setattr(launch.best_of, "sample_answers", sample)
    monkeypatch.setattr(launch.best_of, "score_answers", score)
    task = read_best_of(session(root), str(root / "policy"), str(root / "two.jsonl"), str(root / out), 3)
    generate_best_of(task)
    return [json.loads(line) for line in (root / out).read_text().splitlines()]


STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def test_the_rewards_of_the_recipe_choose_among_finished_answers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt 0: 2, 4 and 5. Prompt 1: 10 is truncated, the second has no score, 11 remains."""
    rows = choose(root, monkeypatch, [STOP, STOP, STOP, LENGTH, STOP, STOP], "best.jsonl")
    assert rows == [
        {"prompt": "One", "completion": "text 2", "score": 5},
        {"prompt": "Two", "completion": "text 5", "score": 11},
    ]


def test_a_prompt_without_a_finished_answer_is_left_out(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = choose(root, monkeypatch, [LENGTH] * 3 + [LENGTH, STOP, STOP], "one.jsonl")
    assert [row["completion"] for row in rows] == ["text 5"]
    printed = capsys.readouterr().out
    assert "prompts without a finished answer, left out" in printed
    assert "not known: prompts were left out" in printed and "warning" not in printed  # half of the prompts
    with pytest.raises(UserError, match=r"none of 6 answers is finished and has a score"):
        choose(root, monkeypatch, [LENGTH] * 6, "none.jsonl")
    assert not (root / "none.jsonl").exists()


def test_most_prompts_without_a_finished_answer_are_a_warning(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "three.jsonl").write_text('{"prompt": "One"}\n{"prompt": "Two"}\n{"prompt": "Three"}\n')
    monkeypatch.setattr(launch.best_of, "score_answers", lambda *_: np.zeros(6, dtype=np.float32))
    reasons = [LENGTH] * 5 + [STOP]
    monkeypatch.setattr(launch.best_of, "sample_answers", lambda _s, _m, prompts, n, *_: answered(prompts, n, reasons))
    generate_best_of(
        read_best_of(session(root), str(root / "policy"), str(root / "three.jsonl"), str(root / "few.jsonl"), 2)
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert "warning: 2 of 3 prompts have no finished answer; raise rollout.max_response_length" in printed


@pytest.mark.parametrize(
    ("answers", "out", "settings", "message"),
    [
        (1, "best.jsonl", [], "--best-of 1 has no choice"),
        (4, None, [], "--best-of without --out"),
        (4, "best.jsonl", ["rewards={}"], "rewards has no part"),
        (4, "best.jsonl", ["rewards={model: {model: trained}}"], "rlhf reward"),
    ],
)
def test_what_cannot_choose_is_refused(
    answers: int, out: str | None, settings: list[str], message: str, root: Path
) -> None:
    given = None if out is None else str(root / "refused.jsonl")
    with pytest.raises(UserError, match=message):
        read_best_of(session(root, *settings), str(root / "policy"), str(root / "two.jsonl"), given, answers)
