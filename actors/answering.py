"""Generates answers: for ``rlhf generate``, the comparison before and after PPO, and pairs for raters."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray

from actors.engines import Engines
from actors.placement import Placement
from actors.rollout import BlockSummary
from actors.session import Session
from actors.supervisor import Supervisor
from actors.waiting import PhaseContext
from rlhf.tracking.console import Report, ignore_progress
from rlhf.types import FinishReason, Prompt, RolloutBlock


@contextmanager
def running_engines(session: Session, folder: Path, prompts: Sequence[Prompt], logs: Path) -> Iterator[Engines]:
    """Context in which engines serve a folder's model, and answer ``prompts``."""
    placement = Placement(session.recipe, session.device, "generate", session.gpus, session.check)
    supervisor = Supervisor(session.recipe, _unrecorded, session.check, show=session.console.notice)
    engines = Engines(
        session.recipe,
        placement,
        folder,
        session.longest,
        session.end_tokens(folder),
        logs,
        supervisor,
        publishes=False,
    )
    try:
        engines.ready(prompts)
        yield engines
    finally:
        engines.stop()
        placement.release()


def answer(
    session: Session, folder: Path, prompts: Sequence[Prompt], logs: Path, shown: bool, each: int = 1
) -> list[str]:
    """Start engines with a folder's model, and return ``each`` sampled answers to every prompt, prompt by prompt."""
    indices = [i for i in range(len(prompts)) for _ in range(each)]
    progress = session.console.stage("Answers", len(indices)) if shown else nullcontext(ignore_progress)
    with running_engines(session, folder, prompts, logs) as engines, progress as report:
        return answers_of(engines, indices, folder, report)


@dataclass(frozen=True, kw_only=True)
class SampledAnswers:
    """Answers to prompts; ``rollouts`` and ``texts`` are parallel, in the order of the seeds."""

    rollouts: RolloutBlock
    """``prompt_ids`` are indices of the prompts."""
    texts: tuple[str, ...]


def sample_answers(
    session: Session, folder: Path, prompts: Sequence[Prompt], each: int, first_seed: int, logs: Path
) -> SampledAnswers:
    """Start engines with a folder's model, and sample ``each`` answers to every prompt.

    Answer j of prompt i has the seed ``first_seed + i · each + j``. Quarantined samples are left out.

    Args:
        prompts: their ``id`` is their index.

    Raises:
        MachineryError: more than ``recovery.bad_samples`` samples have no answer.
    """
    indices = [i for i in range(len(prompts)) for _ in range(each)]
    seeds = range(first_seed, first_seed + len(indices))
    blocks, texts = list[RolloutBlock](), dict[int, str]()
    progress = session.console.stage("Answers", len(indices))
    with running_engines(session, folder, prompts, logs) as engines, progress as report:
        for block, _, decoded in _decoded_blocks(engines, indices, seeds, folder):
            texts |= decoded
            blocks.append(ray.get(block))
            report(sum(map(len, blocks)), {})
    rollouts = RolloutBlock.concatenate(blocks)
    kept = np.flatnonzero(~rollouts.set_aside)
    kept = kept[np.argsort(rollouts.seeds[kept], kind="stable")]
    return SampledAnswers(
        rollouts=rollouts.select(kept), texts=tuple(texts[seed] for seed in rollouts.seeds[kept].tolist())
    )


@dataclass(frozen=True, kw_only=True)
class BlockAnswer:
    """One answer of a block, or the reason why there is none."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    tokens: int
    """Tokens of the response."""
    fault: str = ""


def answer_block(
    engines: Engines, prompts: Sequence[Prompt], seeds: Sequence[int], tokenizer_folder: Path
) -> dict[int, BlockAnswer]:
    """Sample an answer to each prompt with its seed; returns them by seed. A quarantined prompt has a fault.

    The prompts replace those that the engines had before, so that memory holds one block at a time.

    Args:
        seeds: all different.
    """
    if not prompts:
        return {}
    context, answers = PhaseContext(phase="answers"), dict[int, BlockAnswer]()
    engines.set_prompts(prompts, context)
    for reference, summary in engines.generate(range(len(prompts)), seeds, context):
        faults, texts = dict(summary.faults), engines.decode(tokenizer_folder, reference, context)
        block: RolloutBlock = ray.get(reference)
        lengths = zip(block.sequences.prompt_lengths.tolist(), block.sequences.response_lengths.tolist(), strict=True)
        named = zip(
            block.seeds.tolist(), block.prompt_ids.tolist(), block.finish_reasons.tolist(), lengths, strict=True
        )
        for seed, prompt, reason, (before, after) in named:
            is_quarantined = reason == FinishReason.SET_ASIDE
            answers[seed] = BlockAnswer(
                text=texts.get(seed, ""),
                finish_reason=FinishReason(reason),
                prompt_tokens=before,
                tokens=after,
                fault=faults.get(prompt, "no answer") if is_quarantined else "",
            )
    return answers


def _unrecorded(kind: str, **details: object) -> None:
    """Print quarantined prompts; the command records no events, and the supervisor prints failures itself."""
    if kind == "sample_set_aside":
        print(f"no answer to prompt {details['prompt']}: {details['reason']}", file=sys.stderr, flush=True)


def answers_of(engines: Engines, indices: Sequence[int], tokenizer_folder: Path, report: Report) -> list[str]:
    """Return a sampled answer to each of the engines' prompts at ``indices``, in this order, without special tokens.

    The seed of an answer is its position, so that answers of two models differ only because of the models. The answer
    to a quarantined prompt is empty.

    Args:
        tokenizer_folder: folder of the tokenizer with which the engines' actors decode.

    Raises:
        MachineryError: more than ``recovery.bad_samples`` prompts have no answer.
    """
    answers: dict[int, str] = {}
    for _, summary, decoded in _decoded_blocks(engines, indices, range(len(indices)), tokenizer_folder):
        answers |= decoded | dict.fromkeys(summary.set_aside, "")
        report(len(answers), {})
    return [answers[i] for i in range(len(indices))]


def _decoded_blocks(
    engines: Engines, indices: Sequence[int], seeds: Sequence[int], tokenizer_folder: Path
) -> Iterator[tuple[ray.ObjectRef, BlockSummary, dict[int, str]]]:
    """Generate; yields each finished block as (reference, summary, texts by seed)."""
    context, set_aside = PhaseContext(phase="answers"), 0
    for block, summary in engines.generate(indices, seeds, context):
        set_aside += engines.supervisor.set_aside(summary.faults, set_aside, context)
        yield block, summary, engines.decode(tokenizer_folder, block, context)
