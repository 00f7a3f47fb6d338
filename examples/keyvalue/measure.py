"""What RAFT's training data is worth: exact match on unseen documents after it, and after plain fine-tuning.

    python -m examples.keyvalue.measure --seed 0

Both arms start from the same randomly initialised model and take the same number of updates on the same questions: one
on prompts with passages and completions that quote (``rlhf retrieval build``), one on questions and answers alone. Both
answer the same evaluation prompts, which hold the oracle among 4 distractors; the plain model is also asked without
passages, as it was trained.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.keyvalue.corpus import make_corpus
from rlhf.config.schema import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    PlacementConfig,
    Recipe,
    RetrievalConfig,
    RoleConfig,
    ScratchConfig,
    SFTConfig,
)
from rlhf.data.order import epoch_batches
from rlhf.data.tokenise import tokenise_demonstrations
from rlhf.models.folder import load_chat, read_facts
from rlhf.models.scratch import make_scratch
from rlhf.records import Demonstration
from rlhf.retrieval.answers import compose, extract_answer
from rlhf.retrieval.dataset import RetrievalRow, build_rows
from rlhf.retrieval.index import build_index
from rlhf.retrieval.template import PromptTemplate
from rlhf.roles.sft import SFTRole
from rlhf.roles.supervised_data import ExampleData
from rlhf.zero.process_group import Rank

TEMPLATE = Path(__file__).with_name("prompt.jinja")
RETRIEVAL = RetrievalConfig(template=str(TEMPLATE), distractors=4, oracle_probability=1.0, evaluation_fraction=0.1)
SCRATCH = ScratchConfig(hidden_size=64, layers=3, heads=4, intermediate_size=128, vocab_size=1000, max_length=128)
EVALUATED = 200
"""Evaluation questions."""
LONGEST_RESPONSE = 48
"""In tokens; a completion of RAFT's has about 20."""
LEAST_GAIN = 0.2


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Exact match on evaluation questions, in [0, 1]."""

    raft: float
    plain: float
    """After plain fine-tuning, with the same passages in the prompt."""
    closed_book: float
    """After plain fine-tuning, without passages."""


def measure(seed: int, documents: int, updates: int, threads: int, folder: Path) -> Scores:
    """Train and evaluate both arms.

    Args:
        threads: of PyTorch.
        folder: for models; empty.
    """
    passages, questions = make_corpus(documents, seed)
    built = build_rows(build_index(passages, RETRIEVAL), questions, RETRIEVAL, seed)
    train, held_out = built.of_side("train"), built.of_side("evaluation")[:EVALUATED]
    raft = [_row(row, _with_passages(row), compose(row.evidence.quotes, row.question.answer)) for row in train]
    plain = [_row(row, row.question.text, f" {row.question.answer}") for row in train]
    base, recipe = folder / "base", _recipe(seed, threads)
    make_scratch(SCRATCH, [f"{row.prompt}{row.completion}" for row in raft], base, seed)
    rendezvous = (folder / "rendezvous").as_uri()
    rank = Rank(rank=0, world=1, rendezvous=rendezvous, device="cpu", threads=threads, timeout_seconds=600.0)
    fine_tune(recipe, base, raft, updates, rank, folder / "raft")
    fine_tune(recipe, base, plain, updates, rank, folder / "plain")
    asked = [_with_passages(row) for row in held_out]
    answers = [row.question.answer for row in held_out]
    return Scores(
        raft=exact_match(folder / "raft", asked, answers),
        plain=exact_match(folder / "plain", asked, answers),
        closed_book=exact_match(folder / "plain", [row.question.text for row in held_out], answers),
    )


def _with_passages(row: RetrievalRow) -> str:
    return PromptTemplate.of(RETRIEVAL).text(row.question.text, row.passages)


def _row(row: RetrievalRow, prompt: str, completion: str) -> Demonstration:
    return Demonstration(prompt, completion, row.question.source)


def _recipe(seed: int, threads: int) -> Recipe:
    optimizer = OptimizerConfig(lr=3e-3, warmup_steps=100, schedule="cosine")
    return Recipe(
        name="keyvalue",
        seed=seed,
        model=ModelConfig(scratch=SCRATCH),
        sft=SFTConfig(batch_size=64, optimizer=optimizer),
        placement=PlacementConfig(policy=RoleConfig(micro_batch_tokens=8192), threads_per_rank=threads),
    )


def fine_tune(
    recipe: Recipe, base: Path, rows: Sequence[Demonstration], updates: int, rank: Rank, folder: Path
) -> None:
    """Fine-tune the base model on rows for so many updates, and write the model to ``folder``."""
    chat, size = load_chat(base, recipe.model), recipe.sft.batch_size
    facts = read_facts(base, recipe.model, chat.tokenizer)
    data = ExampleData.pack(tokenise_demonstrations(rows, chat, DataConfig(), facts).items)
    epochs = -(-updates * size // len(data))
    batches = epoch_batches(len(data), size, epochs, recipe.seed)[:updates]
    role = SFTRole(recipe, str(base), len(batches), rank)
    role.set_data(data, data)
    for step, batch in enumerate(batches, start=1):
        loss = role.update(batch)["train/loss"]
        if step % 100 == 0:
            print(f"{folder.name}: update {step} of {len(batches)}, loss {loss:.3f}", flush=True)
    role.save(folder)
    chat.tokenizer.save_pretrained(folder)


def exact_match(folder: Path, prompts: Sequence[str], answers: Sequence[str]) -> float:
    """Fraction of prompts whose greedy answer by a folder's model, extracted from its response, is the expected one."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(list(prompts), padding=True, padding_side="left", return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    with torch.inference_mode():
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=LONGEST_RESPONSE, do_sample=False)
    responses = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    found = [extract_answer(response).strip() for response in responses]
    return fmean(mine == expected for mine, expected in zip(found, answers, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the scores; exit code 1 if RAFT's data is worth less than 20 points."""
    parser = argparse.ArgumentParser(description="Exact match after RAFT's training data and after plain fine-tuning.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--documents", type=int, default=3000)
    parser.add_argument("--updates", type=int, default=3000, help="updates of each arm")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        scores = measure(**vars(options), folder=Path(folder))
    print(f"exact match: RAFT {scores.raft:.3f}, plain {scores.plain:.3f}, without passages {scores.closed_book:.3f}")
    return 0 if scores.raft - max(scores.plain, scores.closed_book) >= LEAST_GAIN else 1


if __name__ == "__main__":
    sys.exit(main())
