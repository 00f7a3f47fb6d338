"""Runs a comparison from its file to its report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlhf.arms.answers import REFERENCES, Arms, evaluation_rows, read_arms
from rlhf.arms.metrics import Measured, measure
from rlhf.arms.people import read_votes
from rlhf.arms.report import ComparisonReport, report
from rlhf.arms.spec import ComparisonConfig
from rlhf.data.columns import STANDARD
from rlhf.evaluation.academic_tasks import run_tasks
from rlhf.evaluation.chat_endpoint import ChatEndpoint, Usage
from rlhf.evaluation.lint import LintFinding, LintLimits, lint
from rlhf.evaluation.reply_cache import ReplyCache

TRAINED = (
    *("completion", "response", "output", "chosen", "messages", *STANDARD["messages"]),
    *("reference", "text", "answer"),
)
"""Columns of training rows that hold the trained answer; of a conversation it is the assistant's last turn."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A comparison's answers, its metrics, and the report about them."""

    arms: Arms
    measured: Measured
    report: ComparisonReport


def compare_arms(config: ComparisonConfig, device: str = "cpu") -> Compared:
    """Read, measure and summarise.

    Raises:
        UserError: items, answers, votes, scorers, academic tasks or the judge's settings cannot be used.
        MachineryError: the judge replied to nothing, or academic tasks failed.
    """
    arms = read_arms(config.items, config.arms, config.base)
    people = read_votes(config.votes, arms) if config.votes else None  # refused before the judge is paid
    academic = run_tasks(config.lm_eval) if config.lm_eval else ()
    judge = ChatEndpoint(config.judge, ReplyCache(Path(config.cache))) if config.judge else None
    measured = measure(arms, config, judge, device)
    usage = judge.usage if judge else Usage()
    made = report(arms, measured, people, usage, config.seed, academic)
    return Compared(arms=arms, measured=measured, report=made)


def lint_items(config: ComparisonConfig) -> list[LintFinding]:
    """Faults of a comparison's items, also against the files of ``train``.

    Raises:
        UserError: a file cannot be read.
    """
    rows = evaluation_rows(config.items, REFERENCES)
    train = [row for file in config.train for row in evaluation_rows(file, TRAINED)]
    return lint(rows, train, LintLimits(required=config.required, longest_answer=config.longest_answer))
