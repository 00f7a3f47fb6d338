"""Scores given answers with frozen rewards: to evaluate a reward model on votes, and to select pairs for raters."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import ray

from actors.group import Group
from actors.placement import Placement
from actors.scoring import ScoringMethod
from actors.session import Session
from actors.supervisor import Supervisor
from actors.waiting import PhaseContext, wait
from rlhf.config.schema import RewardSourceConfig
from rlhf.data.chat import transcript
from rlhf.records import Preference
from rlhf.roles.assemble import ResultSpec
from rlhf.roles.block_result import join_samples
from rlhf.types import FinishReason, Float32, Pair, Prompt, Rollout, RolloutBlock

BLOCK = 256
"""Answers per call, so that no call is long."""
ROLE = "rlhf.roles.reward:make_reward"


def score_answers(
    session: Session,
    source: RewardSourceConfig,
    answers: RolloutBlock,
    prompts: Sequence[Prompt],
    logs: Path,
    title: str,
) -> Float32:
    """Start the ranks of one reward, and return the scores (B,) of B answers.

    Args:
        source: a reward model, a function or a service.
        prompts: contains the prompts of ``answers.prompt_ids``.
        logs: folder for the actors' output.
        title: shown beside the progress.

    Raises:
        UserError: the reward cannot be used, or cannot read a prompt.
    """
    folder = None if source.model is None else str(session.verified(Path(source.model).expanduser()))
    placement = Placement(session.recipe, session.device, "reward", session.gpus, session.check)
    supervisor = Supervisor(session.recipe, _print_event, session.check, show=session.console.notice)
    group = Group("reward", session.recipe.placement.reward.ranks, placement, logs, supervisor)
    try:
        with supervisor.diagnosed():
            group.start(ROLE, session.recipe, source, str(session.tokenizer_folder), folder, prompts, session.day)
            group.ready()
            role = None if folder is None else session.recipe.placement.reward
            scorer = ScoringMethod.by_role(group, "scores", ResultSpec(kind="score"), role)
            return _score_blocks(scorer, answers, session, title)
    finally:
        group.stop()
        placement.release()


def _score_blocks(scorer: ScoringMethod, answers: RolloutBlock, session: Session, title: str) -> Float32:
    """Score rounds of blocks, one for each set of ranks that takes a unit."""
    group, scores = scorer.group, np.empty(len(answers), dtype=np.float32)
    sets = [range(first, first + scorer.unit_ranks) for first in range(0, len(group.workers), scorer.unit_ranks)]
    with session.console.stage(title, len(answers)) as report:
        for first in range(0, len(answers), BLOCK * len(sets)):
            begins = range(first, min(first + BLOCK * len(sets), len(answers)), BLOCK)
            blocks = [answers.select(range(begin, min(begin + BLOCK, len(answers)))) for begin in begins]
            sent = [group.score("scores", [ray.put(block)], ranks) for block, ranks in zip(blocks, sets)]
            names = [group.names[rank] for _, ranks in zip(sent, sets) for rank in ranks]
            results = [result for parts in sent for result, _ in parts]
            values = iter(wait(results, names, PhaseContext(phase="score"), group.supervisor.deadlines))
            for begin, block in zip(begins, blocks):
                scores[begin : begin + BLOCK] = join_samples(list(islice(values, scorer.unit_ranks)), len(block))
            report(begins[-1] + len(blocks[-1]), {})
    return scores


def block_of_pairs(pairs: Sequence[Pair], rows: Sequence[Preference]) -> tuple[RolloutBlock, list[Prompt]]:
    """Pack the answers of K pairs as a block of 2K rollouts, chosen and rejected alternating, and their prompts.

    Log-probabilities are unknown, and 0. The prompts' ids are the pairs' indices.

    Args:
        rows: the row of each pair.
    """
    prompts = [
        Prompt(
            id=i,
            tokens=tuple(pair.prompt.tolist()),
            text=transcript(row.prompt),
            turns=() if isinstance(row.prompt, str) else row.prompt,
            variables=row.variables,
        )
        for i, (pair, row) in enumerate(zip(pairs, rows, strict=True))
    ]
    rollouts = [
        Rollout(
            prompt=prompt,
            tokens=tokens,
            logprobs=np.zeros(len(tokens), dtype=np.float32),
            mask=np.ones(len(tokens), dtype=np.bool_),
            weight_version=0,
            finish_reason=FinishReason.STOP,
            seed=side,
        )
        for prompt, pair in zip(prompts, pairs, strict=True)
        for side, tokens in enumerate((pair.chosen, pair.rejected))
    ]
    return RolloutBlock.pack(rollouts), prompts


def _print_event(kind: str, **details: object) -> None:
    """Print failures; the command records no events."""
    if kind != "examined":
        print(f"{kind}: {details}", file=sys.stderr, flush=True)
