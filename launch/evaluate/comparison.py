"""``rlhf evaluate --comparison``: one table over all arms and metrics, with what people say of each metric."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.options import writable
from rlhf.errors import UserError

if TYPE_CHECKING:
    from rlhf.arms.report import ComparisonReport
    from rlhf.evaluation.academic_tasks import TaskResult
    from rlhf.evaluation.agreement_with_people import MetricAgreement
    from rlhf.evaluation.bootstrap import Estimate
    from rlhf.evaluation.metric_table import ArmResult
    from rlhf.evaluation.power import PromptsNeeded
    from rlhf.tracking.console import Console

TIES = (0.0, 0.2, 0.4)
"""Fractions of ties for which ``--power`` alone prints prompts."""
LEAST_CONSISTENCY = 0.5
"""Fraction of pairs with the same judgement in both orders, below which a judge is warned of."""
MOST_FAILED = 0.2
"""Fraction of failed judgements of an arm, above which a judge is warned of."""


def compare(path: Path, settings: Sequence[str], power: float | None, device: str, out: Path | None) -> int:
    """Run a comparison, print it, and write the report to ``out``.

    Args:
        settings: ``key=value``, relative to the file's keys.
        power: also print the prompts that such a difference needs.

    Raises:
        UserError: as ``compare_arms``; or the report cannot be written.
    """
    from rlhf.arms.compare import compare_arms
    from rlhf.arms.report import needed_prompts
    from rlhf.arms.spec import load_comparison
    from rlhf.storage.durable import write_atomically
    from rlhf.tracking.console import Console

    place = None if out is None else writable(out)
    _require_difference(power)
    compared = compare_arms(load_comparison(path, settings), device)
    console, report = Console(sys.stdout), compared.report
    show_report(console, report)
    content = report.as_json()
    if power is not None:
        needed = needed_prompts(compared.arms, compared.measured, power)
        content["prompts_needed"] = {m: {arm: each.count for arm, each in arms.items()} for m, arms in needed.items()}
        for metric, arms in needed.items():
            shown = {arm: describe_needed(each) for arm, each in arms.items()}
            console.summary(f"{metric}: prompts to find a difference of {power:g}", shown)
    if place is not None:
        write_atomically(place, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        console.print(f"→ {place}")
    return 0


def show_lint(path: Path, settings: Sequence[str]) -> int:
    """Print the faults of a comparison's items; returns 1 if there are any."""
    from rlhf.arms.compare import lint_items
    from rlhf.arms.spec import load_comparison
    from rlhf.tracking.console import Console

    console = Console(sys.stdout)
    findings = lint_items(load_comparison(path, settings))
    for finding in findings:
        console.line(str(finding))
    console.print(f"{len(findings):,} findings" if findings else "no findings")
    return 1 if findings else 0


def show_power(difference: float) -> int:
    """Print the prompts that a win rate of 50% + ``difference`` needs, for several fractions of ties."""
    from rlhf.evaluation.power import POWER, prompts_needed, win_rate_deviation
    from rlhf.tracking.console import Console

    _require_difference(difference)
    if difference >= 0.5:
        raise UserError(f"--power {difference:g}: a win rate has at most 0.5 above chance", fix="--power 0.05")
    rate = 0.5 + difference
    rows = {
        f"{ties:.0%} ties": float(prompts_needed(difference, win_rate_deviation(rate, ties)))
        for ties in TIES
        if ties / 2 <= 1 - rate
    }
    title = f"prompts to tell a win rate of {rate:.1%} from 50%, with a probability of {POWER:.0%}, two-sided at 5%"
    Console(sys.stdout).summary(title, {name: f"{count:,.0f}" for name, count in rows.items()})
    return 0


