"""Exact match after training on answers from passages (RAFT), and after plain SFT on the same questions and answers.

    python -m examples.keys.run

Both arms start from the same base model, which can copy but has seen no key, with the same questions, epochs and
optimizer. The evaluation questions are about documents that are in no training data, with the oracle among 4
distractors; the plain arm is asked with the same passages, and once more without passages, as it was trained.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.commands import give_command
from examples.keys.corpus import write_corpus
from rlhf.errors import RLHFError
from rlhf.evaluation.bootstrap import Estimate
from rlhf.evaluation.metric_table import MetricScores, summarise
from rlhf.retrieval.answers import extract_answer
from rlhf.storage.jsonl import read_lines, to_line

RECIPE, TEMPLATE = (Path(__file__).with_name(name) for name in ("recipe.yaml", "prompt.jinja"))
EVALUATED = 300
"""Evaluation questions."""
LEAST_GAIN = 0.2


@dataclass(frozen=True, kw_only=True)
class KeyArm:
    """A model and the evaluation prompts that it is asked."""

    name: str
    run: str
    prompts: str


ARMS = (
    KeyArm(name="plain SFT, without passages", run="plain", prompts="questions_only"),
    KeyArm(name="plain SFT, with passages", run="plain", prompts="with_passages"),
    KeyArm(name="RAFT", run="raft", prompts="with_passages"),
)


def run(folder: Path, documents: int, seed: int, settings: Sequence[str]) -> MetricScores:
    """Train the base model and both arms, and return the exact match of each arm's answer to each question.

    Args:
        settings: of the recipe, for both arms.

    Raises:
        MachineryError: a command failed.
    """
    data, runs = folder / "data", folder / "runs"
    write_corpus(data, documents, seed)
    places = [f"retrieval.{name}={data / name}.jsonl" for name in ("passages", "questions")]
    places += [
        f"retrieval.dataset={data}/dataset",
        f"retrieval.template={TEMPLATE}",
        f"runs_dir={runs}",
        f"seed={seed}",
    ]
    given, log = [str(RECIPE), *places, *settings], folder / "log.txt"
    give_command("rlhf retrieval build", ["retrieval", "build", *given], log)
    _write_plain(data)
    base = ["model.scratch=null", f"model.path={runs}/base/sft/model"]
    give_command("rlhf sft, base", ["sft", *given, "name=base", f"data.demonstrations={data}/repeats.jsonl"], log)
    for name, file in (("raft", "dataset/train"), ("plain", "plain")):
        tuned = ["sft", *given, *base, f"name={name}", f"data.demonstrations={data}/{file}.jsonl"]
        give_command(f"rlhf sft, {name}", tuned, log)
    expected = [row["answer"] for row in read_lines(data / "with_passages.jsonl")]
    columns = []
    for number, arm in enumerate(ARMS):
        model, out = f"{runs}/{arm.run}/sft/model", folder / f"answers_{number}.jsonl"
        asked = ["--model", model, "--prompts", f"{data}/{arm.prompts}.jsonl", "--out", str(out)]
        settings_of_model = ["name=answers", "model.scratch=null", f"model.path={model}"]
        give_command(f"rlhf generate, {arm.name}", ["generate", *given, *settings_of_model, *asked], log)
        answers = [extract_answer(row["response"]).strip() for row in read_lines(out)]
        columns.append([float(mine == right) for mine, right in zip(answers, expected, strict=True)])
    return MetricScores(name="exact match", values=np.array(columns).T)


def _write_plain(data: Path) -> None:
    """Write the plain arm's demonstrations, and the evaluation prompts of all arms."""
    train, held_out = (read_lines(data / "dataset" / f"{side}.jsonl") for side in ("train", "evaluation"))
    held_out = held_out[:EVALUATED]
    files = {
        "plain": [{"prompt": row["question"], "completion": f" {row['answer']}"} for row in train],
        "questions_only": [{"prompt": row["question"]} for row in held_out],
        "with_passages": [{"prompt": row["prompt"], "answer": row["answer"]} for row in held_out],
    }
    for name, rows in files.items():
        (data / f"{name}.jsonl").write_text("".join(map(to_line, rows)), encoding="utf-8")


def describe(scores: MetricScores) -> tuple[list[str], float]:
    """Lines about each arm's exact match and RAFT's gain, and the lower end of the smallest gain's interval."""
    items = np.arange(len(scores.values))
    lines, ends = [], []
    for number, arm in enumerate(ARMS):
        found = summarise(scores, [each.name for each in ARMS], number, items, seed=0)
        lines.append(f"{arm.name}: exact match {_interval(found[number].mean)}")
        gain = found[-1].difference
        if gain is not None:
            lines.append(f"RAFT above {arm.name}: {_interval(gain)}")
            ends.append(gain.value if gain.low is None else gain.low)
    return lines, min(end for end in ends if end is not None)


def _interval(found: Estimate) -> str:
    ends = "" if found.low is None else f" [{found.low:.3f}, {found.high:.3f}]"
    return f"{found.value:.3f}{ends}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code 1 if RAFT is not better by 20 points, by its interval."""
    parser = argparse.ArgumentParser(description="Exact match after RAFT and after plain SFT.")
    parser.add_argument("--runs", type=Path, default=Path("runs/keys"), help="folder of runs (default: %(default)s)")
    parser.add_argument("--documents", type=int, default=700, help="of 16 passages each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the recipe, for both arms")
    options = parser.parse_args(arguments)
    options.runs.mkdir(parents=True, exist_ok=True)
    try:
        lines, gain = describe(run(options.runs, options.documents, options.seed, options.settings))
    except RLHFError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print("\n".join(lines))
    (options.runs / "result.json").write_text(json.dumps({"lines": lines, "least_gain": gain}, indent=2) + "\n")
    return 0 if gain >= LEAST_GAIN else 1


if __name__ == "__main__":
    sys.exit(main())
