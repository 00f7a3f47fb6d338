"""The arms: which model each one is, what it is trained on, and its answers to the held-out questions.

Every command is ``rlhf`` as a user gives it. A finished stage, and a file of answers that is there, is not made again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.commands import give_command
from examples.travel.compare.data import TEMPLATE, Sizes, ask, write_data, write_quoted_comparisons
from rlhf.config.load import load_recipe
from rlhf.retrieval.answers import extract_answer
from rlhf.retrieval.index import build_index, retrieve
from rlhf.retrieval.passages import Passage, load_passages
from rlhf.storage.jsonl import append_line, read_lines, to_line

Item = Mapping[str, Any]
"""A row of a file."""
RECIPE = Path(__file__).with_name("recipe.yaml")
COPYING = ("sft.batch_size=32", "sft.optimizer.lr=3.0e-3", "sft.optimizer.schedule=constant")
"""Settings with which the base model learns to copy: all at once, at a rate that must not have decayed by then."""
TEMPERATURE = 0.7
"""Of the answers of all arms; PPO samples at 1."""
SECONDS = "seconds.jsonl"
"""File of the commands' durations, in a seed's folder."""
ADAPTERS = ("qlora", ("model.lora={rank: 16, alpha: 32, quantization: nf4}", "sft.optimizer.lr=5.0e-3"))
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
        about="adapters on the base in 4 bits (NF4), trained on the same demonstrations",
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
    _rlhf(folder, seed, "sft", "copy", [f"data.demonstrations={data}/copy.jsonl", *COPYING])
    copying = ["model.scratch=null", f"model.path={folder}/runs/copy/sft/model"]
    _rlhf(folder, seed, "sft", "base", [*copying, f"data.demonstrations={data}/base.jsonl"])
    _rlhf(folder, seed, "sft", "sft", plain)
    _rlhf(folder, seed, "dpo", "sft", [*plain, compared])
    _rlhf(folder, seed, "sft", ADAPTERS[0], [*plain, *ADAPTERS[1]])
    _train_raft(folder, seed, sizes, tuned)


def _train_raft(folder: Path, seed: int, sizes: Sizes, tuned: list[str]) -> None:
    data = folder / "data"
    _rlhf(folder, seed, "retrieval build", "raft", [f"retrieval.passages={data}/known_passages.jsonl"])
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

    A prompt in these files is the item's, below the office's card; no arm was shown that card unless it was retrieved.

    Raises:
        MachineryError: a command failed.
    """
    (folder / "answers").mkdir(exist_ok=True)
    items = read_lines(folder / "data" / "items.jsonl")
    passages = retrieve_all(folder, [item["question"] for item in items])
    for model in dict.fromkeys(arm.model for arm in ARMS):
        arms = [arm for arm in ARMS if arm.model == model]
        asked = [ask(item["question"], found) for arm in arms for item, found in _shown(arm, items, passages)]
        given = iter(_answer(folder, seed, model, asked))
        for arm in arms:
            rows = [_answer_row(item, found, next(given)) for item, found in _shown(arm, items, passages)]
            (folder / "answers" / f"{arm.name}.jsonl").write_text("".join(map(to_line, rows)), encoding="utf-8")


def retrieve_all(folder: Path, questions: Sequence[str]) -> list[tuple[Passage, ...]]:
    """The passages of each question, as ``rlhf retrieval ask`` finds them."""
    config = load_recipe(str(RECIPE), []).retrieval
    index = build_index(load_passages(str(folder / "data" / "passages.jsonl")).rows, config)
    return [retrieve(index, config, question) for question in questions]


def _shown(
    arm: AnsweringArm, items: Sequence[Item], passages: Sequence[tuple[Passage, ...]]
) -> Iterator[tuple[Item, tuple[Passage, ...]]]:
    """Each item with the passages that an arm is shown."""
    return ((item, found if arm.has_passages else ()) for item, found in zip(items, passages, strict=True))


def _answer(folder: Path, seed: int, model: str, asked: Sequence[str]) -> Sequence[Item]:
    """A model's answers to prompts, as ``rlhf generate`` writes them."""
    name = model.replace("/", "-")
    prompts, out = folder / "data" / f"asked-{name}.jsonl", folder / "answers" / f"{name}.raw"
    if not out.exists():
        prompts.write_text("".join(to_line({"prompt": prompt}) for prompt in asked), encoding="utf-8")
        path = str(folder / "runs" / model / "model")
        settings = [f"rollout.temperature={TEMPERATURE}", "model.scratch=null", f"model.path={path}"]
        words = ["--model", path, "--prompts", str(prompts), "--out", str(out)]
        _rlhf(folder, seed, "generate", f"answers-{name}", [*settings, *words])
    return list[Item](read_lines(out))


def _answer_row(item: Item, passages: Sequence[Passage], row: Item) -> dict[str, object]:
    """An arm's answer to an item: of every arm the text after the answer tag, if it wrote one."""
    text = extract_answer(str(row["response"])).strip()
    contexts = {"contexts": [passage.text for passage in passages]} if passages else {}
    return {"prompt": item["prompt"], "response": text, "sampling": row["sampling"], **contexts}


def _rlhf(folder: Path, seed: int, words: str, name: str, settings: list[str]) -> None:
    """Give a command with the recipe, unless its stage is finished, and add its duration to the seed's file.

    Raises as ``give_command``.
    """
    if (folder / "runs" / name / ("ppo" if words == "pipeline" else words) / "done.json").exists():
        return
    places = [f"retrieval.dataset={folder}/data/dataset", f"retrieval.questions={folder}/data/questions.jsonl"]
    places += [f"retrieval.template={TEMPLATE}", f"runs_dir={folder}/runs", f"name={name}", f"seed={seed}"]
    command = [*words.split(), str(RECIPE), *places, *settings]
    seconds = give_command(f"seed {seed}: rlhf {words}, {name}", command, folder / "log.txt")
    append_line(folder / SECONDS, {"command": f"rlhf {words}", "run": name, "seconds": round(seconds, 1)})