def show_report(console: Console, report: ComparisonReport) -> None:
    """Print the report: one table of all metrics, the judge's comparisons, and the rankings."""
    table: dict[str, str] = {}
    for agreement in report.agreement:
        for arm in report.arms:
            table[f"{agreement.metric}, {arm}"] = describe_result(report.result(agreement.metric, arm))
        table[f"{agreement.metric}, agreement with people"] = describe_agreement(agreement)
    console.summary(f"{report.items:,} items, {report.votes:,} votes of people", table)
    if report.academic:
        tasks = {f"{each.task}, {each.metric}, {each.arm}": describe_task(each) for each in report.academic}
        console.summary("academic tasks by lm-eval, with standard errors", tasks)
    for arm, judged in report.judged.items():
        control = judged.length_controlled
        controlled = "none" if control is None else _interval(control.win_rate, control.low, control.high)
        note = ", answers of one side are nearly always longer" if control and control.is_confounded else ""
        note += ", the judgements alone do not bound it" if control and control.is_separated else ""
        console.summary(
            f"the judge on {arm} against {report.base}",
            {
                "win rate": describe(judged.pairs.win_rate),
                "win rate, position bias corrected": describe(judged.pairs.corrected),
                "win rate, length controlled": controlled + note,
                "same judgement in both orders": describe(judged.pairs.consistency),
                "position bias": describe(judged.pairs.position_bias),
                "failed": f"{judged.pairs.failed:,}",
            },
        )
    for by, ranking in (("the judge", report.ranking_by_judge), ("people", report.ranking_by_people)):
        if ranking:
            strengths = {r.arm: _interval(r.strength, r.low, r.high) for r in ranking}
            console.summary(f"Bradley-Terry strengths by {by}, in logits above {report.base}", strengths)
    for warning in warnings(report):
        console.print(f"warning: {warning}")
    _show_usage(console, report)


def warnings(report: ComparisonReport) -> list[str]:
    """Why the judge cannot be trusted, a line each."""
    from rlhf.arms.spec import JUDGE_METRICS
    from rlhf.evaluation.retrieval_metrics import RETRIEVAL_METRICS

    found = []
    for arm, judged in report.judged.items():
        consistency = judged.pairs.consistency.value
        if consistency is not None and consistency < LEAST_CONSISTENCY:
            found.append(f"the judge on {arm}: both orders agree in {consistency:.0%} of the pairs; use another judge")
    for cell in report.table:
        is_judged = cell.metric in JUDGE_METRICS or cell.metric in RETRIEVAL_METRICS
        if is_judged and cell.failed > MOST_FAILED * report.items:
            found.append(f"{cell.metric} of {cell.arm}: the judge failed on {cell.failed:,} of {report.items:,} items")
    return found


def describe_result(result: ArmResult) -> str:
    """One cell of the table as text."""
    text = describe(result.mean)
    if result.corpus is not None:
        text += f", corpus {result.corpus:.4g}"
    if result.difference is not None:
        text += f", above base {describe(result.difference)}"
    return f"{text}, {result.failed:,} failed" if result.failed else text


def describe_needed(needed: PromptsNeeded) -> str:
    """A number of prompts as text."""
    return f"not known: {needed.reason}" if needed.count is None else f"{needed.count:,}"


def describe_task(result: TaskResult) -> str:
    """A task's metric and its standard error as text."""
    return f"{result.value:.4g}" if result.stderr is None else f"{result.value:.4g} ± {result.stderr:.2g}"


def describe_agreement(agreement: MetricAgreement) -> str:
    """How a metric relates to people's votes, and whether it may gate."""
    if agreement.why_not:
        return f"cannot gate: {agreement.why_not}"
    return f"{_interval(agreement.accuracy, agreement.low, agreement.high)} of {agreement.preferences:,}, may gate"


def describe(found: Estimate) -> str:
    """A statistic and its interval as text."""
    return _interval(found.value, found.low, found.high) if found.value is not None else f"none: {found.reason}"


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    from rlhf.evaluation.intervals import describe_interval  # imports scipy

    return "not compared with the base" if value is None else describe_interval(value, low, high)


def _show_usage(console: Console, report: ComparisonReport) -> None:
    usage = report.usage
    if usage.calls or usage.cached or usage.failures:
        tokens = f"{usage.prompt_tokens:,} tokens read, {usage.completion_tokens:,} written"
        replies = f"{usage.calls:,} replies, {usage.cached:,} from the cache, {usage.failures:,} failed"
        console.print(f"judge: {replies}; {tokens}")
    if report.ambiguous_votes:
        why = "two arms gave this text, and the vote names no policy"
        console.print(f"{report.ambiguous_votes:,} voted items do not count: {why}")
    if report.unmatched_votes:
        console.print(f"{report.unmatched_votes:,} voted items of the project are not of this comparison")


def _require_difference(power: float | None) -> None:
    from rlhf.evaluation.power import LEAST_DIFFERENCE

    if power is not None and not 0 < power < math.inf:
        raise UserError(f"--power {power:g} is no difference", "it is the smallest one that matters", "--power 0.05")
    if power is not None and power < LEAST_DIFFERENCE:
        raise UserError(f"--power {power:g} is below the rounding of any metric", fix="--power 0.05")
