"""Answers from passages by the commands that users type: data, index, a short training, and vLLM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.travel.passages import main as make_passages
from rlhf.storage.jsonl import read_lines, to_line
from tests.end_to_end.small import ROOT, rlhf

RECIPE = ROOT / "examples" / "travel" / "retrieval.yaml"
QUESTIONS = ("About the Amber Inn: What is the price?", "琥珀亭の値段は？")


@pytest.mark.slow
def test_a_model_that_learned_to_quote_answers_from_the_passages_that_are_found(tmp_path: Path) -> None:
    """One minute: only an engine shows that the trained model, the retrieved prompt and the form of answers fit."""
    make_passages(["--out", str(tmp_path)])
    rows = (tmp_path / "questions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "questions.jsonl").write_text("".join(rows[::2]), encoding="utf-8")
    settings = [
        str(RECIPE),
        f"runs_dir={tmp_path / 'runs'}",
        *(f"retrieval.{name}={tmp_path / name}.jsonl" for name in ("passages", "questions")),
        *(f"retrieval.{name}={tmp_path / name}" for name in ("dataset", "index")),
        f"data.demonstrations={tmp_path / 'dataset' / 'train.jsonl'}",
        "sft.epochs=3",
        "sft.optimizer.warmup_steps=10",
        "rollout.memory_gib=0.1",
    ]
    (tmp_path / "asked.jsonl").write_text("".join(to_line({"question": question}) for question in QUESTIONS))
    for command in ("retrieval build", "retrieval index", "sft"):
        done = rlhf(*command.split(), *settings)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    out = tmp_path / "answers.jsonl"
    asked = ["--questions", str(tmp_path / "asked.jsonl"), "--out", str(out)]
    done = rlhf("retrieval", "ask", *settings, *asked)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    first, second = read_lines(out)
    assert (first["question"], second["question"]) == QUESTIONS
    passages = {row["id"]: row["text"] for row in read_lines(tmp_path / "passages.jsonl")}
    assert first["context_ids"][0] == "Amber Inn" and len(first["contexts"]) == 4
    assert [passages[name] for name in first["context_ids"]] == first["contexts"]
    assert "<ANSWER>:" in first["response"] and first["response"].rpartition("<ANSWER>:")[2].strip() == first["answer"]
    assert first["quotes"] and all(
        f"##begin_quote##{quote}##end_quote##" in first["response"] for quote in first["quotes"]
    )
    again = rlhf("retrieval", "ask", *settings, "--question", QUESTIONS[0])
    assert again.returncode == 0, again.stderr[-3000:]
    assert json.loads(again.stdout.splitlines()[-1])["answer"] == first["answer"]  # at temperature 0.01
