"""The arms: which model each one is, what it is trained on, and its answers to the held-out questions.

Every command is ``rlhf`` as a user gives it. A finished stage, and a file of answers that is there, is not made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from examples.commands import give_command
from examples.travel.compare.data import TEMPLATE, Sizes, write_data, write_quoted_comparisons
from rlhf.retrieval.answers import extract_answer
from rlhf.storage.jsonl import append_line, read_lines, to_line

RECIPE = Path(__file__).with_name("recipe.yaml")
TEMPERATURE = 0.7
"""Of the answers of all arms; PPO samples at 1."""
SECONDS = "seconds.jsonl"
"""File of the commands' durations, in a seed's folder."""
ADAPTERS = ("lora", ("model.lora={rank: 16, alpha: 32}", "sft.optimizer.lr=5.0e-3"))
"""Name and settings of the arm that trains adapters."""


@dataclass(frozen=True, kw_only=True)
class AnsweringArm:
    """A model, and whether it is shown retrieved passages."""

    name: str
    model: str
    """Run and stage whose model answers."""
    has_passages: bool
    about: str


ARMS = (
    AnsweringArm(name="base", model="base/sft", has_passages=False, about="the untouched base model"),
    AnsweringArm(
        name="base_passages",
        model="base/sft",
        has_passages=True,
        about="control: the base model with retrieved passages",
    ),
    AnsweringArm(name="sft", model="sft/sft", has_passages=False, about="fine-tuned on the demonstrations"),
    AnsweringArm(
        name="sft_passages", model="sft/sft", has_passages=True, about="control: the same model with retrieved passages"
    ),
    AnsweringArm(
        name=ADAPTERS[0],
        model=f"{ADAPTERS[0]}/sft",
        has_passages=False,
        about="adapters, trained on the same demonstrations",
    ),
    AnsweringArm(name="dpo", model="sft/dpo", has_passages=False, about="`sft`, then DPO on the comparisons"),
    AnsweringArm(
        name="raft",
        model="raft/sft",
        has_passages=True,
        about="fine-tuned on the demonstrations with passages, to quote and then answer (RAFT)",
    ),
    AnsweringArm(
        name="raft_ppo",
        model="raft/ppo",
        has_passages=True,
        about="`raft`, then a reward model of the comparisons, and PPO against it (RLHF)",
    ),
)
BASE = ARMS[0].name


def train(folder: Path, seed: int, sizes: Sizes) -> None:
    """Make the data of a seed, and train all arms' models in ``folder/runs``.

    Raises:
        MachineryError: a command failed; the message has the end of its output.
    """
    data = folder / "data"
    write_data(data, seed, sizes)
    base = folder / "runs" / "base" / "sft" / "model"
    tuned = ["model.scratch=null", f"model.path={base}"]
    plain = [*tuned, f"data.demonstrations={data}/demonstrations.jsonl"]
    compared = f"data.preferences={data}/comparisons.jsonl"
    _rlhf(folder, seed, "sft", "base", [f"data.demonstrations={data}/base.jsonl"])
    _rlhf(folder, seed, "sft", "sft", plain)
    _rlhf(folder, seed, "dpo", "sft", [*plain, compared])
    _rlhf(folder, seed, "sft", ADAPTERS[0], [*plain, *ADAPTERS[1]])
    _train_raft(folder, seed, sizes, tuned)


def _train_raft(folder: Path, seed: int, sizes: Sizes, tuned: list[str]) -> None:
    data = folder / "data"
    _rlhf(folder, seed, "retrieval build", "raft", [f"retrieval.passages={data}/known_passages.jsonl"])
    _rlhf(folder, seed, "retrieval index", "raft", [f"retrieval.passages={data}/passages.jsonl"])
    write_quoted_comparisons(data)
    settings = [
        *tuned,
        f"data.demonstrations={data}/dataset/train.jsonl",
        f"data.preferences={data}/quoted_comparisons.jsonl",
        f"data.prompts={data}/dataset/train.jsonl",
        f"ppo.steps={sizes.steps}",
    ]
    _rlhf(folder, seed, "pipeline", "raft", settings)


def answer_all(folder: Path, seed: int) -> None:
    """Have every arm answer the held-out questions, with one decoding, into ``folder/answers``.

    A prompt in these files is the item's, below the office's card; arms were asked without the card.

    Raises:
        MachineryError: a command failed.
    """
    (folder / "answers").mkdir(exist_ok=True)
    items = read_lines(folder / "data" / "items.jsonl")
    for kind, column in (("asked", "prompt"), ("question", "question")):
        rows = ({column: item[kind]} for item in items)
        (folder / "data" / f"{kind}.jsonl").write_text("".join(map(to_line, rows)), encoding="utf-8")
    for arm in ARMS:
        out = folder / "answers" / f"{arm.name}.jsonl"
        if not out.exists():
            given = _answer(folder, seed, arm)
            rows = (_answer_row(item, row) for item, row in zip(items, given, strict=True))
            out.write_text("".join(map(to_line, rows)), encoding="utf-8")


def _answer(folder: Path, seed: int, arm: AnsweringArm) -> list[dict[str, object]]:
    """The rows that ``rlhf`` writes for an arm."""
    model, raw = folder / "runs" / arm.model / "model", folder / "answers" / f"{arm.name}.raw"
    settings = [f"rollout.temperature={TEMPERATURE}", "model.scratch=null", f"model.path={model}"]
    if arm.has_passages:
        asked = ["--questions", f"{folder}/data/question.jsonl", f"retrieval.model={model}"]
        _rlhf(folder, seed, "retrieval ask", "answers", [*asked, *settings, "--out", str(raw)])
    else:
        asked = ["--prompts", f"{folder}/data/asked.jsonl", "--model", str(model)]
        _rlhf(folder, seed, "generate", "answers", [*asked, *settings, "--out", str(raw)])
    return list(read_lines(raw))


def _answer_row(item: Mapping[str, object], row: Mapping[str, object]) -> dict[str, object]:
    """An arm's answer to an item: of every arm the text after the answer tag, if it wrote one."""
    passages = {"contexts": row["contexts"]} if "contexts" in row else {}
    text = extract_answer(str(row["response"])).strip()
    return {"prompt": item["prompt"], "response": text, "sampling": row["sampling"], **passages}


def _rlhf(folder: Path, seed: int, words: str, name: str, settings: list[str]) -> None:
    """Give a command with the recipe, and add its duration to the seed's file. Raises as ``give_command``."""
    places = [f"retrieval.{key}={folder}/data/{key}" for key in ("dataset", "index")]
    places += [f"retrieval.questions={folder}/data/questions.jsonl", f"retrieval.template={TEMPLATE}"]
    command = [*words.split(), str(RECIPE), f"name={name}", f"seed={seed}", f"runs_dir={folder}/runs", *places]
    seconds = give_command(f"seed {seed}: rlhf {words}, {name}", [*command, *settings], folder / "log.txt")
    append_line(folder / SECONDS, {"command": f"rlhf {words}", "run": name, "seconds": round(seconds, 1)})
