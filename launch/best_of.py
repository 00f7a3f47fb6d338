"""``rlhf generate --best-of``: the best of n answers by the recipe's rewards, as demonstrations for SFT.

Rejection sampling (Nakano et al. 2021; Touvron et al. 2023, section 3.2.3): the baseline that PPO must beat.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from actors.answer_scoring import score_answers
from actors.answering import SampledAnswers, sample_answers
from actors.session import Session
from launch.generate import Questions, read_questions, write_rows
from rlhf.config.ppo_rules import check_rewards
from rlhf.config.schema import Recipe, RewardSourceConfig
from rlhf.errors import UserError, raise_all
from rlhf.records import PromptRow
from rlhf.types import FinishReason

TEMPLATE_COLUMNS = ("tools", "documents")
"""Variables of a chat template that are columns of a row; the others are entries of ``chat_template_kwargs``."""


@dataclass(frozen=True, kw_only=True)
class BestOf:
    """What to answer, how often, and by which rewards the best answer is chosen."""

    questions: Questions
    """A prompt's ``id`` is its index, and that of its row."""
    out: Path
    answers: int
    rewards: Mapping[str, RewardSourceConfig]
    """Parts of the reward with a weight, models by folder."""


def read_best_of(session: Session, model: str, prompts: str, out: str | None, answers: int) -> BestOf:
    """Read and check everything before an engine is started.

    Raises:
        UserError: model, prompts, rewards or the output file cannot be used.
    """
    if answers < 2:
        raise UserError(f"--best-of {answers} has no choice", "answers to a prompt are compared", "--best-of 8")
    if out is None:
        raise UserError("--best-of without --out", "the best answers are data for SFT", "--out best.jsonl")
    raise_all(list(check_rewards(session.recipe)), f"the recipe {session.recipe.name!r} has no reward to choose by")
    rewards = _rewards(session.recipe, session.reward_models)
    found = read_questions(session, model, prompts, out)
    assert found.out is not None
    rows = tuple(found.rows[prompt.id] for prompt in found.prompts)
    indexed = tuple(replace(prompt, id=i) for i, prompt in enumerate(found.prompts))
    questions = replace(found, rows=rows, prompts=indexed)
    return BestOf(questions=questions, out=found.out, answers=answers, rewards=rewards)


def _rewards(recipe: Recipe, folders: Mapping[str, Path]) -> dict[str, RewardSourceConfig]:
    return {
        name: replace(source, model=str(folders[name])) if name in folders else source
        for name, source in recipe.rewards.items()
        if source.weight
    }


def generate_best_of(task: BestOf) -> None:
    """Sample, score and choose; write one row per prompt that has a finished answer: prompt, completion, score.

    Raises:
        UserError: no answer is finished.
    """
    session, logs = task.questions.session, task.questions.session.root / "logs"
    prompts = task.questions.prompts
    answers = sample_answers(session, task.questions.model, prompts, task.answers, session.recipe.seed, logs)
    scores = _scores(task, answers, logs)
    finished = (answers.rollouts.finish_reasons == FinishReason.STOP) & np.isfinite(scores)
    if not finished.any():
        raise UserError(
            f"none of {len(finished)} answers is finished and has a score",
            "SFT on truncated answers would teach the model to end in the middle of a sentence",
            f"rollout.max_response_length={2 * session.recipe.rollout.max_response_length}, or train with SFT first",
        )
    best = best_answers(scores, answers.rollouts.prompt_ids, finished)
    owners = answers.rollouts.prompt_ids[best].tolist()
    rows = [demonstration(task.questions.rows[i], answers.texts[j], float(scores[j])) for i, j in zip(owners, best)]
    write_rows(rows, task.out, session)
    lost = len(prompts) - len(rows)
    # Choosing where a finished answer exists is a condition on the sample, which the bound of best-of-n does not have.
    bound: float | str = math.log(task.answers) - (task.answers - 1) / task.answers
    if lost:
        bound = "not known: prompts were left out"
    session.console.summary(
        f"best of {task.answers} → {task.out}",
        {
            "prompts": len(prompts),
            "prompts without a finished answer, left out": lost,
            "score, all finished answers": float(scores[finished].mean()),
            "score, best answers": float(scores[best].mean()),
            "KL to the model, at most, nats": bound,
        },
    )
    if 2 * lost > len(prompts):
        session.console.print(
            f"warning: {lost:,} of {len(prompts):,} prompts have no finished answer; raise rollout.max_response_length"
        )


def _scores(task: BestOf, answers: SampledAnswers, logs: Path) -> np.ndarray:
    """(B,) weighted sum of the rewards' scores, one reward after another; NaN where a service gave none."""
    total = np.zeros(len(answers.rollouts))
    for name, source in task.rewards.items():
        prompts, title = task.questions.prompts, f"Scores {name}"
        total += source.weight * score_answers(task.questions.session, source, answers.rollouts, prompts, logs, title)
    return total


def best_answers(scores: np.ndarray, prompt_ids: np.ndarray, is_finished: np.ndarray) -> list[int]:
    """Index of the best finished answer to each prompt that has one, by prompt; of equal ones the first.

    Args:
        scores, prompt_ids, is_finished: (B,) of each answer.
    """
    kept = np.flatnonzero(is_finished)
    order = kept[np.lexsort((kept, -scores[kept], prompt_ids[kept]))]
    is_first = np.diff(prompt_ids[order], prepend=-1) != 0
    best: list[int] = order[is_first].tolist()
    return best


def demonstration(row: PromptRow, text: str, score: float) -> dict[str, object]:
    """A row that ``rlhf sft`` reads: the given prompt with the answer, as messages if the prompt has messages."""
    is_text = isinstance(row.prompt, str)
    columns = {name: value for name, value in row.variables.items() if name in TEMPLATE_COLUMNS}
    others = {name: value for name, value in row.variables.items() if name not in TEMPLATE_COLUMNS}
    return {
        "prompt": row.prompt if isinstance(row.prompt, str) else [turn.as_dict() for turn in row.prompt],
        "completion": text if is_text else [{"role": "assistant", "content": text}],
        **columns,
        **({"chat_template_kwargs": others} if others else {}),
        "score": score,
    }
